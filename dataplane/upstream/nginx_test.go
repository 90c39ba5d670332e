package upstream

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// nginx serves a directory on a port of its own, and closes connections early and
// often. Without nginx the test is skipped.
func nginx(t *testing.T) (url string) {
	t.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		if binary = "/usr/sbin/nginx"; !exists(binary) {
			t.Skip("NGINX IS NOT INSTALLED: upstreams are not tried against it")
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("small", "small")
	write("large", strings.Repeat("0123456789abcdef", 1<<16))
	// ssi makes nginx send what it has not measured: chunked.
	write("chunked.shtml", strings.Repeat("line\n", 5000)+"<!--#echo var=\"request_method\" -->\n")
	write("nginx.conf", fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
  access_log off; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  client_max_body_size 1k; keepalive_requests 7;
  server { listen %[2]s; root %[1]s; ssi on; ssi_types *; location /empty { return 204; } }
}`, dir, address))
	cmd := exec.Command(binary, "-e", filepath.Join(dir, "error.log"), "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return "http://" + address
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
			t.Fatalf("nginx does not listen: %s", log)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestNginx(t *testing.T) {
	b := acquire(t, nginx(t))
	defer b.upstream.pool.Close()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 60 {
				e, status, length := get("/small"), 200, 5
				switch i % 6 {
				case 1:
					e, length = get("/large"), 1<<20
				case 2:
					e, length = get("/chunked.shtml"), 5*5000+len("GET\n")
				case 3:
					e, status, length = get("/empty"), 204, 0
				case 4:
					e, length = get("/small"), 0
					e.Request.Method = "HEAD"
				case 5:
					// Refused before the body is read.
					e, status, length = get("/small"), 413, -1
					e.Request.Method = "POST"
					e.Request.Body = exchange.Body{Reader: there1{strings.NewReader(strings.Repeat("x", 1<<20))}, Length: 1 << 20}
				}
				got, body, err := whole(b, e)
				if err != nil || got != status || length >= 0 && len(body) != length {
					t.Errorf("%s %s: %d, %d bytes, %v", e.Request.Method, e.Request.Path, got, len(body), err)
				}
			}
		})
	}
	all.Wait()
}
