package http1

import (
	"io"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// Time in which an answer is written, or a body read, is no time in which the
// connection idled.
func TestALongExchangeIsNoIdleTime(t *testing.T) {
	t.Parallel()
	const idle = 400 * time.Millisecond
	f := start(t, Config{IdleTimeout: idle, Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path != "/long" {
			return plain(200, "short")
		}
		r, w := io.Pipe()
		go func() {
			io.WriteString(w, "begun, ")
			time.Sleep(2 * idle)
			io.WriteString(w, "ended")
			w.Close()
		}()
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: r, Length: -1}}
	}})
	c := f.dial()
	for range 2 {
		c.send(lines("GET /long HTTP/1.1", "Host: a"))
		if _, body := c.receive("GET"); body != "begun, ended" {
			t.Fatal(body)
		}
		c.send(lines("GET /short HTTP/1.1", "Host: a"))
		if _, body := c.receive("GET"); body != "short" {
			t.Fatal(body)
		}
	}
}
