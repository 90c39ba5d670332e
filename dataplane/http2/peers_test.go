package http2

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// secure serves the front's server under TLS too, by ALPN, and returns where.
func (f *front) secure() string {
	f.t.Helper()
	certified := httptest.NewTLSServer(http.NotFoundHandler())
	certificates := certified.TLS.Certificates
	certified.Close()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certificates, NextProtos: []string{"h2"}})
	if err != nil {
		f.t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				shaken := c.(*tls.Conn)
				if shaken.Handshake() != nil {
					c.Close()
					return
				}
				state := shaken.ConnectionState()
				f.server.Serve(c, &admission.Conn{Peer: admission.PeerOf(c.RemoteAddr().String()), TLS: &exchange.PeerTLS{Version: state.Version, ALPN: state.NegotiatedProtocol}}, nil)
			})
		}
	})
	f.t.Cleanup(func() {
		ln.Close()
		f.server.Cut()
		served.Wait()
	})
	return ln.Addr().(*net.TCPAddr).String()
}

// peer runs a client that may not be installed.
func peer(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s IS NOT INSTALLED: HTTP/2 is not tried against it", name)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func TestPeers(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/large" {
			return text(200, strings.Repeat("x", 1_000_000))
		}
		return echo(e)
	}})
	secure := f.secure()
	t.Run("curl, by prior knowledge", func(t *testing.T) {
		if got := peer(t, "curl", "-sS", "--http2-prior-knowledge", "-d", "a=b", "-w", "%{http_version} %{http_code}", "http://"+f.addr+"/x?y=z"); !strings.Contains(got, "POST /x?y=z") || !strings.HasSuffix(got, "body=a=b2 200") {
			t.Error(got)
		}
	})
	t.Run("curl, by ALPN", func(t *testing.T) {
		if got := peer(t, "curl", "-sSk", "--http2", "-w", "%{http_version} %{http_code} %{size_download}", "-o", "/dev/null", "https://"+secure+"/large"); got != "2 200 1000000" {
			t.Error(got)
		}
		if got := peer(t, "curl", "-sSk", "--http2", "-I", "https://"+secure+"/"); !strings.HasPrefix(got, "HTTP/2 200") || !strings.Contains(got, "\ndate: ") {
			t.Error(got)
		}
	})
	t.Run("nghttp", func(t *testing.T) {
		if got := peer(t, "nghttp", "-v", "--no-verify-peer", "--continuation", "-H", "cookie: a=b", "-d", "/dev/null", "https://"+secure+"/x"); !strings.Contains(got, ":status: 200") || !strings.Contains(got, "cookie: a=b") {
			t.Error(got)
		}
	})
	for name, url := range map[string]string{"clear text": "http://" + f.addr, "TLS": "https://" + secure} {
		t.Run("h2load, "+name, func(t *testing.T) {
			for _, path := range []string{"/", "/large"} {
				n := "2000"
				if path == "/large" {
					n = "40"
				}
				got := peer(t, "h2load", "-n", n, "-c", "4", "-m", "20", url+path)
				if !strings.Contains(got, n+" succeeded, 0 failed, 0 errored") || !strings.Contains(got, n+" 2xx") {
					t.Error(got)
				}
			}
		})
	}
}
