package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// client is one HTTP/1.1 connection to a node, on which a test writes what it
// likes.
type client struct {
	net.Conn
	*bufio.Reader
}

// dial opens a connection to node i that the test's end closes.
func (h *harness) dial(t *testing.T, i int) *client {
	t.Helper()
	conn, err := net.Dial("tcp", h.Addresses()[i])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &client{conn, bufio.NewReader(conn)}
}

// Read is that of both that client embeds.
func (c *client) Read(p []byte) (int, error) { return c.Reader.Read(p) }

func (c *client) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(c.Conn, text); err != nil {
		t.Fatal(err)
	}
}

// receive reads one answer to a request of the method.
func (c *client) receive(method string) (answer, error) {
	resp, err := http.ReadResponse(c.Reader, &http.Request{Method: method})
	if err != nil {
		return answer{Header: http.Header{}}, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	a := answer{Status: resp.StatusCode, Header: resp.Header, Body: string(body)}
	if a.RequestID = resp.Header.Get("X-Request-Id"); resp.Close {
		a.Header.Set("Connection", "close")
	}
	return a, err
}

// head writes a request's head, for a connection that stays open.
func head(method, target string, fields ...string) string {
	return method + " " + target + " HTTP/1.1\r\n" + strings.Join(append(append([]string{"Host: a"}, fields...), "", ""), "\r\n")
}

// ask sends a request without a body and reads its answer.
func (c *client) ask(t *testing.T, method, target string, fields ...string) (answer, error) {
	t.Helper()
	c.send(t, head(method, target, fields...))
	return c.receive(method)
}

// get is ask for what must be answered.
func (c *client) get(t *testing.T, target string, fields ...string) answer {
	t.Helper()
	a, err := c.ask(t, "GET", target, fields...)
	if err != nil {
		t.Fatalf("GET %s: %v", target, err)
	}
	return a
}

// ended tells whether the node has closed the connection with nothing more on it.
func (c *client) ended() error {
	b, err := c.ReadByte()
	switch {
	case err == nil:
		rest, _ := c.Peek(c.Buffered())
		return fmt.Errorf("more comes on the connection: %.100q", string(b)+string(rest))
	case errors.Is(err, io.EOF) || isReset(err):
		return nil
	}
	return err
}

func isReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && !op.Timeout()
}

// script is an upstream that is played on bare connections.
type script struct {
	URL string
	// play answers one request whose body it has not read, and tells whether the
	// connection serves on. It is set before requests come, or by becomes.
	play func(c *played, r *http.Request) bool

	listener net.Listener
	// released is closed at the end.
	released chan struct{}
	running  sync.WaitGroup
	mu       sync.Mutex
	open     map[*played]struct{}
	accepted int
	seen     []string
	closed   bool
}

// played is one connection of a script.
type played struct {
	net.Conn
	*bufio.Reader
	// number counts connections from 1, request those on the connection.
	number, request int
	script          *script
}

// Read is that of both that played embeds.
func (c *played) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// say writes as it is; who has gone does not hear it.
func (c *played) say(text string) { _, _ = io.WriteString(c.Conn, text) }

// reset closes the connection without a farewell.
func (c *played) reset() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// hold waits until the node lets go of the connection.
func (c *played) hold() { _, _ = io.Copy(io.Discard, c.Reader) }

func newScript(t *testing.T, play func(*played, *http.Request) bool) *script {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{URL: "http://" + listener.Addr().String(), play: play, listener: listener, released: make(chan struct{}), open: map[*played]struct{}{}}
	s.running.Go(s.accept)
	t.Cleanup(s.close)
	return s
}

func (s *script) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.accepted++
		c := &played{Conn: conn, Reader: bufio.NewReader(conn), number: s.accepted, script: s}
		s.open[c] = struct{}{}
		if s.closed {
			_ = conn.Close()
		}
		s.mu.Unlock()
		s.running.Go(c.serve)
	}
}

func (c *played) serve() {
	defer func() {
		_ = c.Close()
		c.script.mu.Lock()
		defer c.script.mu.Unlock()
		delete(c.script.open, c)
	}()
	for {
		r, err := http.ReadRequest(c.Reader)
		if err != nil {
			return
		}
		c.request++
		c.script.mu.Lock()
		c.script.seen = append(c.script.seen, fmt.Sprintf("%s %s on %d", r.Method, r.RequestURI, c.number))
		play := c.script.play
		c.script.mu.Unlock()
		if !play(c, r) {
			return
		}
	}
}

func (s *script) close() {
	_ = s.listener.Close()
	close(s.released)
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		_ = c.Conn.Close()
	}
	s.mu.Unlock()
	s.running.Wait()
}

// becomes sets who plays from now on.
func (s *script) becomes(play func(*played, *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.play = play
}

// take returns what was asked, as "GET /x on 1" with the connection's number, and
// forgets it.
func (s *script) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

// reply is a whole answer.
func reply(status, body string, fields ...string) string {
	return "HTTP/1.1 " + status + "\r\n" + strings.Join(append(fields, fmt.Sprintf("Content-Length: %d", len(body)), "", body), "\r\n")
}

// publicTo declares an upstream and a public route to it under /name; the
// upstream's spec may say more.
func publicTo(name, url string, spec ...string) string {
	return fmt.Sprintf("\n---\napiVersion: portcullis.dev/v1\nkind: Upstream\nmetadata: {name: %s}\nspec:\n  endpoints: [{url: %q}]\n  %s\n", name, url, strings.Join(spec, "\n  ")) +
		strings.Replace(routeYAML(name, "public: true", "matches: [{path: {prefix: /"+name+"}}]"), "{upstream: up}", "{upstream: "+name+"}", 1)
}

// record is what the nodes remember of a request.
func (h *harness) record(t *testing.T, id string) (record *controlv1.DecisionRecord) {
	t.Helper()
	h.until("the record of "+id, func() error {
		why, err := h.admin.Why(t.Context(), &adminv1.WhyRequest{RequestId: id})
		if err == nil {
			record = why.Record
		}
		return err
	})
	return record
}
