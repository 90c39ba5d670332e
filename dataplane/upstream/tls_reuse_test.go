package upstream

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"portcullis.dev/portcullis/pkg/identity/certtest"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// secured serves TLS with the function, and returns a backend on it.
func secured(t *testing.T, serve func(n int, c net.Conn, r *bufio.Reader)) *Backend {
	t.Helper()
	ca := certtest.New(t, "ca")
	shown := ca.Issue(t, certtest.Spec{Hosts: []string{"up.example"}}).TLS(t)
	url := scripted(t, func(n int, raw net.Conn, _ *bufio.Reader) {
		c := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{shown}})
		serve(n, c, bufio.NewReader(c))
	})
	pool := NewPool(Config{TLS: func(*configv1.UpstreamTLS) (*tls.Config, error) {
		return &tls.Config{RootCAs: ca.Pool(), ServerName: "up.example"}, nil
	}})
	t.Cleanup(pool.Close)
	u, err := pool.Acquire(key, &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: strings.Replace(url, "http:", "https:", 1)}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Release)
	return backendOf(u)
}

// Connections in TLS are looked at before they are used again like those in clear
// text: what was said unasked is no answer, and one that was closed takes no request.
func TestIdleConnectionsInTLSAreLookedAt(t *testing.T) {
	for name, behind := range map[string]func(c net.Conn){
		"unasked": func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nothers") },
		"closed":  func(c net.Conn) { _ = c.Close() },
	} {
		said := make(chan struct{}, 8)
		next := make(chan struct{}, 8)
		b := secured(t, func(_ int, c net.Conn, r *bufio.Reader) {
			for {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				_, _ = io.WriteString(c, okay)
				select {
				case <-next:
				case <-t.Context().Done():
					return
				}
				behind(c)
				said <- struct{}{}
			}
		})
		for range 3 {
			e := get("/")
			e.Request.Method = "POST" // not to be sent twice
			if status, body, err := whole(b, e); status != 200 || body != "ok" || err != nil {
				t.Fatalf("%s: %d %q %v", name, status, body, err)
			}
			next <- struct{}{}
			<-said
		}
	}
}
