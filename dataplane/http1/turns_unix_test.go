//go:build unix

package http1

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// What one step of the poller may not do, because it holds the reading side of the
// socket, is done between two steps.
func TestTurnsGiveWayToBodies(t *testing.T) {
	t.Parallel()
	f := start(t, Config{})
	c := f.dial()
	for range 3 {
		c.send(lines("GET /a HTTP/1.1", "Host: a"))
		if _, body := c.receive("GET"); !strings.HasPrefix(body, "GET /a?") {
			t.Fatal(body)
		}
		c.send(lines("POST /b HTTP/1.1", "Host: a", "Content-Length: 4"))
		c.send("body" + lines("GET /c HTTP/1.1", "Host: a") + "GET /d HTTP/1.1\r\nHo")
		if _, body := c.receive("POST"); !strings.HasSuffix(body, "body=body") {
			t.Fatal(body)
		}
		if _, body := c.receive("GET"); !strings.HasPrefix(body, "GET /c?") {
			t.Fatal(body)
		}
		c.send("st: a\r\n\r\n")
		if _, body := c.receive("GET"); !strings.HasPrefix(body, "GET /d?") {
			t.Fatal(body)
		}
	}
}

// The end of a client's stream that comes together with its request is no event of
// its own: the connection is closed all the same, and not only when it has idled.
func TestTheEndThatComesWithARequestIsSeen(t *testing.T) {
	t.Parallel()
	f := start(t, Config{IdleTimeout: 10 * patience})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	there, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	here, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	// All is there before the server looks.
	io.WriteString(there, lines("GET / HTTP/1.1", "Host: a"))
	there.(*net.TCPConn).CloseWrite()
	served := make(chan struct{})
	go func() {
		defer close(served)
		f.server.Serve(here, connOf(here), nil)
	}()
	there.SetDeadline(time.Now().Add(patience))
	if answer, err := io.ReadAll(there); err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 ") {
		t.Errorf("%q, %v", answer, err)
	}
	<-served
}

// Whoever cuts the connections does not wait for a handler that does not end.
func TestCutDoesNotWaitForATurn(t *testing.T) {
	t.Parallel()
	handling, release := make(chan struct{}), make(chan struct{})
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		close(handling)
		<-release
		return plain(200, "late")
	}})
	c := f.dial()
	c.send(lines("GET / HTTP/1.1", "Host: a"))
	<-handling
	f.server.Cut()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d, %v: the connection is not cut", n, err)
	}
	close(release)
}
