package e2e_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"portcullis.dev/portcullis/deploy/cluster"
)

// startNginx runs nginx on a port of its own, with what of a site is given.
func (h *harness) startNginx(t *testing.T, site string) (url, dir string) {
	t.Helper()
	binary := tool(t, "nginx")
	dir, address := t.TempDir(), freePort(t)
	conf := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log %[1]s/error.log;
events {}
http {
  access_log off; client_body_temp_path %[1]s; proxy_temp_path %[1]s; fastcgi_temp_path %[1]s; uwsgi_temp_path %[1]s; scgi_temp_path %[1]s;
  server { listen %[2]s; root %[1]s; %[3]s }
}`, dir, address, site)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-e", filepath.Join(dir, "error.log"), "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	h.until("nginx listens", func() error {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.Close()
			return nil
		}
		log, _ := os.ReadFile(filepath.Join(dir, "error.log"))
		return fmt.Errorf("%w: %s", err, log)
	})
	return "http://" + address, dir
}

// nginx as an upstream: its connections are kept and used again, until it ends
// them, and its files, ranges, chunks and compression arrive as they are.
func TestNginxUpstream(t *testing.T) {
	const perConnection = 40
	h := start(t, cluster.Config{})
	url, dir := h.startNginx(t, `
    keepalive_requests `+strconv.Itoa(perConnection)+`; gzip on; gzip_types *; gzip_min_length 1; gzip_http_version 1.1; gzip_proxied any; ssi on; ssi_types *; client_max_body_size 1m;
    add_header X-Connection $connection; add_header X-Request $connection_requests;
    location = /nginx/none { return 204; }
    location = /nginx/moved { return 302 /elsewhere; }
    location = /nginx/small { ssi off; gzip off; }
    location = /nginx/large { ssi off; gzip off; }`)
	large := strings.Repeat("0123456789", 200_000)
	if err := os.Mkdir(filepath.Join(dir, "nginx"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"small": "small", "large": large, "chunked": strings.Repeat("line\n", 20_000) + `<!--#echo var="request_method" -->`} {
		if err := os.WriteFile(filepath.Join(dir, "nginx", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	h.apply(publicTo("nginx", url))
	c := h.dial(t, 0)
	for i := range 3 * perConnection {
		a := c.get(t, "/nginx/small")
		if n, _ := strconv.Atoi(a.Header.Get("X-Request")); a.Status != 200 || a.Body != "small" || n != i%perConnection+1 {
			t.Fatalf("request %d: %+v is number %d on its connection to nginx", i, a, n)
		}
	}
	for _, row := range []struct {
		method, path string
		fields       []string
		status       int
		body         string
		header       []string
	}{
		{"GET", "/nginx/large", nil, 200, large, []string{"Content-Length", "2000000", "Accept-Ranges", "bytes"}},
		{"GET", "/nginx/large", []string{"Range: bytes=5-14"}, 206, "5678901234", []string{"Content-Range", "bytes 5-14/2000000"}},
		{"GET", "/nginx/large", []string{"Range: bytes=3000000-"}, 416, "", nil},
		{"HEAD", "/nginx/large", nil, 200, "", []string{"Content-Length", "2000000"}},
		{"GET", "/nginx/chunked", nil, 200, strings.Repeat("line\n", 20_000) + "GET", []string{"Content-Length", ""}},
		{"GET", "/nginx/none", nil, 204, "", []string{"Content-Length", ""}},
		{"GET", "/nginx/moved", nil, 302, "", []string{"Location", "http://a/elsewhere"}},
		{"GET", "/nginx/missing", nil, 404, "", nil},
		{"POST", "/nginx/small", nil, 405, "", nil},
		{"GET", "/nginx/large", []string{"If-None-Match: *"}, 304, "", nil},
	} {
		a, err := c.ask(t, row.method, row.path, row.fields...)
		if err != nil {
			t.Fatalf("%s %s: %v", row.method, row.path, err)
		}
		if a.Status != row.status || row.status < 300 && a.Body != row.body {
			t.Errorf("%s %s: %d, %d bytes, want %d, %d", row.method, row.path, a.Status, len(a.Body), row.status, len(row.body))
		}
		for i := 0; i+1 < len(row.header); i += 2 {
			if got := a.Header.Get(row.header[i]); got != row.header[i+1] && row.header[i] != "Location" {
				t.Errorf("%s %s: %s is %q, want %q", row.method, row.path, row.header[i], got, row.header[i+1])
			}
		}
	}
	// Compressed, in chunks.
	c.send(t, head("GET", "/nginx/chunked", "Accept-Encoding: gzip"))
	resp, err := http.ReadResponse(c.Reader, nil)
	if err != nil || resp.Header.Get("Content-Encoding") != "gzip" || len(resp.TransferEncoding) == 0 {
		t.Fatalf("%+v %v", resp, err)
	}
	zip, err := gzip.NewReader(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(zip); err != nil || string(text) != strings.Repeat("line\n", 20_000)+"GET" {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	// Refused before its body is read: the client hears it.
	if a := h.do(0, "POST", "/nginx/small", strings.Repeat("x", 3<<20)); a.Status != 413 {
		t.Errorf("a large body: %d", a.Status)
	}
	if a := h.get(0, "/nginx/small"); a.Body != "small" {
		t.Errorf("after it: %+v", a)
	}
}
