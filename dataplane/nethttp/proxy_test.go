package nethttp_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/nethttp"
	"portcullis.dev/portcullis/dataplane/upstream"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// proxy puts the front end before the backend, with nothing between.
func proxy(t testing.TB, backend http.Handler) (addr string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(backend)
	srv.Config.DisableGeneralOptionsHandler = true
	srv.Start()
	pool := upstream.NewPool(upstream.Config{})
	up, err := pool.Acquire(&configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: srv.URL}}})
	if err != nil {
		t.Fatal(err)
	}
	refuse := func(_ *exchange.Exchange, reason string, status int) *exchange.Response {
		return &exchange.Response{Status: status, Body: exchange.Body{Reader: io.NopCloser(strings.NewReader(reason)), Length: int64(len(reason))}}
	}
	front := nethttp.New(nethttp.Config{Refuse: refuse, Handle: func(e *exchange.Exchange) *exchange.Response {
		resp, err := up.Do(e.Context, &e.Request, time.Now().Add(10*time.Second))
		if err != nil {
			return refuse(e, err.Error(), http.StatusBadGateway)
		}
		return resp
	}})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		front.Run(t.Context(), ln)
	}()
	t.Cleanup(func() {
		<-done
		up.Release()
		srv.Close()
	})
	return ln.Addr().String()
}

func TestPathsReachTheUpstreamAsPoliciesSeeThem(t *testing.T) {
	seen := make(chan string, 1)
	addr := proxy(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		seen <- fmt.Sprintf("%s %s %s %d %s", r.Method, r.RequestURI, r.Host, r.ContentLength, body)
		w.Header().Set("Trailer", "X-Sum")
		io.WriteString(w, "ok")
		w.Header().Set("X-Sum", "7")
	}))
	for request, want := range map[string]string{
		"GET /a%2d%c3%a9/[0]?q=%2f HTTP/1.1\r\nHost: A.example:81\r\n\r\n":                                                             "GET /a-%C3%A9/%5B0%5D?q=%2f a.example:81 0 ",
		"GET http://a.example/x HTTP/1.1\r\nHost: a.example.\r\n\r\n":                                                                  "GET /x a.example 0 ",
		"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n":                                                                                        "OPTIONS * a 0 ",
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello":                                                                 "POST / a 5 hello",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5\r\nhello\r\n0\r\nX-User: a\r\n\r\n": "POST / a -1 hello",
		"DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n":                                                                    "DELETE / a 0 ",
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, request)
		r := bufio.NewReader(c)
		resp, err := http.ReadResponse(r, nil)
		for err == nil && resp.StatusCode == http.StatusContinue {
			resp, err = http.ReadResponse(r, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if got := <-seen; got != want || string(body) != "ok" || err != nil || resp.Trailer.Get("X-Sum") != "7" {
			t.Errorf("%q: upstream saw %q, want %q; client got %q %v %v", request, got, want, body, resp.Trailer, err)
		}
		c.Close()
	}
}

func TestWebSocketsPass(t *testing.T) {
	addr := proxy(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil || r.Header.Get("Sec-WebSocket-Key") != "k" {
			t.Error(err, r.Header)
			return
		}
		defer c.Close()
		fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
		rw.Flush()
		io.Copy(c, rw)
	}))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: k\r\n\r\n")
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Sec-WebSocket-Accept") != "x" {
		t.Fatal(resp, err)
	}
	for range 3 {
		io.WriteString(c, "ping")
		got := make([]byte, 4)
		if _, err := io.ReadFull(r, got); err != nil || string(got) != "ping" {
			t.Fatalf("%q %v", got, err)
		}
	}
}

func TestAnUpstreamThatBreaksOffBreaksTheAnswer(t *testing.T) {
	addr := proxy(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("x", 100_000))
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	resp, err := http.Get("http://" + addr)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%d bytes passed off as the whole answer", len(b))
	}
	http.DefaultClient.CloseIdleConnections()
}

func BenchmarkProxy(b *testing.B) {
	addr := proxy(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	c, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	b.ReportAllocs()
	for b.Loop() {
		io.WriteString(c, "GET /orders/42 HTTP/1.1\r\nHost: api.example.com\r\nAuthorization: Bearer x\r\nAccept: */*\r\n\r\n")
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
	}
}
