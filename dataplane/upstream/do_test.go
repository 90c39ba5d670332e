package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const patience = 10 * time.Second

// backend answers each connection with the text and reports what it read until
// the answer is due: the head, or all that want ends with.
func backend(t *testing.T, until, answer string) (url string, seen <-chan string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	heads := make(chan string, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(c)
			var head strings.Builder
			for !strings.HasSuffix(head.String(), until) {
				b, err := r.ReadByte()
				if err != nil {
					break
				}
				head.WriteByte(b)
			}
			heads <- head.String()
			io.WriteString(c, answer)
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return "http://" + ln.Addr().String(), heads
}

var key = config.Key{Kind: config.KindUpstream, Workspace: "default", Name: "up"}

func acquire(t *testing.T, urls ...string) *Backend {
	t.Helper()
	spec := &configv1.Upstream{}
	for _, u := range urls {
		spec.Endpoints = append(spec.Endpoints, &configv1.Endpoint{Url: u})
	}
	u, err := NewPool(Config{}).Acquire(key, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Release)
	return backendOf(u)
}

func backendOf(u *Upstream) *Backend {
	return NewBackend(u, &configv1.Route{}, &configv1.Backend{Upstream: "up"})
}

func get(path string) *exchange.Exchange {
	return &exchange.Exchange{Context: context.Background(), Request: exchange.Request{Method: "GET", Path: path, Host: "api.example.com", Authority: "api.example.com"}}
}

// do sends an exchange that ends with the test at the latest.
func do(t *testing.T, b *Backend, e *exchange.Exchange, deadline time.Time) (*exchange.Response, error) {
	t.Helper()
	t.Cleanup(e.End)
	return b.Do(e, e.Context, deadline)
}

func soon() time.Time { return time.Now().Add(patience) }

func TestTheRequestGoesOutAsItStands(t *testing.T) {
	url, seen := backend(t, "\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: x\r\nX-End: 1\r\nContent-Length: 2\r\n\r\nok")
	r := get("/a%20b/%25x/[")
	r.Request.Query = "q=%2f+1&q"
	r.Request.Authority = "api.example.com:8080"
	r.Request.Header = exchange.HeaderOf(exchange.Field{Name: "X-A", Value: "1"}, exchange.Field{Name: "x-a", Value: "2"},
		exchange.Field{Name: "Connection", Value: "X-A"}, exchange.Field{Name: "Transfer-Encoding", Value: "chunked"}, exchange.Field{Name: "Host", Value: "evil"})
	resp, err := do(t, acquire(t, url), r, soon())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Reader.Close()
	if got, want := <-seen, "GET /a%20b/%25x/[?q=%2f+1&q HTTP/1.1\r\nHost: api.example.com:8080\r\nX-A: 1\r\nx-a: 2\r\n\r\n"; got != want {
		t.Errorf("upstream saw\n%q, want\n%q", got, want)
	}
	if got := resp.Header.Fields(); !slices.Equal(got, []exchange.Field{{Name: "X-End", Value: "1"}}) || resp.Status != 200 || resp.Body.Length != 2 {
		t.Errorf("answer %d %v", resp.Status, got)
	}
	if b, err := io.ReadAll(resp.Body.Reader); string(b) != "ok" || err != nil {
		t.Errorf("body %q, %v", b, err)
	}
}

func TestBodiesStreamWithTheirLength(t *testing.T) {
	for _, c := range []struct {
		length       int64
		until, frame string
	}{
		{5, "hello", "Content-Length: 5\r\n\r\nhello"},
		{-1, "0\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
	} {
		url, seen := backend(t, c.until, "HTTP/1.1 204 No Content\r\n\r\n")
		r := get("/")
		r.Request.Method = "POST"
		r.Request.Body = exchange.Body{Reader: io.NopCloser(strings.NewReader("hello")), Length: c.length}
		resp, err := do(t, acquire(t, url), r, soon())
		if err != nil {
			t.Fatal(err)
		}
		if resp.Status != 204 || resp.Body.Reader != nil {
			t.Errorf("answer %+v", resp)
		}
		if got := <-seen; !strings.HasSuffix(got, c.frame) {
			t.Errorf("upstream saw %q", got)
		}
	}
}

func TestTrailersFollowTheBody(t *testing.T) {
	url, _ := backend(t, "\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 7\r\n\r\n")
	resp, err := do(t, acquire(t, url), get("/"), soon())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Reader.Close()
	if _, err := io.ReadAll(resp.Body.Reader); err != nil {
		t.Fatal(err)
	}
	if h := resp.Body.Trailer(); h.Get("X-Sum") != "7" || resp.Body.Length != -1 {
		t.Errorf("trailer %v, length %d", h.Fields(), resp.Body.Length)
	}
}

type brokenBody struct{ err error }

func (b brokenBody) Read([]byte) (int, error) { return 0, b.err }
func (b brokenBody) Close() error             { return nil }

func TestErrorsSayWhoFailed(t *testing.T) {
	silent, _ := backend(t, "never", "")
	garbage, _ := backend(t, "\r\n\r\n", "SSH-2.0-x\r\n\r\n")
	hangup, _ := backend(t, "\r\n\r\n", "")
	switches, _ := backend(t, "\r\n\r\n", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	closed := closedPort(t)
	gone := errors.New("client gone")
	for name, c := range map[string]struct {
		url     string
		timeout time.Duration
		body    error
		cancel  error
		want    error
	}{
		"closed port":     {closed, patience, nil, nil, ErrUnavailable},
		"garbage":         {garbage, patience, nil, nil, ErrUnavailable},
		"hang up":         {hangup, patience, nil, nil, ErrUnavailable},
		"unasked upgrade": {switches, patience, nil, nil, ErrUnavailable},
		"silence":         {silent, 20 * time.Millisecond, nil, nil, ErrTimeout},
		"past deadline":   {silent, -time.Second, nil, nil, ErrTimeout},
		"large body":      {silent, patience, exchange.ErrTooLarge, nil, exchange.ErrTooLarge},
		"client gone":     {silent, patience, nil, gone, gone},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			r := get("/")
			if c.body != nil {
				r.Request.Method, r.Request.Body = "POST", exchange.Body{Reader: brokenBody{c.body}, Length: -1}
			}
			if c.cancel != nil {
				cancel(c.cancel)
			}
			r.Context = ctx
			resp, err := do(t, acquire(t, c.url), r, time.Now().Add(c.timeout))
			if !errors.Is(err, c.want) || resp != nil {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
	none, err := NewPool(Config{}).Acquire(key, &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: closed, Weight: new(uint32)}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := do(t, backendOf(none), get("/"), soon()); !errors.Is(err, ErrUnavailable) {
		t.Error("all weights 0:", err)
	}
}

func closedPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return "http://" + ln.Addr().String()
}

func TestAnotherEndpointIsDialledWhenOneIsClosed(t *testing.T) {
	url, _ := backend(t, "body", "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
	u := acquire(t, closedPort(t), url)
	for range 6 {
		r := get("/")
		r.Request.Method, r.Request.Body = "POST", exchange.Body{Reader: io.NopCloser(strings.NewReader("body")), Length: 4}
		if resp, err := do(t, u, r, soon()); err != nil || resp.Status != 204 {
			t.Fatal(resp, err)
		}
	}
}

func TestAnAnswersBodyEndsWithTheContextAndWithAnInterruption(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer srv.Close()
	revoked := errors.New("revoked")
	for _, byContext := range []bool{true, false} {
		ctx, cancel := context.WithCancelCause(t.Context())
		e := get("/")
		e.Context = ctx
		b := acquire(t, srv.URL)
		resp, err := do(t, b, e, soon())
		if err != nil {
			t.Fatal(err)
		}
		if byContext {
			cancel(revoked)
		} else {
			resp.Interrupt(revoked)
		}
		if _, err := resp.Body.Reader.Read(make([]byte, 1)); !errors.Is(err, revoked) {
			t.Error(err)
		}
		resp.Body.Reader.Close()
		e.End()
		if n := b.upstream.endpoints[0].state.InFlight(); n != 0 {
			t.Errorf("%d are still in flight", n)
		}
		cancel(nil)
	}
}

func TestTLSIsConfiguredByTheCaller(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }))
	defer srv.Close()
	spec := &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: srv.URL}}}
	if _, err := NewPool(Config{}).Acquire(key, spec); err == nil {
		t.Error("https without a TLS configuration")
	}
	refused := NewPool(Config{TLS: func(*configv1.UpstreamTLS) (*tls.Config, error) { return &tls.Config{}, nil }})
	u, err := refused.Acquire(key, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	if _, err := do(t, backendOf(u), get("/"), soon()); !errors.Is(err, ErrUnavailable) {
		t.Error("an unknown authority was trusted:", err)
	}
	trusted := srv.Client().Transport.(*http.Transport).TLSClientConfig
	p := NewPool(Config{TLS: func(s *configv1.UpstreamTLS) (*tls.Config, error) {
		if s == nil {
			t.Error("no settings")
		}
		return trusted.Clone(), nil
	}})
	u, err = p.Acquire(key, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	if resp, err := do(t, backendOf(u), get("/"), soon()); err != nil || resp.Status != 204 {
		t.Error(resp, err)
	}
}

func TestConnectionsOutliveSnapshots(t *testing.T) {
	var mu sync.Mutex
	conns := map[string]bool{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		conns[r.RemoteAddr] = true
	}))
	defer srv.Close()
	p := NewPool(Config{})
	spec := &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: srv.URL}, {Url: "http://unused.invalid", Weight: new(uint32)}}}
	var before *Upstream
	for range 4 {
		u, err := p.Acquire(key, spec)
		if err != nil {
			t.Fatal(err)
		}
		if before != nil {
			before.Release()
			before.Release()
		}
		e := get("/")
		if resp, err := backendOf(u).Do(e, e.Context, soon()); err != nil || resp.Status != 200 {
			t.Fatal(err)
		}
		e.End()
		spec.Endpoints = spec.Endpoints[:1]
		before = u
	}
	if len(conns) != 1 || len(p.endpoints) != 1 || p.Users() != 1 {
		t.Errorf("%d connections, %d endpoints, %d users", len(conns), len(p.endpoints), p.Users())
	}
	other, err := p.Acquire(config.Key{Kind: config.KindUpstream, Workspace: "b", Name: "up"}, spec)
	if err != nil || len(p.endpoints) != 2 {
		t.Error("two upstreams share an endpoint:", err)
	}
	other.Release()
	p.Close()
	if before.Release(); len(p.endpoints) != 0 || p.Users() != 0 {
		t.Error("an endpoint without users is kept")
	}
}

func TestEndpointsAreSchemeHostAndPort(t *testing.T) {
	for _, url := range []string{"", "a:80", "ftp://a", "http://", "http://a/x", "http://u@a", "http://a?x", "http://a#x", "http://a?", "://", "http:a"} {
		if _, err := NewPool(Config{}).Acquire(key, &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: url}}}); err == nil {
			t.Errorf("%q is accepted", url)
		}
	}
}

func TestUpgradeCarriesBytesBothWays(t *testing.T) {
	for _, end := range []string{"client", "context", "interrupt", "unused"} {
		t.Run(end, func(t *testing.T) {
			ended := make(chan struct{})
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer close(ended)
				if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Connection") != "Upgrade" {
					t.Errorf("header %v", r.Header)
				}
				c, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n\r\nhello ")
				rw.Flush()
				io.Copy(c, rw)
			}))
			defer srv.Close()
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			r := get("/ws")
			r.Request.Upgrade = "websocket"
			r.Context = ctx
			resp, err := do(t, acquire(t, srv.URL), r, soon())
			if err != nil || resp.Upgrade == nil || resp.Header.Get("Sec-WebSocket-Accept") != "x" {
				t.Fatal(resp, err)
			}
			revoked := errors.New("revoked")
			if end == "unused" {
				r.End()
				<-ended
				return
			}
			near, far := net.Pipe()
			result := make(chan error, 1)
			go func() { result <- resp.Upgrade(far) }()
			io.WriteString(near, "echo")
			got := make([]byte, 10)
			if _, err := io.ReadFull(near, got); err != nil || string(got) != "hello echo" {
				t.Errorf("got %q, %v", got, err)
			}
			switch end {
			case "context":
				cancel(revoked)
			case "interrupt":
				resp.Interrupt(revoked)
			default:
				near.Close()
			}
			if err := <-result; (end != "client") != errors.Is(err, revoked) {
				t.Error(err)
			}
			<-ended
			near.Close()
		})
	}
}
