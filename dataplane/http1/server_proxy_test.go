package http1

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// proxy puts the server before the backend, with one connection for each exchange
// between.
func proxy(t *testing.T, backend http.Handler) *front {
	t.Helper()
	srv := httptest.NewUnstartedServer(backend)
	srv.Config.DisableGeneralOptionsHandler = true
	srv.Start()
	t.Cleanup(srv.Close)
	return start(t, Config{Handle: forwardTo(srv.Listener.Addr().String())})
}

func forwardTo(addr string) func(e *exchange.Exchange) *exchange.Response {
	return func(e *exchange.Exchange) *exchange.Response {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			return plain(http.StatusBadGateway, err.Error())
		}
		c := NewClientConn(nc)
		resp, err := c.Do(&Call{Context: e.Context, Request: &e.Request, Now: time.Now(), Deadline: time.Now().Add(patience)})
		if err != nil {
			return plain(http.StatusBadGateway, err.Error())
		}
		e.Done = append(e.Done, func(*exchange.Exchange) {
			c.Finish()
			c.Close()
		})
		return resp
	}
}

func TestPathsReachTheUpstreamAsPoliciesSeeThem(t *testing.T) {
	seen := make(chan string, 1)
	f := proxy(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
		c := f.dial()
		c.send(request)
		resp, err := http.ReadResponse(c.r, nil)
		for err == nil && resp.StatusCode == http.StatusContinue {
			resp, err = http.ReadResponse(c.r, nil)
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
	f := proxy(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	c := f.dial()
	c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: k\r\n\r\n")
	c.switched()
	for range 3 {
		c.send("ping")
		c.expect("ping")
	}
}

func TestAnUpstreamThatBreaksOffBreaksTheAnswer(t *testing.T) {
	f := proxy(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Repeat("x", 100_000))
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	for _, request := range []string{lines("GET / HTTP/1.1", "Host: a"), lines("GET / HTTP/1.0", "Host: a")} {
		c := f.dial()
		c.send(request)
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err == nil {
			t.Errorf("%.20s: %d bytes passed off as the whole answer", request, len(b))
		}
	}
}

// An upstream may answer before it has read the request's body, and the client
// may never send the rest.
func TestAnEarlyAnswerArrives(t *testing.T) {
	f := proxy(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, "no")
	}))
	for _, framing := range []string{"Content-Length: 10000000", "Transfer-Encoding: chunked"} {
		c := f.dial()
		c.send(lines("POST / HTTP/1.1", "Host: a", framing) + "5\r\nhello")
		if resp, body := c.receive("POST"); resp.StatusCode != 403 || body != "no" {
			t.Errorf("%s: %d %q", framing, resp.StatusCode, body)
		}
	}
}

// Every request that is sent while the server drains is answered: that which it
// has not taken, on another connection.
func TestDrainUnderLoadLosesNothing(t *testing.T) {
	f := start(t, Config{})
	next := start(t, Config{})
	var at atomic.Pointer[string]
	at.Store(&f.addr)
	var clients sync.WaitGroup
	var answered atomic.Int64
	warm := make(chan struct{})
	for range 8 {
		clients.Go(func() {
			for i := 0; i < 300; {
				c, err := net.Dial("tcp", *at.Load())
				if err != nil {
					t.Error(err)
					return
				}
				r := bufio.NewReader(c)
				for ; i < 300; i++ {
					io.WriteString(c, lines("POST / HTTP/1.1", "Host: a", "Content-Length: 2")+"ok")
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						t.Errorf("request %d: %v", i, err)
						i++
						break
					}
					io.Copy(io.Discard, resp.Body)
					if answered.Add(1) == 200 {
						close(warm)
					}
					if resp.Close {
						i++
						break
					}
				}
				c.Close()
			}
		})
	}
	<-warm
	at.Store(&next.addr)
	f.server.Goodbye()
	clients.Wait()
	f.stop()
	if n := answered.Load(); n != 8*300 || len(next.reached()) == 0 {
		t.Errorf("%d of %d answered", n, 8*300)
	}
}

func TestNamesKeepTheirCaseAndFieldsTheirOrder(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		r := plain(200, "ok")
		r.Header = exchange.HeaderOf(exchange.Field{Name: "x-lower", Value: "1"}, exchange.Field{Name: "X-UPPER", Value: "2"}, exchange.Field{Name: "x-Lower", Value: "3"}, exchange.Field{Name: "bad name", Value: "4"})
		for _, f := range e.Request.Header.Fields() {
			r.Header.Add(f.Name, f.Value)
		}
		return r
	}})
	c := f.dial()
	c.send(lines("GET / HTTP/1.1", "hOST: a", "b-B: 1", "a-A: 2", "B-b: 3"))
	var got []string
	for {
		line, err := c.r.ReadString('\n')
		if err != nil || line == "\r\n" {
			break
		}
		got = append(got, strings.TrimSpace(line))
	}
	want := []string{"HTTP/1.1 200 OK", "x-lower: 1", "X-UPPER: 2", "x-Lower: 3", "b-B: 1", "a-A: 2", "B-b: 3", "X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: a"}
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("%q", got)
	}
}

func TestHTTP10(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/stream" {
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: &pieces{"hello", 2}, Length: -1}}
		}
		return echo(e)
	}})
	c := f.dial()
	c.send("GET /1 HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n")
	if resp, body := c.receive("GET"); resp.Header.Get("Connection") != "keep-alive" || !strings.HasPrefix(body, "GET /1?") {
		t.Errorf("%v %q", resp.Header, body)
	}
	c.send("GET /stream HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
	if resp, body := c.receive("GET"); len(resp.TransferEncoding) > 0 || resp.ContentLength >= 0 || !resp.Close || body != "hello" {
		t.Errorf("%v %q", resp, body)
	}
	c.closed()
	c = f.dial()
	c.send("GET /2 HTTP/1.0\r\nHost: a\r\n\r\n")
	if resp, _ := c.receive("GET"); !resp.Close {
		t.Error("kept open unasked")
	}
	c.closed()
}

func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("CURL IS NOT INSTALLED: the server is not tried with it")
	}
	f := proxy(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprintf(w, "%s %s %d;", r.Method, r.URL, n)
		http.NewResponseController(w).Flush()
		io.WriteString(w, strings.Repeat("x", 100_000))
	}))
	url := "http://" + f.addr
	big := "@-"
	for _, c := range []struct {
		args []string
		in   int
		want string
	}{
		{[]string{url + "/a", url + "/b"}, 0, "GET /a 0;"},
		{[]string{"--data-binary", big, url + "/post"}, 2_000_000, "POST /post 2000000;"},
		{[]string{"-T", "-", url + "/put"}, 3_000_000, "PUT /put 3000000;"},
		{[]string{"-H", "Expect: 100-continue", "--data-binary", big, url + "/expect"}, 5000, "POST /expect 5000;"},
		{[]string{"-0", url + "/old"}, 0, "GET /old 0;"},
	} {
		cmd := exec.Command(curl, append([]string{"-sS", "--fail", "--max-time", "20"}, c.args...)...)
		cmd.Stdin = strings.NewReader(strings.Repeat("y", c.in))
		var failed strings.Builder
		cmd.Stderr = &failed
		out, err := cmd.Output()
		if err != nil || !strings.HasPrefix(string(out), c.want) || len(out)%100_000 != len(c.want)*(len(out)/100_000) {
			t.Errorf("%q: %.40q (%d bytes) %v %s", c.args, out, len(out), err, failed.String())
		}
	}
}
