package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

func TestLimitsComeFromTheLiveSettings(t *testing.T) {
	var settings atomic.Pointer[admission.Settings]
	settings.Store(&admission.Settings{})
	f := start(t, Config{Settings: settings.Load})
	big := lines("GET / HTTP/1.1", "Host: a", "X-A: "+strings.Repeat("a", 2000))
	declared := lines("POST / HTTP/1.1", "Host: a", "Content-Length: 11") + "01234567890"
	chunked := lines("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + "b\r\n01234567890\r\n0\r\n\r\n"
	for _, request := range []string{big, declared, chunked} {
		if resp, body := f.once(request); resp.StatusCode != 200 {
			t.Errorf("%.30q: %d %s", request, resp.StatusCode, body)
		}
	}
	f.reached()
	idle := f.dial()
	idle.send(lines("GET / HTTP/1.1", "Host: a"))
	idle.receive("GET")
	f.reached()
	settings.Store(&admission.Settings{MaxHeaderBytes: 1000, MaxBodyBytes: 10})
	idle.send(declared)
	if resp, body := idle.receive("POST"); resp.StatusCode != 413 {
		t.Errorf("on a connection that was idle: %d %s", resp.StatusCode, body)
	}
	if resp, body := f.once(big); resp.StatusCode != 431 || !strings.HasPrefix(body, "request_too_large") {
		t.Errorf("large head: %d %s", resp.StatusCode, body)
	}
	if resp, body := f.once(declared); resp.StatusCode != 413 || !strings.HasPrefix(body, "request_too_large") || !resp.Close {
		t.Errorf("large body: %d %s", resp.StatusCode, body)
	}
	if seen := f.reached(); len(seen) != 0 {
		t.Errorf("the handler saw %q", seen)
	}
	if resp, body := f.once(chunked); resp.StatusCode != 400 || !strings.HasPrefix(body, exchange.ErrTooLarge.Error()) {
		t.Errorf("large chunked body: %d %s", resp.StatusCode, body)
	}
}

func TestAnswersAreWrittenAsTheyAre(t *testing.T) {
	closed := 0
	var result []exchange.Result
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		e.Done = append(e.Done, func(e *exchange.Exchange) { result = append(result, e.Result) })
		switch e.Request.Path {
		case "/head":
			return &exchange.Response{Status: 200, Body: exchange.Body{Length: 1234}}
		case "/204":
			return &exchange.Response{Status: 204}
		case "/304":
			return &exchange.Response{Status: 304, Header: exchange.HeaderOf(exchange.Field{Name: "ETag", Value: `"x"`})}
		case "/empty":
			return &exchange.Response{Status: 200}
		case "/odd":
			return &exchange.Response{Status: 150}
		case "/panic":
			panic("a route's code")
		case "/trailer":
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: closer{strings.NewReader("<html>"), &closed}, Length: -1, Trailer: func() exchange.Header {
				return exchange.HeaderOf(exchange.Field{Name: "X-Sum", Value: "7"}, exchange.Field{Name: "Content-Length", Value: "7"})
			}}}
		case "/hop":
			r := plain(200, "x")
			for _, name := range []string{"Connection", "Keep-Alive", "Transfer-Encoding", "Content-Length", "X-Request-Id"} {
				r.Header.Add(name, "99")
			}
			r.Header.Add("Set-Cookie", "a")
			r.Header.Add("Set-Cookie", "b\r\nX-Injected: 1")
			return r
		}
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: closer{strings.NewReader(strings.Repeat("x", 10_000)), &closed}, Length: 20_000}}
	}})
	c := f.dial()
	ask := func(method, path string) (*http.Response, string) {
		c.send(lines(method+" "+path+" HTTP/1.1", "Host: a"))
		return c.receive(method)
	}
	if resp, _ := ask("HEAD", "/head"); resp.ContentLength != 1234 {
		t.Error("HEAD:", resp.Header)
	}
	if resp, _ := ask("GET", "/204"); resp.StatusCode != 204 || resp.Header.Get("Content-Length") != "" {
		t.Error("204:", resp.Header)
	}
	if resp, _ := ask("GET", "/304"); resp.StatusCode != 304 || resp.Header.Get("ETag") != `"x"` || resp.Header.Get("Content-Length") != "" {
		t.Error("304:", resp.Header)
	}
	if resp, _ := ask("GET", "/empty"); resp.ContentLength != 0 {
		t.Error("empty:", resp.Header)
	}
	if resp, body := ask("GET", "/odd"); resp.StatusCode != 500 || !strings.HasPrefix(body, "internal_error") {
		t.Error("odd:", resp.StatusCode, body)
	}
	if resp, body := ask("GET", "/panic"); resp.StatusCode != 500 || !strings.HasPrefix(body, "internal_error") {
		t.Error("panic:", resp.StatusCode, body)
	}
	if resp, body := ask("GET", "/trailer"); body != "<html>" || resp.Trailer.Get("X-Sum") != "7" || len(resp.Trailer) != 1 || resp.Header.Get("Content-Type") != "" {
		t.Error("trailer:", resp.Header, resp.Trailer)
	}
	if resp, body := ask("GET", "/hop"); body != "x" || resp.Close || resp.Header.Get("Keep-Alive") != "" || resp.Header.Get("X-Injected") != "" ||
		len(resp.Header["Set-Cookie"]) != 2 || resp.Header.Get("X-Request-Id") == "99" {
		t.Error("hop:", resp.Header)
	}
	c.send(lines("GET /short HTTP/1.1", "Host: a"))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short body was passed off as whole: %d bytes, %v", len(b), err)
	}
	f.stop()
	if closed != 2 || len(result) != 9 || result[6] != (exchange.Result{Status: 200, Bytes: 6, Ended: result[6].Ended}) || result[6].Ended.IsZero() || result[8].Err == nil {
		t.Error(closed, result)
	}
}

type closer struct {
	io.Reader
	closed *int
}

func (c closer) Close() error { *c.closed++; return nil }

func TestWhatHasNoLengthIsFlushedAsItComes(t *testing.T) {
	events, source := io.Pipe()
	f := start(t, Config{Handle: func(*exchange.Exchange) *exchange.Response {
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: events, Length: -1}}
	}})
	c := f.dial()
	c.send(lines("GET / HTTP/1.1", "Host: a"))
	go io.WriteString(source, "data: 1\n\n")
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 9)
	if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != "data: 1\n\n" {
		t.Errorf("%q %v", got, err)
	}
	source.Close()
}

func TestAClientThatResetsInterruptsItsRequest(t *testing.T) {
	t.Parallel()
	begun, causes := make(chan struct{}), make(chan error, 2)
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/stream" {
			events, source := io.Pipe()
			close(begun)
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: events, Length: -1}, Interrupt: func(cause error) {
				causes <- cause
				source.CloseWithError(cause)
			}}
		}
		close(begun)
		<-e.Context.Done()
		causes <- context.Cause(e.Context)
		return plain(200, "")
	}})
	// The last one only closes its socket, which may mean that it still listens: for
	// a while.
	for i, path := range []string{"/wait", "/stream", "/stream"} {
		c := f.dial()
		c.send(lines("GET "+path+" HTTP/1.1", "Host: a"))
		<-begun
		if i < 2 {
			c.Conn.(*net.TCPConn).SetLinger(0)
		}
		c.Close()
		if cause := <-causes; !errors.Is(cause, context.Canceled) {
			t.Errorf("%s: %v", path, cause)
		}
		begun = make(chan struct{})
	}
}

// A client that has said all that it wants to say may shut down its side.
func TestAHalfClosedClientGetsItsAnswer(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		<-release
		return echo(e)
	}})
	c := f.dial()
	c.send(lines("POST / HTTP/1.1", "Host: a", "Content-Length: 2") + "ok" + lines("GET /next HTTP/1.1", "Host: a"))
	c.Conn.(*net.TCPConn).CloseWrite()
	time.AfterFunc(3*watchEvery/2, func() { close(release) })
	for _, want := range []string{"POST /?", "GET /next?"} {
		if resp, body := c.receive("GET"); resp.StatusCode != 200 || !strings.HasPrefix(body, want) {
			t.Errorf("%d %q", resp.StatusCode, body)
		}
	}
	c.closed()
}

func TestSlowClientsAreCutOff(t *testing.T) {
	t.Parallel()
	f := start(t, Config{HeaderTimeout: 200 * time.Millisecond, BodyTimeout: 200 * time.Millisecond, IdleTimeout: patience})
	ordinary := lines("GET / HTTP/1.1", "Host: a")
	for name, request := range map[string]string{
		"nothing":     "",
		"head":        "GET / HTTP/1.1\r\nHos",
		"second head": ordinary + "GET / HTTP/1.1\r\nHos",
	} {
		c := f.dial()
		c.send(request)
		if strings.HasPrefix(request, ordinary) {
			c.receive("GET")
		}
		if b, err := io.ReadAll(c.r); len(b) > 0 || err != nil {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	for _, framing := range []string{"Content-Length: 10", "Transfer-Encoding: chunked"} {
		c := f.dial()
		c.send(lines("POST / HTTP/1.1", "Host: a", framing) + "5\r\n")
		if resp, body := c.receive("POST"); resp.StatusCode != 400 || !strings.Contains(body, "timeout") || !resp.Close {
			t.Errorf("slow body: %d %q", resp.StatusCode, body)
		}
	}
}

func TestASlowHandlerIsNotBoundByTheBodysTimeout(t *testing.T) {
	t.Parallel()
	f := start(t, Config{BodyTimeout: 100 * time.Millisecond, Handle: func(e *exchange.Exchange) *exchange.Response {
		io.ReadAll(e.Request.Body.Reader)
		select {
		case <-e.Context.Done():
			return plain(500, "cancelled")
		case <-time.After(300 * time.Millisecond):
			return plain(200, "")
		}
	}})
	for _, request := range []string{
		lines("POST / HTTP/1.1", "Host: a", "Content-Length: 2") + "ok",
		lines("POST / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + "2\r\nok\r\n0\r\n\r\n",
	} {
		c := f.dial()
		c.send(request[:len(request)-1])
		c.send(request[len(request)-1:])
		if resp, body := c.receive("POST"); resp.StatusCode != 200 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
}

func TestASlowReaderIsCutOff(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	f := start(t, Config{WriteTimeout: 50 * time.Millisecond, Handle: func(e *exchange.Exchange) *exchange.Response {
		e.Done = append(e.Done, func(e *exchange.Exchange) { ended <- e.Result.Err })
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: io.NopCloser(endless{}), Length: -1}}
	}})
	c := f.dial()
	c.send(lines("GET / HTTP/1.1", "Host: a"))
	if err := <-ended; err == nil {
		t.Error("the answer ended")
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// upper answers an upgrade with the client's bytes in upper case.
func upper(e *exchange.Exchange) *exchange.Response {
	if e.Request.Upgrade == "" {
		return plain(426, "no upgrade")
	}
	return &exchange.Response{Status: 101, Header: exchange.HeaderOf(exchange.Field{Name: "Sec-WebSocket-Accept", Value: "x"}),
		Upgrade: func(client io.ReadWriteCloser) error {
			defer client.Close()
			stop := context.AfterFunc(e.Context, func() { client.Close() })
			defer stop()
			b := make([]byte, 16)
			for {
				n, err := client.Read(b)
				if err != nil {
					return err
				}
				if _, err := client.Write([]byte(strings.ToUpper(string(b[:n])))); err != nil {
					return err
				}
			}
		}}
}

const handshake = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\n"

// switched reads a 101.
func (c *client) switched() {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Connection") != "Upgrade" ||
		resp.Header.Get("Sec-WebSocket-Accept") != "x" || resp.Header.Get("X-Request-Id") == "" {
		c.t.Fatal(resp, err)
	}
}

func (c *client) expect(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
		c.t.Fatalf("got %q, %v; want %q", got, err, want)
	}
}

func TestUpgradesCarryBytes(t *testing.T) {
	results := make(chan exchange.Result, 1)
	f := start(t, Config{HeaderTimeout: 200 * time.Millisecond, Handle: func(e *exchange.Exchange) *exchange.Response {
		e.Done = append(e.Done, func(e *exchange.Exchange) { results <- e.Result })
		return upper(e)
	}})
	c := f.dial()
	c.send(handshake)
	c.switched()
	c.send("a\n\r\n\r\n;b")
	c.expect("A\n\r\n\r\n;B")
	c.Close()
	if r := <-results; r != (exchange.Result{Status: 101, Bytes: 8, Ended: r.Ended}) {
		t.Errorf("%+v", r)
	}
}

func TestUpgradesThatAreNone(t *testing.T) {
	f := start(t, Config{Handle: upper})
	for name, request := range map[string]string{
		"h2c":         strings.Replace(handshake, "websocket", "h2c", 1),
		"list":        strings.Replace(handshake, "websocket", "websocket, h2c", 1),
		"not listed":  strings.Replace(handshake, ", Upgrade", "", 1),
		"POST":        strings.Replace(handshake, "GET", "POST", 1),
		"with a body": strings.Replace(handshake, "Host: a", "Host: a\r\nContent-Length: 1", 1) + "x",
		"HTTP/1.0":    strings.Replace(handshake, "HTTP/1.1", "HTTP/1.0", 1),
	} {
		if resp, body := f.once(request); resp.StatusCode != 426 {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
	f.reached()
	if resp, body := f.once(handshake + "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"); resp.StatusCode != 400 || !resp.Close {
		t.Errorf("early data: %d %s", resp.StatusCode, body)
	}
	if seen := f.reached(); len(seen) != 0 {
		t.Errorf("the handler saw %q", seen)
	}
}

func TestDataBeforeTheSwitchEndsTheConnection(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		close(begun)
		<-release
		return upper(e)
	}})
	c := f.dial()
	c.send(handshake)
	<-begun
	c.send("GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
	for !readable(f.server.list()[0].raw) {
		runtime.Gosched()
	}
	close(release)
	if b, err := io.ReadAll(c.r); len(b) > 0 || err == nil {
		t.Errorf("%q, %v: want a reset", b, err)
	}
	if seen := f.reached(); !slices.Equal(seen, []string{"GET /ws"}) {
		t.Errorf("the handler saw %q", seen)
	}
}

func TestDrainFinishesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	begun, release := make(chan struct{}), make(chan struct{})
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Upgrade != "" {
			return upper(e)
		}
		if e.Request.Path == "/slow" {
			close(begun)
			<-release
		}
		return echo(e)
	}})
	idle, silent, slow, ws := f.dial(), f.dial(), f.dial(), f.dial()
	idle.send(lines("GET / HTTP/1.1", "Host: a"))
	idle.receive("GET")
	ws.send(handshake)
	ws.switched()
	// Its body is not there when the drain begins.
	slow.send(lines("POST /slow HTTP/1.1", "Host: a", "Content-Length: 4"))
	<-begun
	for f.server.Open() < 4 {
		runtime.Gosched()
	}
	f.server.Drain()
	f.server.Drain()
	idle.closed()
	silent.closed()
	ws.send("still here")
	ws.expect("STILL HERE")
	slow.send("done")
	close(release)
	if resp, body := slow.receive("POST"); resp.StatusCode != 200 || !strings.HasSuffix(body, "body=done") || !resp.Close {
		t.Errorf("%d %q close=%t", resp.StatusCode, body, resp.Close)
	}
	if f.server.Open() == 0 {
		t.Fatal("empty with an upgraded connection open")
	}
	ws.Close()
	f.empty()
}

func TestGoodbyeKeepsServingAndClosesAsItAnswers(t *testing.T) {
	f := start(t, Config{})
	kept, idle := f.dial(), f.dial()
	kept.send(lines("GET / HTTP/1.1", "Host: a"))
	if resp, _ := kept.receive("GET"); resp.Close {
		t.Error("closed before the drain")
	}
	f.server.Goodbye()
	for _, c := range []*client{kept, idle} {
		c.send(lines("GET / HTTP/1.1", "Host: a"))
		if resp, _ := c.receive("GET"); !resp.Close {
			t.Error("no goodbye")
		}
		c.closed()
	}
}

func TestCutEndsEverything(t *testing.T) {
	t.Parallel()
	begun, cut := make(chan struct{}, 3), make(chan error, 2)
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Upgrade != "" {
			return upper(e)
		}
		if e.Request.Path == "/stream" {
			events, source := io.Pipe()
			begun <- struct{}{}
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: events, Length: -1}, Interrupt: func(cause error) {
				cut <- cause
				source.CloseWithError(cause)
			}}
		}
		begun <- struct{}{}
		<-e.Context.Done()
		cut <- context.Cause(e.Context)
		return plain(200, "")
	}})
	stuck, stream, ws, idle := f.dial(), f.dial(), f.dial(), f.dial()
	ws.send(handshake)
	ws.switched()
	idle.send("GET /")
	stuck.send(lines("GET / HTTP/1.1", "Host: a"))
	stream.send(lines("GET /stream HTTP/1.1", "Host: a"))
	<-begun
	<-begun
	f.server.Cut()
	for range 2 {
		if err := <-cut; !errors.Is(err, errStopping) {
			t.Error(err)
		}
	}
	f.empty()
	c, server := net.Pipe()
	defer c.Close()
	f.server.Serve(server, connOf(server), nil)
}
