package http1

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// unread answers without a look at the body.
func unread(e *exchange.Exchange) *exchange.Response { return plain(200, e.Request.Path) }

func TestContinueIsSentWhenTheBodyIsRead(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/unread" {
			return unread(e)
		}
		return echo(e)
	}})
	for _, framing := range []string{"Content-Length: 5", "Transfer-Encoding: chunked"} {
		body := "hello"
		if strings.HasPrefix(framing, "T") {
			body = "5\r\nhello\r\n0\r\n\r\n"
		}
		c := f.dial()
		c.send(lines("POST /read HTTP/1.1", "Host: a", framing, "Expect: 100-Continue"))
		c.expect("HTTP/1.1 100 Continue\r\n\r\n")
		c.send(body)
		if resp, got := c.receive("POST"); resp.StatusCode != 200 || resp.Close || !strings.HasSuffix(got, "body=hello") {
			t.Errorf("%s: %d %q", framing, resp.StatusCode, got)
		}
		// Who does not wait is not asked.
		c.send(lines("POST /read HTTP/1.1", "Host: a", framing, "Expect: 100-continue") + body)
		if resp, got := c.receive("POST"); resp.StatusCode != 200 || !strings.HasSuffix(got, "body=hello") {
			t.Errorf("%s: %d %q", framing, resp.StatusCode, got)
		}
		// Whether a body comes that was not asked for is unknown: the connection ends.
		c.send(lines("POST /unread HTTP/1.1", "Host: a", framing, "Expect: 100-continue"))
		if resp, got := c.receive("POST"); resp.StatusCode != 200 || got != "/unread" || !resp.Close {
			t.Errorf("%s: %d %q close=%t", framing, resp.StatusCode, got, resp.Close)
		}
		c.closed()
	}
}

// A body that nobody wanted is dropped when it is small; else the connection ends,
// but not under the client that still sends.
func TestUnreadBodies(t *testing.T) {
	t.Parallel()
	f := start(t, Config{Handle: unread})
	chunked := func(n int) string {
		return "1" + strings.Repeat("0", n) + "\r\n" + strings.Repeat("x", 1<<(4*n)) + "\r\n0\r\n\r\n"
	}
	for name, one := range map[string]struct {
		request string
		kept    bool
	}{
		"nothing sent":  {lines("POST /a HTTP/1.1", "Host: a", "Content-Length: 5"), false},
		"small":         {lines("POST /a HTTP/1.1", "Host: a", "Content-Length: 100000") + strings.Repeat("x", 100_000), true},
		"small chunks":  {lines("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + chunked(4), true},
		"large":         {lines("POST /a HTTP/1.1", "Host: a", "Content-Length: 1000000") + strings.Repeat("x", 1_000_000), false},
		"large chunks":  {lines("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + chunked(5), false},
		"broken chunks": {lines("POST /a HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + "x\r\n", false},
	} {
		c := f.dial()
		sent := make(chan error, 1)
		go func() {
			_, err := io.WriteString(c, one.request)
			sent <- err
		}()
		if resp, body := c.receive("POST"); resp.StatusCode != 200 || body != "/a" {
			t.Errorf("%s: %d %q", name, resp.StatusCode, body)
		}
		<-sent
		if !one.kept {
			if name == "nothing sent" {
				c.Close()
			} else if b, _ := io.ReadAll(c.r); len(b) > 0 {
				t.Errorf("%s: then %q", name, b)
			}
			continue
		}
		c.send(lines("GET /next HTTP/1.1", "Host: a"))
		if resp, body := c.receive("GET"); resp.StatusCode != 200 || body != "/next" {
			t.Errorf("%s: then %d %q", name, resp.StatusCode, body)
		}
	}
}

// Whoever trickles a body keeps to every single time limit, and yet not to the
// minimum rate.
func TestABodyThatTricklesIsCutOff(t *testing.T) {
	t.Parallel()
	f := start(t, Config{BodyTimeout: 200 * time.Millisecond})
	c := f.dial()
	c.send(lines("POST / HTTP/1.1", "Host: a", "Content-Length: 100000"))
	go func() {
		for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
			if _, err := io.WriteString(c, "x"); err != nil {
				tick.Stop()
				return
			}
		}
	}()
	if resp, body := c.receive("POST"); resp.StatusCode != 400 || !strings.Contains(body, "timeout") || !resp.Close {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	c.Close()
}

// Once the answer has begun, what is behind it decides how long both may be silent.
func TestABodyMayBeQuietBehindItsAnswer(t *testing.T) {
	t.Parallel()
	const limit = 50 * time.Millisecond
	f := start(t, Config{BodyTimeout: limit, Handle: func(e *exchange.Exchange) *exchange.Response {
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: e.Request.Body.Reader, Length: -1}}
	}})
	c := f.dial()
	c.send(lines("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + "3\r\none\r\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * limit) // the silence that is not to be cut
	c.send("3\r\ntwo\r\n0\r\n\r\n")
	if b, err := io.ReadAll(resp.Body); string(b) != "onetwo" || err != nil {
		t.Errorf("%q %v", b, err)
	}
}

func TestClosingABodyWakesItsReader(t *testing.T) {
	read := make(chan error, 1)
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		body := e.Request.Body.Reader
		if body == nil {
			return unread(e)
		}
		go func() {
			_, err := io.ReadAll(body)
			read <- err
		}()
		body.Close()
		if err := <-read; !errors.Is(err, errEnded) {
			t.Error(err)
		}
		return unread(e)
	}})
	c := f.dial()
	c.send(lines("POST /a HTTP/1.1", "Host: a", "Content-Length: 5"))
	if resp, body := c.receive("POST"); resp.StatusCode != 200 || body != "/a" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	// What comes of it after all is dropped, and the next one read.
	c.send("hello" + lines("POST /b HTTP/1.1", "Host: a", "Content-Length: 0"))
	if resp, body := c.receive("POST"); resp.StatusCode != 200 || body != "/b" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("a body's code") }
func (panicking) Close() error             { return nil }

func TestAPanicInABodyEndsItsConnectionOnly(t *testing.T) {
	ended := make(chan struct{})
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path != "/panic" {
			return echo(e)
		}
		e.Done = append(e.Done, func(*exchange.Exchange) { close(ended) })
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: panicking{}, Length: -1}}
	}})
	other, c := f.dial(), f.dial()
	c.send(lines("GET /panic HTTP/1.1", "Host: a"))
	c.closed()
	<-ended
	other.send(lines("GET / HTTP/1.1", "Host: a"))
	if resp, _ := other.receive("GET"); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

// A body of unknown length that has nothing to say yet does not hold its head
// back: an EventSource waits for that.
func TestAHeadDoesNotWaitForItsBody(t *testing.T) {
	events, source := io.Pipe()
	f := start(t, Config{Handle: func(*exchange.Exchange) *exchange.Response {
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: silent{events}, Length: -1}}
	}})
	c := f.dial()
	c.send(lines("GET / HTTP/1.1", "Host: a"))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	source.Close()
	if b, err := io.ReadAll(resp.Body); len(b) > 0 || err != nil {
		t.Errorf("%q %v", b, err)
	}
}

type silent struct{ *io.PipeReader }

func (silent) Buffered() int { return 0 }
