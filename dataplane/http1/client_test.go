package http1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

const patience = 20 * time.Second

// peer is the other side of a connection: it reads a request up to until, and
// then writes answer and closes, unless stay.
func dialPeer(t *testing.T, until, answer string, stay bool) (c *ClientConn, seen <-chan string) {
	t.Helper()
	near, far := socketPair(t)
	got := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := bufio.NewReader(far)
		var text strings.Builder
		for !strings.HasSuffix(text.String(), until) {
			b, err := r.ReadByte()
			if err != nil {
				break
			}
			text.WriteByte(b)
		}
		got <- text.String()
		io.WriteString(far, answer)
		if !stay {
			far.Close()
		}
	}()
	c = NewClientConn(near)
	t.Cleanup(func() { c.Close(); far.Close(); <-done })
	return c, got
}

func socketPair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func callFor(method string) *Call {
	return &Call{
		Context: context.Background(), Now: time.Now(), Deadline: time.Now().Add(patience),
		Request: &exchange.Request{Method: method, Path: "/a", Authority: "api.example.com"},
	}
}

func answer(t *testing.T, c *ClientConn, call *Call) (status int, body string, err error) {
	t.Helper()
	resp, err := c.Do(call)
	if err != nil {
		return 0, "", err
	}
	var b []byte
	if resp.Body.Reader != nil {
		b, err = io.ReadAll(resp.Body.Reader)
		resp.Body.Reader.Close()
	}
	return resp.Status, string(b), err
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		method, answer, body string
		length               int64
		reusable             bool
	}{
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", 2, true},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", "ok", 2, false},
		{"GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", "ok", 2, false},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", "ok", 2, false},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", 0, true},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore", "", 0, false},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", "ok", -1, true},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\nHTTP/1.1", "ok", -1, false},
		{"GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "", -1, true},
		{"GET", "HTTP/1.1 200 OK\r\n\r\nok", "ok", -1, false},
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "", 2, true},
		{"HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "", 2, false},
		{"HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "", -1, true},
		{"GET", "HTTP/1.1 204 No Content\r\n\r\n", "", 0, true},
		{"GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "", 0, true},
		{"GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok", 2, true},
		{"GET", "HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + strings.Repeat("0123456789", 7000), strings.Repeat("0123456789", 7000), 70000, true},
		{"GET", "HTTP/1.1 200 OK\r\nX-Large: " + strings.Repeat("x", 200<<10) + "\r\nContent-Length: 2\r\n\r\nok", "ok", 2, true},
	} {
		conn, seen := dialPeer(t, "\r\n\r\n", c.answer, c.reusable)
		resp, err := conn.Do(callFor(c.method))
		if err != nil {
			t.Errorf("%.60q: %v", c.answer, err)
			continue
		}
		if want := c.method + " /a HTTP/1.1\r\nHost: api.example.com\r\n\r\n"; <-seen != want {
			t.Errorf("saw another request than %q", want)
		}
		if resp.Body.Length != c.length || resp.Header.Count("Content-Length")+resp.Header.Count("Connection")+resp.Header.Count("Transfer-Encoding") > 0 {
			t.Errorf("%.60q: %+v", c.answer, resp)
		}
		var body []byte
		if resp.Body.Reader != nil {
			if body, err = io.ReadAll(resp.Body.Reader); err != nil {
				t.Errorf("%.60q: %v", c.answer, err)
			}
			resp.Body.Reader.Close()
		}
		if string(body) != c.body {
			t.Errorf("%.60q: body %.60q", c.answer, body)
		}
		if got := conn.Finish(); got != c.reusable {
			t.Errorf("%.60q: reusable %t", c.answer, got)
		}
	}
}

func TestAmbiguousAnswersAreRefused(t *testing.T) {
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
		"HTTP/1.1 200 OK\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
		"HTTP/1.1 200 OK\r\nConnection: " + strings.Repeat("a,", 40) + "\r\n\r\n", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", maxInterim+1),
		"HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", maxFields+1) + "\r\n", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("b", maxAnswerHead+10),
		"HTTP/1.1 204 OK\r\nContent-Length: 2\r\n\r\nok",
	} {
		c, _ := dialPeer(t, "\r\n\r\n", text, true)
		if _, _, err := answer(t, c, callFor("GET")); !errors.Is(err, ErrAnswer) || errors.Is(err, exchange.ErrMalformed) || errors.Is(err, exchange.ErrTooLarge) {
			t.Errorf("%.80q: %v", text, err)
		}
	}
	// In the body the head is out already.
	for _, text := range []string{"2;x\r\nok\r\n0\r\n\r\n", "2\r\nokk", "g\r\n", "2\r\nok\r\n0\r\nA : b\r\n\r\n"} {
		c, _ := dialPeer(t, "\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"+text, true)
		if status, _, err := answer(t, c, callFor("GET")); !errors.Is(err, ErrAnswer) || errors.Is(err, exchange.ErrMalformed) || status != 200 {
			t.Errorf("%q: %d %v", text, status, err)
		}
		if c.Finish() {
			t.Errorf("%q: the connection lives on", text)
		}
	}
}

// Whereever an answer breaks off, it is an error, and no shorter answer.
func TestResetAtEachByte(t *testing.T) {
	for _, text := range []string{
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
	} {
		for i := range text {
			c, _ := dialPeer(t, "\r\n\r\n", text[:i], false)
			_, body, err := answer(t, c, callFor("GET"))
			want := ErrAnswer
			if i == 0 {
				want = ErrNoAnswer
			}
			if !errors.Is(err, want) {
				t.Fatalf("%q: %q, %v", text[:i], body, err)
			}
		}
	}
}

func TestRequestBodies(t *testing.T) {
	long := strings.Repeat("0123456789", 10_000)
	for _, c := range []struct {
		body   string
		length int64
		whole  bool
		until  string
		frame  string
	}{
		{"hello", 5, false, "hello", "Content-Length: 5\r\n\r\nhello"},
		{"hello", 5, true, "hello", "Content-Length: 5\r\n\r\nhello"},
		{"hello", -1, false, "0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		{"", -1, false, "0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{"", 0, false, "\r\n\r\n", "Content-Length: 0\r\n\r\n"},
		{long + "!", int64(len(long)) + 1, false, "!", "Content-Length: 100001\r\n\r\n" + long + "!"},
	} {
		conn, seen := dialPeer(t, c.until, "HTTP/1.1 204 No Content\r\n\r\n", true)
		call := callFor("POST")
		if call.Whole = c.whole; c.whole {
			call.Body = []byte(c.body)
		} else {
			call.Request.Body = exchange.Body{Reader: io.NopCloser(strings.NewReader(c.body)), Length: c.length}
		}
		if status, _, err := answer(t, conn, call); status != 204 || err != nil {
			t.Fatal(status, err)
		}
		if got := <-seen; !strings.HasSuffix(got, c.frame) {
			t.Errorf("saw %.200q", got)
		}
		if !conn.Finish() {
			t.Errorf("%.10q: the connection is not reusable", c.body)
		}
	}
}

// slowBody is a client that sends nothing more until it is closed.
type slowBody struct {
	first  io.Reader
	closed chan struct{}
}

func (b *slowBody) Read(p []byte) (int, error) {
	if n, err := b.first.Read(p); n > 0 || err == nil {
		return n, nil
	}
	<-b.closed
	return 0, errors.New("closed")
}

func (b *slowBody) Close() error {
	close(b.closed)
	return nil
}

func TestEarlyAnswers(t *testing.T) {
	c, _ := dialPeer(t, "begin", "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno", true)
	call := callFor("POST")
	body := &slowBody{strings.NewReader("begin"), make(chan struct{})}
	call.Request.Body = exchange.Body{Reader: body, Length: 1000}
	if status, text, err := answer(t, c, call); status != 413 || text != "no" || err != nil {
		t.Error(status, text, err)
	}
	if c.Finish() {
		t.Error("a connection on which half a request stands is reused")
	}
	<-body.closed
}

func TestBodyErrorsAreTheClients(t *testing.T) {
	for _, c := range []struct {
		body   io.Reader
		length int64
		want   error
	}{
		{io.MultiReader(strings.NewReader("x"), brokenReader{exchange.ErrTooLarge}), -1, exchange.ErrTooLarge},
		{strings.NewReader("xy"), 3, errBodyLength},
		{strings.NewReader("xyzzy"), 3, errBodyLength},
	} {
		conn, _ := dialPeer(t, "never", "", true)
		call := callFor("POST")
		call.Request.Body = exchange.Body{Reader: io.NopCloser(c.body), Length: c.length}
		if _, _, err := answer(t, conn, call); !errors.Is(err, c.want) {
			t.Errorf("got %v, want %v", err, c.want)
		}
	}
}

type brokenReader struct{ err error }

func (b brokenReader) Read([]byte) (int, error) { return 0, b.err }

func TestTimeouts(t *testing.T) {
	c, _ := dialPeer(t, "never", "", true)
	call := callFor("POST")
	call.Deadline = time.Now().Add(20 * time.Millisecond)
	call.Request.Body = exchange.Body{Reader: &slowBody{strings.NewReader(""), make(chan struct{})}, Length: 10}
	if _, _, err := answer(t, c, call); !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	c, _ = dialPeer(t, "\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no", true)
	call = callFor("GET")
	call.Idle = 20 * time.Millisecond
	// A deadline that stands from before must not cut the silence short, nor lengthen it.
	if _, body, err := answer(t, c, call); !errors.Is(err, ErrTimeout) || body != "o" {
		t.Error(body, err)
	}
	c, _ = dialPeer(t, "\r\n\r\n", "", true)
	call = callFor("GET")
	call.Deadline = call.Now
	if _, _, err := answer(t, c, call); !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
}

func TestInterruption(t *testing.T) {
	revoked := errors.New("revoked")
	c, _ := dialPeer(t, "\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true)
	resp, err := c.Do(callFor("GET"))
	if err != nil {
		t.Fatal(err)
	}
	go resp.Interrupt(revoked)
	if _, err := io.ReadAll(resp.Body.Reader); !errors.Is(err, revoked) {
		t.Error(err)
	}
	if c.Finish() {
		t.Error("reusable")
	}
	// By the context, while the head is awaited.
	ctx, cancel := context.WithCancelCause(context.Background())
	c, seen := dialPeer(t, "\r\n\r\n", "", true)
	call := callFor("GET")
	call.Context = ctx
	go func() { <-seen; cancel(revoked) }()
	if _, err := c.Do(call); !errors.Is(err, revoked) {
		t.Error(err)
	}
}

func TestAClosedConnectionIsFoundOut(t *testing.T) {
	near, far := socketPair(t)
	c := NewClientConn(near)
	defer c.Close()
	if !c.Alive() {
		t.Error("an open connection is dead")
	}
	far.Close()
	for c.Alive() {
		time.Sleep(time.Millisecond) // until the kernel has delivered it
	}
	near, far = socketPair(t)
	defer far.Close()
	c = NewClientConn(near)
	defer c.Close()
	io.WriteString(far, "HTTP/1.1 408 Request Timeout\r\n\r\n")
	for c.Alive() {
		time.Sleep(time.Millisecond)
	}
}

// What the writer writes, net/http reads back equal.
func FuzzRequestIsReadBack(f *testing.F) {
	f.Add("GET", "/a%20b", "q=1", "a:80", "X-A", "b c", true)
	f.Add("POST", "*", "", "[::1]", "expect", "100-continue", false)
	f.Fuzz(func(t *testing.T, method, path, query, authority, name, value string, body bool) {
		r := &exchange.Request{Method: method, Path: path, Query: query, Authority: authority, Header: exchange.HeaderOf(exchange.Field{Name: name, Value: value})}
		length := int64(0)
		if body {
			length = 3
		}
		b, err := appendRequest(nil, r, length)
		if err != nil {
			return
		}
		text := string(b)
		if body {
			text += "abc"
		}
		got, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			if !strings.Contains(err.Error(), "parse") && !strings.Contains(err.Error(), "Host") && !strings.Contains(err.Error(), "malformed") {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		target := path
		if query != "" {
			target += "?" + query
		}
		if got.Method != method || got.RequestURI != target || got.ContentLength != length {
			t.Fatalf("%q: %+v", text, got)
		}
		for name, values := range got.Header {
			if name != "Content-Length" && !slices.Equal(values, []string{strings.Trim(value, " \t")}) && name != "Cache-Control" {
				t.Fatalf("%q: %s is %q", text, name, values)
			}
		}
	})
}

// script is a connection in memory that answers each write with the same bytes.
type script struct {
	net.Conn
	answer []byte
	left   []byte
}

func (s *script) Write(p []byte) (int, error) {
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

func TestAnOrdinaryRequestCostsNoAllocation(t *testing.T) {
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
	} {
		c := NewClientConn(&script{answer: []byte(text)})
		call := callFor("GET")
		call.Request.Header = exchange.HeaderOf(exchange.Field{Name: "Accept", Value: "*/*"}, exchange.Field{Name: "User-Agent", Value: "curl"})
		p := make([]byte, 100)
		if n := testing.AllocsPerRun(100, func() {
			resp, err := c.Do(call)
			if err != nil {
				t.Fatal(err)
			}
			resp.Header.Add("X-More", "1")
			if n, err := resp.Body.Reader.Read(p); n != 5 || err != nil {
				t.Fatal(n, err)
			}
			if n, err := resp.Body.Reader.Read(p); n != 0 || err != io.EOF {
				t.Fatal(n, err)
			}
			resp.Body.Reader.Close()
			if !c.Finish() {
				t.Fatal("not reusable")
			}
		}); n != 0 {
			t.Errorf("%.40q: %v allocations", text, n)
		}
	}
}

func TestUpgradeCarriesBytesBothWays(t *testing.T) {
	for _, end := range []string{"client", "upstream", "interrupt", "idle"} {
		t.Run(end, func(t *testing.T) {
			near, far := socketPair(t)
			defer far.Close()
			go func() {
				http.ReadRequest(bufio.NewReader(far))
				io.WriteString(far, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello ")
				if end == "upstream" {
					io.CopyN(far, far, 4)
					far.Close()
					return
				}
				io.Copy(far, far)
			}()
			c := NewClientConn(near)
			defer c.Close()
			call := callFor("GET")
			call.Request.Upgrade = "websocket"
			if end == "idle" {
				call.Idle = 50 * time.Millisecond
			}
			resp, err := c.Do(call)
			if err != nil || resp.Upgrade == nil || resp.Header.Get("Sec-WebSocket-Accept") != "x" {
				t.Fatal(resp, err)
			}
			client, server := net.Pipe()
			defer client.Close()
			result := make(chan error, 1)
			go func() { result <- resp.Upgrade(server) }()
			io.WriteString(client, "echo")
			got := make([]byte, 10)
			if _, err := io.ReadFull(client, got); err != nil || string(got) != "hello echo" {
				t.Errorf("got %q, %v", got, err)
			}
			want := error(nil)
			switch end {
			case "client":
				client.Close()
			case "interrupt":
				want = errors.New("revoked")
				resp.Interrupt(want)
			case "idle":
				want = ErrTimeout
			}
			if err := <-result; !errors.Is(err, want) {
				t.Error(err)
			}
			if c.Finish() {
				t.Error("reusable")
			}
		})
	}
}

func TestOneConnectionCarriesManyRequests(t *testing.T) {
	near, far := socketPair(t)
	defer far.Close()
	go func() {
		r := bufio.NewReader(far)
		for i := 0; ; i++ {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			n, _ := io.Copy(io.Discard, req.Body)
			fmt.Fprintf(far, "HTTP/1.1 200 OK\r\nX-I: %d\r\nContent-Length: 5\r\n\r\n%05d", i, n)
		}
	}()
	c := NewClientConn(near)
	defer c.Close()
	for i := range 200 {
		call := callFor("POST")
		size := i * 331 % 50_000
		call.Request.Body = exchange.Body{Reader: io.NopCloser(strings.NewReader(strings.Repeat("x", size))), Length: int64(size)}
		if i%3 == 0 {
			call.Request.Body.Length = -1
		}
		if _, body, err := answer(t, c, call); err != nil || body != fmt.Sprintf("%05d", size) {
			t.Fatal(i, body, err)
		}
		if !c.Finish() {
			t.Fatal(i, "not reusable")
		}
	}
}
