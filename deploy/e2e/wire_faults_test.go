package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/deploy/cluster"
)

// fault is how an upstream fails one request, and what comes of it.
type fault struct {
	// request is what the client sends; "" is a GET.
	request string
	play    func(*played, *http.Request) bool
	status  int
	reason  string
	body    string
	// detail is part of what the record says.
	detail string
}

// upstreamFaults are those before an answer's head is out.
func upstreamFaults() map[string]fault {
	large := "POST /fault HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n"
	early := func(text string) func(*played, *http.Request) bool {
		return func(c *played, r *http.Request) bool {
			c.say(text)
			_, err := io.Copy(io.Discard, r.Body)
			return err == nil // all of the body came, and another request may
		}
	}
	return map[string]fault{
		"closes at once": {play: func(*played, *http.Request) bool { return false }, status: 502, reason: "upstream_unavailable", detail: "without an answer"},
		"resets at once": {play: func(c *played, _ *http.Request) bool { c.reset(); return false }, status: 502, reason: "upstream_unavailable", detail: "reset"},
		"hangs":          {play: func(c *played, _ *http.Request) bool { c.hold(); return false }, status: 504, reason: "upstream_timeout", detail: "in time"},
		"hangs in the head": {play: func(c *played, _ *http.Request) bool { c.say("HTTP/1.1 200 OK\r\nX-A: b\r\n"); c.hold(); return false },
			status: 504, reason: "upstream_timeout", detail: "in time"},
		"hangs behind a hint": {play: func(c *played, _ *http.Request) bool {
			c.say("HTTP/1.1 103 Early Hints\r\n\r\n")
			c.hold()
			return false
		},
			status: 504, reason: "upstream_timeout", detail: "in time"},
		"drips": {play: func(c *played, _ *http.Request) bool {
			for _, b := range []byte("HTTP/1.1 200 OK\r\nX-A: " + strings.Repeat("b", 1000)) {
				if _, err := c.Conn.Write([]byte{b}); err != nil {
					break
				}
				time.Sleep(5 * time.Millisecond) // slower than the deadline, never silent
			}
			return false
		}, status: 504, reason: "upstream_timeout", detail: "in time"},
		"sends an endless field":           {play: endless(okHead+"X-A: ", "b"), status: 502, reason: "upstream_unavailable", detail: "head beyond"},
		"sends endless fields":             {play: endless(okHead, "X-A: b\r\n"), status: 502, reason: "upstream_unavailable", detail: "head beyond"},
		"sends endless hints":              {play: endless("", "HTTP/1.1 103 Early Hints\r\n\r\n"), status: 502, reason: "upstream_unavailable", detail: "interim"},
		"sends endless nothing":            {play: endless("", "x"), status: 502, reason: "upstream_unavailable", detail: "invalid answer"},
		"answers 413 before the body ends": {request: large, play: early(reply("413 Content Too Large", "too much")), status: 413, body: "too much"},
		"answers 200 before the body ends": {request: large, play: early(reply("200 OK", "enough")), status: 200, body: "enough"},
		"answers and closes before the body ends": {request: large, play: func(c *played, _ *http.Request) bool {
			c.say(reply("401 Unauthorized", "who?", "Connection: close", "WWW-Authenticate: Basic"))
			_ = c.Conn.(*net.TCPConn).CloseWrite()
			c.hold()
			return false
		}, status: 401, body: "who?"},
		"resets before the body ends": {request: large, play: func(c *played, _ *http.Request) bool {
			_, _ = io.CopyN(io.Discard, c.Reader, 1<<20)
			c.reset()
			return false
		}, status: 502, reason: "upstream_unavailable"},
		"never reads the body": {request: large, play: func(c *played, _ *http.Request) bool {
			<-c.script.released
			return false
		}, status: 504, reason: "upstream_timeout", detail: "in time"},
	}
}

// endless says start, and then more for as long as anybody listens.
func endless(start, more string) func(*played, *http.Request) bool {
	return func(c *played, _ *http.Request) bool {
		c.say(start)
		piece := bytes.Repeat([]byte(more), 64<<10/len(more))
		for {
			if _, err := c.Conn.Write(piece); err != nil {
				return false
			}
		}
	}
}

// Whatever an upstream does before its answer has begun, the client is told in one
// whole answer, the record says what it was, and the next request is served.
func TestUpstreamFaults(t *testing.T) {
	h := start(t, cluster.Config{})
	good := func(c *played, _ *http.Request) bool { c.say(reply("200 OK", "good")); return true }
	up := newScript(t, good)
	// What hangs is waited for as long as the route says.
	h.apply(strings.Replace(publicTo("fault", up.URL), "public: true", "public: true\n  timeouts: {request: 300ms}", 1) + publicTo("refusing", "http://"+freePort(t)))
	works := func(t *testing.T, c *client) {
		t.Helper()
		up.becomes(good)
		for _, one := range []*client{c, h.dial(t, 0)} {
			if one == nil {
				continue
			}
			if a := one.get(t, "/fault/next"); a.Status != 200 || a.Body != "good" {
				t.Errorf("the next request: %+v", a)
			}
		}
	}
	for name, f := range upstreamFaults() {
		t.Run(name, func(t *testing.T) {
			up.becomes(f.play)
			c := h.dial(t, 0)
			sent := make(chan struct{})
			go func(to io.Writer) {
				defer close(sent)
				if f.request == "" {
					_, _ = io.WriteString(to, head("GET", "/fault"))
					return
				}
				_, _ = io.WriteString(to, f.request)
				_, _ = to.Write(make([]byte, 4_000_000))
			}(c.Conn)
			a, err := c.receive("GET")
			if err != nil {
				t.Fatal(err)
			}
			f.check(t, h, a)
			if f.request != "" {
				_ = c.Close() // its body is not all sent
				c = nil
			}
			<-sent
			works(t, c)
		})
	}
	t.Run("refuses", func(t *testing.T) {
		c := h.dial(t, 0)
		fault{status: 502, reason: "upstream_unavailable", detail: "cannot connect"}.check(t, h, c.get(t, "/refusing"))
		works(t, c)
	})
	t.Run("resets at each byte", func(t *testing.T) { resetAtEachByte(t, h, up, works) })
}

func (f fault) check(t *testing.T, h *harness, a answer) {
	t.Helper()
	if f.reason == "" {
		if a.Status != f.status || a.Body != f.body {
			t.Errorf("%d %q, want %d %q", a.Status, a.Body, f.status, f.body)
		}
	} else {
		refused(t, "the answer", a, f.status, f.reason)
	}
	if r := h.record(t, a.RequestID); r.Reason != f.reason || int(r.Status) != f.status || !strings.Contains(r.Detail, f.detail) || r.Upstream == "" {
		t.Errorf("the record says %v", r)
	}
}

// resetAtEachByte cuts an answer off at each of its bytes. It is refused as long as
// nothing of it has been sent to the client, as a small one of known length is at
// once; then it is cut, and never taken for a shorter one.
func resetAtEachByte(t *testing.T, h *harness, up *script, works func(*testing.T, *client)) {
	for _, text := range []string{reply("200 OK", "0123456789", "X-A: b"), chunked + "5\r\n01234\r\n5\r\n56789\r\n0\r\nX-Sum: 1\r\n\r\n"} {
		whole := strings.Index(text, "\r\n\r\n") + 4
		for _, abrupt := range []bool{true, false} {
			for n := range len(text) {
				up.becomes(func(c *played, _ *http.Request) bool {
					if c.say(text[:n]); abrupt {
						c.reset()
					}
					return false
				})
				c := h.dial(t, 0)
				a, err := c.ask(t, "GET", "/fault")
				what := fmt.Sprintf("%d bytes of %q, abrupt %t", n, text, abrupt)
				if err == nil {
					// A reset may overtake what was sent before it.
					refused(t, what, a, 502, "upstream_unavailable")
					if n >= whole && !abrupt && strings.HasPrefix(text, chunked) {
						t.Errorf("%s: refused behind a whole head", what)
					}
					continue
				}
				if n < whole {
					t.Errorf("%s: %v, want a refusal", what, err)
				}
				if a.Status != 0 && a.Status != 200 || !strings.HasPrefix("0123456789", a.Body) {
					t.Errorf("%s: %d %q", what, a.Status, a.Body)
				}
				if err := c.ended(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				if a.RequestID != "" {
					if r := h.record(t, a.RequestID); r.Status != 200 || r.Detail == "" {
						t.Errorf("%s: the record does not say that the answer broke: %v", what, r)
					}
				}
			}
		}
	}
	works(t, nil)
}

// An upstream that closes each connection right behind an answer that promised to
// keep it: no request that may be sent twice fails.
func TestConnectionsClosedAtTheWorstMoment(t *testing.T) {
	h := start(t, cluster.Config{})
	var late atomic.Int64
	up := newScript(t, func(c *played, _ *http.Request) bool {
		c.say(reply("200 OK", "good"))
		// Some at once, some when the next request is on its way already.
		if c.number%3 > 0 {
			if _, err := c.Peek(1); err == nil {
				late.Add(1)
			}
		}
		if c.number%3 > 1 {
			c.reset()
		}
		return false
	})
	h.apply(publicTo("brief", up.URL))
	const clients, each = 5, 1000
	failed := make(chan string, clients)
	for range clients {
		c := h.dial(t, 0)
		go func() {
			_ = c.SetDeadline(time.Now().Add(3 * patience))
			for i := range each {
				a, err := c.ask(t, []string{"GET", "PUT", "DELETE"}[i%3], "/brief", "Content-Length: 0")
				if err != nil || a.Status != 200 || a.Body != "good" {
					failed <- fmt.Sprintf("request %d: %+v %v", i, a, err)
					return
				}
			}
			failed <- ""
		}()
	}
	for range clients {
		if fault := <-failed; fault != "" {
			t.Error(fault)
		}
	}
	t.Logf("%d requests on %d connections to the upstream, %d of them sent twice", clients*each, up.accepted, late.Load())
	if late.Load() == 0 {
		t.Error("no request was on its way to a connection that closed")
	}
}
