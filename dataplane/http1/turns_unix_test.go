//go:build unix

package http1

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

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

// However requests are cut on their way, each is answered, in order.
func TestTurnsAnswerAllHoweverTheyArrive(t *testing.T) {
	t.Parallel()
	f := start(t, Config{})
	rapid.Check(t, func(rt *rapid.T) {
		var all strings.Builder
		var want []string
		for i := range rapid.IntRange(1, 6).Draw(rt, "requests") {
			method, body := "GET", ""
			if rapid.Bool().Draw(rt, "body") {
				method, body = "POST", "hello"
			}
			padding := strings.Repeat("p", rapid.IntRange(0, readBuffer+1).Draw(rt, "padding"))
			fmt.Fprintf(&all, "%s /%d HTTP/1.1\r\nHost: a\r\nX-Padding: %s\r\nContent-Length: %d\r\n\r\n%s", method, i, padding, len(body), body)
			want = append(want, fmt.Sprintf("%s /%d?", method, i))
		}
		c := f.dial()
		defer c.Close()
		rest := all.String()
		cuts := rapid.SliceOfN(rapid.IntRange(1, len(rest)), 0, 8).Draw(rt, "cuts")
		sent := make(chan error, 1)
		go func() {
			for _, n := range cuts {
				n = min(n, len(rest))
				if _, err := io.WriteString(c, rest[:n]); err != nil {
					sent <- err
					return
				}
				rest = rest[n:]
			}
			_, err := io.WriteString(c, rest)
			sent <- err
		}()
		for _, one := range want {
			if _, body := c.receive(strings.Fields(one)[0]); !strings.HasPrefix(body, one) {
				rt.Fatalf("%.20q, want %q", body, one)
			}
		}
		if err := <-sent; err != nil {
			rt.Fatal(err)
		}
	})
}

// bang is a body that panics.
type bang struct{}

func (bang) Read([]byte) (int, error) { panic("bang") }

func (bang) Close() error { return nil }

// What panics within a turn ends the connection; it neither stays nor is waited for.
func TestAPanicWithinATurnEndsTheConnection(t *testing.T) {
	t.Parallel()
	f := start(t, Config{Log: slog.New(slog.DiscardHandler), Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/body" {
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: bang{}, Length: 10}}
		}
		e.Done = append(e.Done, func(*exchange.Exchange) { panic("bang") })
		return plain(200, "whole")
	}})
	for path, want := range map[string]string{"/body": "", "/done": "whole"} {
		c := f.dial()
		c.send(lines("GET "+path+" HTTP/1.1", "Host: a") + lines("GET / HTTP/1.1", "Host: a"))
		if said, _ := io.ReadAll(c.r); !strings.HasSuffix(string(said), want) || want == "" && len(said) > 0 {
			t.Errorf("%s: %q", path, said)
		}
	}
	f.empty()
}
