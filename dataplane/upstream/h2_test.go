package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"portcullis.dev/portcullis/dataplane/exchange"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// http2Backend is a backend on an upstream that speaks HTTP/2.
func http2Backend(t *testing.T, c Config, urls ...string) *Backend {
	t.Helper()
	spec := &configv1.Upstream{Protocol: configv1.UpstreamProtocol_UPSTREAM_PROTOCOL_HTTP2}
	for _, u := range urls {
		spec.Endpoints = append(spec.Endpoints, &configv1.Endpoint{Url: u})
	}
	pool := NewPool(c)
	t.Cleanup(pool.Close)
	u, err := pool.Acquire(key, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Release)
	return backendOf(u)
}

// serveHTTP2 runs net/http's server with prior knowledge, and counts connections.
func serveHTTP2(t *testing.T, h http.HandlerFunc) (url string, conns *atomic.Int64) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	conns = new(atomic.Int64)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 4}
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.URL, conns
}

func TestHTTP2RequestGoesOutAsItStands(t *testing.T) {
	seen := make(chan string, 1)
	url, _ := serveHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
		seen <- fmt.Sprintf("%s %s %s %s %v te=%s", r.Proto, r.Method, r.RequestURI, r.Host, r.Header["X-A"], r.Header.Get("Te"))
		w.Header().Set("X-End", "1")
		w.Header().Set(http.TrailerPrefix+"X-Sum", "2")
		io.WriteString(w, "ok")
	})
	e := get("/a%20b/%25x/[")
	e.Request.Query = "q=%2f+1&q"
	e.Request.Authority = "api.example.com:8080"
	e.Request.Header = exchange.HeaderOf(exchange.Field{Name: "x-a", Value: "1"}, exchange.Field{Name: "x-a", Value: "2"}, exchange.Field{Name: "connection", Value: "x"})
	resp, err := do(t, http2Backend(t, Config{}, url), e, soon())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := <-seen, "HTTP/2.0 GET /a%20b/%25x/[?q=%2f+1&q api.example.com:8080 [1 2] te=trailers"; got != want {
		t.Errorf("upstream saw\n%s, want\n%s", got, want)
	}
	body, err := io.ReadAll(resp.Body.Reader)
	trailer := resp.Body.Trailer()
	if string(body) != "ok" || err != nil || resp.Status != 200 || resp.Header.Get("x-end") != "1" || trailer.Get("x-sum") != "2" {
		t.Errorf("%d %v %q %v %v", resp.Status, resp.Header.Fields(), body, trailer.Fields(), err)
	}
}

// Requests share connections up to what the upstream takes at once on one.
func TestHTTP2OpensAsManyConnectionsAsItNeeds(t *testing.T) {
	release := make(chan struct{})
	var waiting atomic.Int64
	url, conns := serveHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			waiting.Add(1)
			<-release
		}
	})
	b := http2Backend(t, Config{}, url)
	if _, err := do(t, b, get("/"), soon()); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			e := get("/wait")
			defer e.End()
			if _, err := b.Do(e, e.Context, soon()); err != nil {
				t.Error(err)
			}
		})
	}
	for end := time.Now().Add(patience); waiting.Load() < 10; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of 10 requests came", waiting.Load())
		}
	}
	if n := conns.Load(); n != 3 {
		t.Errorf("%d connections for 10 requests, 4 on each", n)
	}
	close(release)
	all.Wait()
}

func TestHTTP2OverTLSByALPN(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	config := Config{TLS: func(*configv1.UpstreamTLS) (*tls.Config, error) {
		return &tls.Config{RootCAs: s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs, ServerName: "example.com"}, nil
	}}
	resp, err := do(t, http2Backend(t, config, s.URL), get("/"), soon())
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body.Reader); string(b) != "HTTP/2.0" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	old := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(old.Close)
	if _, err := do(t, http2Backend(t, config, old.URL), get("/"), soon()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("an upstream that speaks HTTP/1.1 only: %v", err)
	}
}

// wireHTTP2 is an upstream of frames: each connection is handed to the next
// script.
func wireHTTP2(t *testing.T, scripts ...func(*http2.Framer, net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for _, script := range scripts {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
					return
				}
				f := http2.NewFramer(c, c)
				f.WriteSettings()
				script(f, c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		served.Wait()
	})
	return "http://" + ln.Addr().String()
}

// next reads until a request's HEADERS.
func next(f *http2.Framer) uint32 {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return 0
		}
		switch one := frame.(type) {
		case *http2.HeadersFrame:
			return one.StreamID
		case *http2.SettingsFrame:
			if !one.IsAck() {
				f.WriteSettingsAck()
			}
		}
	}
}

func respond(f *http2.Framer, id uint32, end bool, status string) {
	var b bytes.Buffer
	hpack.NewEncoder(&b).WriteField(hpack.HeaderField{Name: ":status", Value: status})
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: end})
}

func linger(c net.Conn) { io.Copy(io.Discard, c) }

// What was certainly not processed is sent again elsewhere; what may have been is
// not.
func TestHTTP2RefusedRequestsAreSentAgain(t *testing.T) {
	fine := func(f *http2.Framer, c net.Conn) {
		respond(f, next(f), true, "204")
		linger(c)
	}
	for name, c := range map[string]struct {
		first func(*http2.Framer, net.Conn)
		again bool
	}{
		"REFUSED_STREAM": {func(f *http2.Framer, c net.Conn) {
			id := next(f)
			f.WriteGoAway(id, http2.ErrCodeNo, nil)
			f.WriteRSTStream(id, http2.ErrCodeRefusedStream)
			linger(c)
		}, true},
		"beyond the last stream of a GOAWAY": {func(f *http2.Framer, c net.Conn) { next(f); f.WriteGoAway(0, http2.ErrCodeNo, nil); linger(c) }, true},
		"INTERNAL_ERROR":                     {func(f *http2.Framer, c net.Conn) { f.WriteRSTStream(next(f), http2.ErrCodeInternal); linger(c) }, false},
		"the end of the connection":          {func(f *http2.Framer, c net.Conn) { next(f) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			scripts := []func(*http2.Framer, net.Conn){c.first}
			if c.again {
				scripts = append(scripts, fine)
			}
			resp, err := do(t, http2Backend(t, Config{}, wireHTTP2(t, scripts...)), get("/"), soon())
			if c.again && (err != nil || resp.Status != 204) {
				t.Error(resp, err)
			}
			if !c.again && !errors.Is(err, ErrUnavailable) {
				t.Error(resp, err)
			}
		})
	}
}

func TestHTTP2AnswersThatBreakOff(t *testing.T) {
	b := http2Backend(t, Config{}, wireHTTP2(t, func(f *http2.Framer, c net.Conn) {
		id := next(f)
		respond(f, id, false, "200")
		f.WriteData(id, false, []byte("part"))
		f.WriteRSTStream(id, http2.ErrCodeInternal)
		linger(c)
	}))
	resp, err := do(t, b, get("/"), soon())
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(resp.Body.Reader); err == nil || !strings.HasPrefix("part", string(body)) {
		t.Errorf("%q, %v", body, err)
	}
}

func TestHTTP2TimesOutAndIsInterrupted(t *testing.T) {
	url, _ := serveHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/open" {
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
	})
	b := http2Backend(t, Config{}, url)
	if _, err := do(t, b, get("/"), time.Now().Add(50*time.Millisecond)); !errors.Is(err, ErrTimeout) {
		t.Errorf("no head in time: %v", err)
	}
	gone := errors.New("gone")
	e := get("/")
	ctx, cancel := context.WithCancelCause(context.Background())
	e.Context = ctx
	time.AfterFunc(20*time.Millisecond, func() { cancel(gone) })
	if _, err := do(t, b, e, soon()); !errors.Is(err, gone) {
		t.Errorf("context ended: %v", err)
	}
	resp, err := do(t, b, get("/open"), soon())
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Millisecond, func() { resp.Interrupt(gone) })
	if _, err := io.ReadAll(resp.Body.Reader); !errors.Is(err, gone) {
		t.Errorf("interrupted: %v", err)
	}
}

// When Do has failed, or the exchange has ended, nobody reads the request's body.
func TestHTTP2LeavesTheBodyAlone(t *testing.T) {
	url, _ := serveHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			w.WriteHeader(204)
			return
		}
		<-r.Context().Done()
	})
	b := http2Backend(t, Config{}, url)
	for _, path := range []string{"/early", "/late"} {
		body := &waiting{closed: make(chan struct{})}
		e := get(path)
		e.Request.Method, e.Request.Body = "POST", exchange.Body{Reader: body, Length: -1}
		_, err := b.Do(e, e.Context, time.Now().Add(100*time.Millisecond))
		if path == "/late" && !errors.Is(err, ErrTimeout) {
			t.Error(err)
		}
		e.End()
		if n := body.reading.Load(); n != 0 {
			t.Errorf("%s: %d reads under way", path, n)
		}
	}
}

// waiting is a body of which nothing comes until it is closed.
type waiting struct {
	reading atomic.Int64
	once    sync.Once
	closed  chan struct{}
}

func (w *waiting) Read([]byte) (int, error) {
	w.reading.Add(1)
	defer w.reading.Add(-1)
	<-w.closed
	return 0, io.ErrClosedPipe
}

func (w *waiting) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

func TestHTTP2CannotUpgrade(t *testing.T) {
	e := get("/")
	e.Request.Upgrade = "websocket"
	if _, err := do(t, http2Backend(t, Config{}, "http://127.0.0.1:1"), e, soon()); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
}

func TestHTTP2FieldsOfAnAnswer(t *testing.T) {
	url, _ := serveHTTP2(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
		w.WriteHeader(201)
	})
	resp, err := do(t, http2Backend(t, Config{}, url), get("/"), soon())
	if err != nil || resp.Status != 201 || !slices.Equal(slices.Collect(resp.Header.Values("set-cookie")), []string{"a=1", "b=2"}) {
		t.Fatal(resp, err)
	}
}
