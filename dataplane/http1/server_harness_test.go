package http1

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// front is a running server whose handler records what reaches it.
type front struct {
	t      *testing.T
	addr   string
	server *Server
	ln     net.Listener

	mu   sync.Mutex
	seen []string
}

// start runs a server. Its refusals are the reason as text; its handler, unless
// config has one, answers with what it got.
func start(t *testing.T, config Config) *front {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, config, ln)
}

func startOn(t *testing.T, config Config, ln net.Listener) *front {
	t.Helper()
	f := &front{t: t, addr: ln.Addr().String(), ln: ln}
	handle := config.Handle
	if handle == nil {
		handle = echo
	}
	config.Handle = func(e *exchange.Exchange) *exchange.Response {
		f.mu.Lock()
		f.seen = append(f.seen, e.Request.Method+" "+e.Request.Path)
		f.mu.Unlock()
		return handle(e)
	}
	config.Refuse = refusing
	f.server = NewServer(config)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { f.server.Serve(c, connOf(c), nil) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		f.server.Cut()
		serving.Wait()
		if n := f.server.Open(); n > 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	return f
}

// connOf is what a listener knows of a connection.
func connOf(c net.Conn) *admission.Conn {
	on := &admission.Conn{Peer: admission.PeerOf(c.RemoteAddr().String())}
	if secure, ok := c.(*tls.Conn); ok {
		on.TLS = &exchange.PeerTLS{Version: secure.ConnectionState().Version}
	}
	return on
}

func refusing(e *exchange.Exchange, reason string, status int) *exchange.Response {
	return plain(status, reason+": "+e.Why.Detail)
}

// stop ends accepting and drains; it returns when all connections are closed.
func (f *front) stop() {
	f.ln.Close()
	f.server.Drain()
	f.empty()
}

// empty waits until no connection is open.
func (f *front) empty() {
	for f.server.Open() > 0 {
		time.Sleep(time.Millisecond)
	}
}

func plain(status int, s string) *exchange.Response {
	return &exchange.Response{Status: status, Body: exchange.Body{Reader: io.NopCloser(strings.NewReader(s)), Length: int64(len(s))},
		Header: exchange.HeaderOf(exchange.Field{Name: "Content-Type", Value: "text/plain"})}
}

// echo answers with the request as the exchange holds it.
func echo(e *exchange.Exchange) *exchange.Response {
	var b strings.Builder
	r := &e.Request
	fmt.Fprintf(&b, "%s %s?%s host=%s authority=%s scheme=%s peer=%s\n", r.Method, r.Path, r.Query, r.Host, r.Authority, r.Scheme, r.Peer)
	for _, f := range r.Header.Fields() {
		fmt.Fprintf(&b, "%s: %s\n", f.Name, f.Value)
	}
	if r.Body.Reader != nil {
		data, err := io.ReadAll(r.Body.Reader)
		if err != nil {
			return plain(400, err.Error())
		}
		fmt.Fprintf(&b, "body=%s", data)
	}
	return plain(200, b.String())
}

// reached returns what the handler saw since the last call.
func (f *front) reached() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := f.seen
	f.seen = nil
	return seen
}

// client is a raw connection.
type client struct {
	net.Conn
	r *bufio.Reader
	t *testing.T
}

func (f *front) dial() *client {
	f.t.Helper()
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	f.t.Cleanup(func() { c.Close() })
	return &client{c, bufio.NewReader(c), f.t}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatal(err)
	}
}

// receive reads one response.
func (c *client) receive(method string) (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, &http.Request{Method: method})
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("answer cut short: %v", err)
	}
	return resp, string(b)
}

// closed asserts that the server closes the connection without another byte.
func (c *client) closed() {
	c.t.Helper()
	if b, err := io.ReadAll(c.r); err != nil || len(b) > 0 {
		c.t.Errorf("after the answer: %q, %v; want the end", b, err)
	}
}

func (f *front) once(request string) (*http.Response, string) {
	f.t.Helper()
	c := f.dial()
	defer c.Close()
	c.send(request)
	method, _, _ := strings.Cut(request, " ")
	return c.receive(method)
}
