package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	configv1 "portcullis.dev/portcullis/proto/config/v1"

	"google.golang.org/protobuf/types/known/durationpb"
)

// whole sends an exchange, reads its answer to the end and ends it.
func whole(b *Backend, e *exchange.Exchange) (status int, body string, err error) {
	defer e.End()
	resp, err := b.Do(e, e.Context, soon())
	if err != nil {
		return 0, "", err
	}
	var text []byte
	if resp.Body.Reader != nil {
		text, err = io.ReadAll(resp.Body.Reader)
		resp.Body.Reader.Close()
	}
	return resp.Status, string(text), err
}

func post(body string) *exchange.Exchange {
	e := get("/")
	e.Request.Method = "POST"
	e.Request.Body = exchange.Body{Reader: there1{strings.NewReader(body)}, Length: int64(len(body))}
	return e
}

// there1 is a body that the front end has read already.
type there1 struct{ *strings.Reader }

func (b there1) Buffered() int { return b.Len() }
func (b there1) Close() error  { return nil }

// scripted serves connections with the function, which gets each connection's
// number.
func scripted(t *testing.T, serve func(n int, c net.Conn, r *bufio.Reader)) (url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				serve(n, c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() { ln.Close(); running.Wait() })
	return "http://" + ln.Addr().String()
}

const okay = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// A server ends an idle connection when it likes: no request may fail for it that
// may be sent again.
func TestConnectionsThatTheUpstreamEndedUnannounced(t *testing.T) {
	b := acquire(t, scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
		if _, err := http.ReadRequest(r); err == nil {
			io.WriteString(c, okay)
		}
	}))
	for range 200 {
		if status, body, err := whole(b, get("/")); status != 200 || body != "ok" || err != nil {
			t.Fatal(status, body, err)
		}
	}
	trip := b.upstream.endpoints[0].protocol.(*http1Trip)
	for range 5 {
		for len(trip.idle) > 0 && trip.idle[0].Alive() {
			time.Sleep(time.Millisecond) // until the kernel has delivered the end
		}
		if status, _, err := whole(b, post("body")); status != 200 || err != nil {
			t.Fatal("a request that may not be repeated went to a connection known to be closed:", err)
		}
	}
}

// What the upstream may have begun to process is not sent again unless that is
// harmless.
func TestOnlyHarmlessRequestsAreRepeated(t *testing.T) {
	for method, repeated := range map[string]bool{"GET": true, "HEAD": true, "PUT": true, "DELETE": true, "OPTIONS": true, "POST": false, "PATCH": false} {
		var seen atomic.Int32
		b := acquire(t, scripted(t, func(n int, c net.Conn, r *bufio.Reader) {
			for i := 0; ; i++ {
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				io.Copy(io.Discard, req.Body)
				if req.Method == method && req.URL.Path == "/x" {
					seen.Add(1)
				}
				if n == 0 && i == 1 {
					return // the second on this connection: read, and no answer
				}
				if req.Method == "HEAD" {
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
				} else {
					io.WriteString(c, okay)
				}
			}
		}))
		if _, _, err := whole(b, get("/")); err != nil {
			t.Fatal(err)
		}
		e := get("/x")
		e.Request.Method = method
		status, _, err := whole(b, e)
		switch {
		case repeated && (status != 200 || err != nil || seen.Load() != 2):
			t.Errorf("%s: %d %v, seen %d times", method, status, err, seen.Load())
		case !repeated && (!errors.Is(err, ErrUnavailable) || seen.Load() != 1):
			t.Errorf("%s: %d %v, seen %d times", method, status, err, seen.Load())
		}
	}
}

// A fresh connection that ends without an answer is a failure, not a reason to
// try for ever.
func TestAFreshConnectionWithoutAnAnswerIsAFailure(t *testing.T) {
	var conns atomic.Int32
	b := acquire(t, scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
		conns.Add(1)
		http.ReadRequest(r)
	}))
	if _, _, err := whole(b, get("/")); !errors.Is(err, ErrUnavailable) || conns.Load() != 1 {
		t.Errorf("%v after %d connections", err, conns.Load())
	}
}

func TestMalformedAnswersAreTheUpstreamsFault(t *testing.T) {
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
		"HTTP/1.1 2oo OK\r\n\r\n", "HTTP/3.0 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 300) + "\r\n",
	} {
		b := acquire(t, scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
			http.ReadRequest(r)
			io.WriteString(c, text)
			io.Copy(io.Discard, r)
		}))
		_, _, err := whole(b, get("/"))
		if !errors.Is(err, ErrUnavailable) || errors.Is(err, exchange.ErrMalformed) || errors.Is(err, exchange.ErrTooLarge) {
			t.Errorf("%.60q: %v", text, err)
		}
	}
}

func TestManyRequestsAtOnceShareConnections(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %d", r.URL.Path, n)
	}))
	defer srv.Close()
	b := acquire(t, srv.URL)
	var all sync.WaitGroup
	for g := range 16 {
		all.Go(func() {
			for i := range 50 {
				e, want := get(fmt.Sprintf("/%d/%d", g, i)), 0
				if i%2 == 1 {
					want = i * 700
					e.Request.Method, e.Request.Body = "PUT", post(strings.Repeat("x", want)).Request.Body
				}
				if status, body, err := whole(b, e); status != 200 || err != nil || body != fmt.Sprintf("/%d/%d %d", g, i, want) {
					t.Error(status, body, err)
					return
				}
			}
		})
	}
	all.Wait()
	ep := b.upstream.endpoints[0]
	if trip := ep.protocol.(*http1Trip); len(trip.live) > 16 || len(trip.idle) != len(trip.live) || ep.state.InFlight() != 0 {
		t.Errorf("%d connections, %d idle, %d requests in flight", len(trip.live), len(trip.idle), ep.state.InFlight())
	}
	b.upstream.pool.Close()
}

// inMemory dials connections that answer in memory, and counts those open.
func inMemory(open *atomic.Int32) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		open.Add(1)
		go func() {
			defer open.Add(-1)
			defer far.Close()
			r := bufio.NewReader(far)
			for {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				io.WriteString(far, okay)
			}
		}()
		return near, nil
	}
}

func TestIdleConnectionsAreSwept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var open atomic.Int32
		p := NewPool(Config{Dial: inMemory(&open)})
		u, err := p.Acquire(key, &configv1.Upstream{
			Endpoints: []*configv1.Endpoint{{Url: "http://a"}}, Timeouts: &configv1.UpstreamTimeouts{Idle: durationpb.New(10 * time.Second)},
		})
		if err != nil {
			t.Fatal(err)
		}
		b := backendOf(u)
		first, second := get("/1"), get("/2")
		for _, e := range []*exchange.Exchange{first, second} {
			if _, err := b.Do(e, e.Context, time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		for _, e := range []*exchange.Exchange{first, second} {
			e.Done = append(e.Done, func(*exchange.Exchange) {})
		}
		read := func(e *exchange.Exchange) { // an answer read to its end leaves the connection
			e.End()
		}
		read(first)
		time.Sleep(time.Second)
		read(second)
		synctest.Wait()
		if open.Load() != 0 {
			t.Errorf("%d connections whose answers nobody read are open", open.Load())
		}
		for range 3 {
			if _, _, err := whole(b, get("/")); err != nil {
				t.Fatal(err)
			}
			time.Sleep(9 * time.Second)
		}
		if open.Load() != 1 {
			t.Errorf("%d connections are open, want the one in use", open.Load())
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if open.Load() != 0 {
			t.Errorf("%d connections outlived their idle time", open.Load())
		}
		if _, _, err := whole(b, get("/")); err != nil {
			t.Fatal(err)
		}
		u.Release()
		synctest.Wait()
		if open.Load() != 0 {
			t.Errorf("%d connections outlived their upstream", open.Load())
		}
	})
}

func TestCutEndsWhatIsInFlight(t *testing.T) {
	asked := make(chan struct{})
	b := acquire(t, scripted(t, func(_ int, c net.Conn, r *bufio.Reader) {
		http.ReadRequest(r)
		close(asked)
		io.Copy(io.Discard, r)
	}))
	go func() {
		<-asked
		b.upstream.pool.Cut()
	}()
	if _, _, err := whole(b, get("/")); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}
