package gateway

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// script is an upstream's connection in memory: it answers each request with the
// same bytes.
type script struct {
	net.Conn
	answer, left []byte
	asked        []byte
}

func (s *script) Write(p []byte) (int, error) {
	s.asked = append(s.asked[:0], p...)
	s.left = s.answer
	return len(p), nil
}

func (s *script) Read(p []byte) (int, error) {
	n := copy(p, s.left)
	s.left = s.left[n:]
	return n, nil
}
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
func (s *script) Close() error                     { return nil }

// forwarded hands run one whole exchange: what Handle does, the answer read to
// its end, and what is told of it.
func (r *rig) forwarded(b testing.TB, claims map[string]any, answer string, run func(exchange func())) (asked func() string) {
	conn := &script{answer: []byte(answer)}
	r.dial = func(context.Context, string, string) (net.Conn, error) { return conn, nil }
	authorization := "Bearer " + mint(secret, claims)
	e := request("GET", "api.example/orders/42", "X-Version", "2", "Accept", "*/*", "Authorization", authorization)
	id, host, path := e.ID, e.Request.Host, e.Request.Path
	buffer := make([]byte, 512)
	run(func() {
		e.Reset()
		e.Context, e.ID, e.Received = context.Background(), id, time.Now()
		e.Request.Method, e.Request.Host, e.Request.Authority, e.Request.Path, e.Request.Scheme = "GET", host, host, path, "https"
		e.Request.Header.Add("X-Version", "2")
		e.Request.Header.Add("Accept", "*/*")
		e.Request.Header.Add("Authorization", authorization)
		e.Request.Header.Add("X-Request-Id", id)
		resp := r.g.Handle(e)
		if resp.Status != 200 || resp.Body.Reader == nil {
			b.Fatal(resp.Status, e.Why)
		}
		for {
			if _, err := resp.Body.Reader.Read(buffer); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
		resp.Body.Reader.Close()
		e.Result = exchange.Result{Status: 200, Bytes: 5}
		e.End()
	})
	return func() string { return string(conn.asked) }
}

var manyScopes = map[string]any{"scope": "orders:read orders:write", "roles": []string{"a", "b"}, "groups": []string{"x,y", "z"}}

func TestForwardingAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("ALLOCATIONS ARE NOT COUNTED under the race detector, where sync.Pool forgets: make test counts them without")
	}
	for name, answer := range map[string]string{
		"length":  "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello",
		"chunked": "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	} {
		r := newRig(t)
		r.typical()
		r.forwarded(t, manyScopes, answer, func(exchange func()) {
			for range decisionSlots + 3 { // the ring is warm then
				exchange()
			}
			if n := testing.AllocsPerRun(1000, exchange); n != 0 {
				t.Errorf("%s: %v allocations from the head of the request to the end of the answer", name, n)
			}
		})
	}
}

func BenchmarkForward(b *testing.B) {
	r := newRig(b)
	r.typical()
	b.ReportAllocs()
	r.forwarded(b, nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello", func(exchange func()) {
		for b.Loop() {
			exchange()
		}
	})
}

// An upstream that answers before it has the body is heard at once, and whoever
// reads the rest of the body in its name is not waited for.
func TestAnEarlyAnswerReachesTheClient(t *testing.T) {
	r := newRig(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	origin := make(chan struct{})
	go func() {
		defer close(origin)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		br := bufio.NewReader(c)
		if _, err := http.ReadRequest(br); err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
		_, _ = io.Copy(io.Discard, br)
	}()
	t.Cleanup(func() { ln.Close(); <-origin })
	r.apply(doc("Route", "default", "a", `{public: true, backends: [{upstream: up}]}`) + upstreamAt("up", "http://"+ln.Addr().String()))
	c, err := net.Dial("tcp", r.serve())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nbegin")
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body); resp.StatusCode != 413 || string(body) != "no" || err != nil || !resp.Close {
		t.Errorf("%d %q close=%t %v", resp.StatusCode, body, resp.Close, err)
	}
	begun := time.Now()
	if _, err := br.ReadByte(); err == nil || time.Since(begun) > 5*time.Second {
		t.Errorf("the connection is left open: %v after %v", err, time.Since(begun))
	}
}
