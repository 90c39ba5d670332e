package upstream

import (
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
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/upstream/guard"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// spec reads the spec of a document in YAML.
func spec(t *testing.T, kind, text string) *configv1.Resource {
	t.Helper()
	docs, err := config.Decode("t.yaml", []byte("apiVersion: portcullis.dev/v1\nkind: "+kind+"\nmetadata: {name: up}\nspec: "+text+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	return docs[0].Resource
}

func upstreamSpec(t *testing.T, text string, urls ...string) *configv1.Upstream {
	t.Helper()
	u := spec(t, "Upstream", text).GetUpstream()
	for _, url := range urls {
		u.Endpoints = append(u.Endpoints, &configv1.Endpoint{Url: url})
	}
	return u
}

// guarded is a backend of a pool that runs.
func guarded(t *testing.T, upstream, route string, urls ...string) *Backend {
	t.Helper()
	p := running(t)
	u, err := p.Acquire(key, upstreamSpec(t, upstream, urls...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Release)
	return NewBackend(u, spec(t, "Route", route).GetRoute(), &configv1.Backend{Upstream: "up"})
}

// running is a pool whose health is looked after.
func running(t *testing.T) *Pool {
	t.Helper()
	p := NewPool(Config{})
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { _ = p.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		group.Wait()
		p.Cut()
	})
	return p
}

// origin serves until the test ends.
func origin(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = nil
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s.URL
}

// send sends and returns status, body and error; the exchange is over then.
func send(b *Backend, e *exchange.Exchange, wait time.Duration) (int, string, error) {
	e.Received = time.Now()
	defer e.End()
	resp, err := b.Do(e, e.Context, e.Received.Add(wait))
	if err != nil {
		return 0, "", err
	}
	if resp.Body.Reader == nil {
		return resp.Status, "", nil
	}
	defer resp.Body.Reader.Close()
	body, err := io.ReadAll(resp.Body.Reader)
	return resp.Status, string(body), err
}

func method(m string, body string) *exchange.Exchange {
	e := get("/")
	e.Request.Method = m
	if body != "" {
		e.Request.Body = exchange.Body{Reader: io.NopCloser(strings.NewReader(body)), Length: int64(len(body))}
	}
	return e
}

// Each row: what the first answer is, what the route says, and how often the
// upstream is then asked.
func TestWhatIsRetried(t *testing.T) {
	abort := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	unavailable := func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Grpc-Status", "14") }
	for _, c := range []struct {
		name, route, method, body string
		first                     http.HandlerFunc
		asked, status             int
	}{
		{"nothing without retries", `{}`, "GET", "", status(503), 1, 503},
		{"unavailable by default", `{retries: {}}`, "GET", "", status(503), 2, 200},
		{"server error not by default", `{retries: {}}`, "GET", "", status(500), 1, 500},
		{"server error when asked", `{retries: {on: [server_error]}}`, "GET", "", status(500), 2, 200},
		{"a status", `{retries: {statuses: [409]}}`, "GET", "", status(409), 2, 200},
		{"no other status", `{retries: {statuses: [409]}}`, "GET", "", status(503), 1, 503},
		{"a reset", `{retries: {}}`, "GET", "", abort, 2, 200},
		{"gRPC unavailable", `{retries: {nonIdempotent: true}}`, "POST", "", unavailable, 2, 200},
		{"not a POST", `{retries: {}}`, "POST", "", status(503), 1, 503},
		{"a POST when allowed", `{retries: {nonIdempotent: true}}`, "POST", "body", status(503), 2, 200},
		{"a PUT with its body", `{retries: {}}`, "PUT", strings.Repeat("x", 40<<10), status(503), 2, 200},
		{"no body beyond what is kept", `{retries: {}}`, "PUT", strings.Repeat("x", 80<<10), status(503), 1, 503},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int64
			url := origin(t, func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if n := asked.Add(1); err != nil || string(body) != c.body {
					t.Errorf("attempt %d: %d bytes of body, %v", n, len(body), err)
				} else if n == 1 {
					c.first(w, r)
				}
			})
			got, _, err := send(guarded(t, `{}`, c.route, url), method(c.method, c.body), patience)
			if err != nil || got != c.status || int(asked.Load()) != c.asked {
				t.Errorf("%d %v, asked %d times; want %d, %d", got, err, asked.Load(), c.status, c.asked)
			}
		})
	}
}

// An attempt that takes too long goes to another endpoint; the caller's deadline
// holds for all of them together.
func TestAttemptsHaveADeadlineOfTheirOwn(t *testing.T) {
	hang := origin(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	good := origin(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "good") })
	b := guarded(t, `{balance: {algorithm: round_robin}}`, `{retries: {on: [timeout], attempts: 1}, timeouts: {attempt: 50ms}}`, hang, good)
	for range 4 {
		if got, body, err := send(b, get("/"), patience); err != nil || got != 200 || body != "good" {
			t.Fatalf("%d %q %v", got, body, err)
		}
	}
	b = guarded(t, `{}`, `{retries: {on: [timeout], attempts: 5}, timeouts: {attempt: 10s}}`, hang)
	began := time.Now()
	if _, _, err := send(b, get("/"), 100*time.Millisecond); !errors.Is(err, ErrTimeout) || time.Since(began) > 5*time.Second {
		t.Fatalf("%v after %v", err, time.Since(began))
	}
}

// When everything fails, retries add no more load than their budget.
func TestRetriesDoNotMultiplyLoad(t *testing.T) {
	var asked atomic.Int64
	url := origin(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		time.Sleep(2 * time.Millisecond)
		w.WriteHeader(503)
	})
	b := guarded(t, `{retryBudget: {ratio: 0.2, min: 1}}`, `{retries: {attempts: 5, backoff: 1ms}}`, url)
	const clients, each = 20, 25
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for range each {
				if got, _, err := send(b, get("/"), patience); got != 503 || err != nil {
					t.Errorf("%d %v", got, err)
				}
			}
		})
	}
	group.Wait()
	load := float64(asked.Load()) / (clients * each)
	t.Logf("everything fails, five retries allowed: %.2f requests to the upstream for each of a client", load)
	// At most 4 of 20 are under way at once; without a budget it is 6.
	if load > 2 || load < 1.01 {
		t.Errorf("%.2f: expected more than one and less than two", load)
	}
	if n := b.upstream.budget.Len(); n != 0 {
		t.Errorf("%d places in the budget are left taken", n)
	}
}

func TestHedgingCutsTheTail(t *testing.T) {
	var interrupted atomic.Int64
	var turn atomic.Int64
	slowly := func(w http.ResponseWriter, r *http.Request) {
		if turn.Add(1)%5 == 0 {
			select {
			case <-r.Context().Done():
				interrupted.Add(1)
				return
			case <-time.After(300 * time.Millisecond):
			}
		}
		io.WriteString(w, "ok")
	}
	urls := []string{origin(t, slowly), origin(t, slowly), origin(t, slowly)}
	worst := func(route string) (slowest time.Duration) {
		b := guarded(t, `{outlierDetection: {consecutiveFailures: 1}, retryBudget: {min: 10}}`, route, urls...)
		for range 20 {
			began := time.Now()
			if got, body, err := send(b, get("/"), patience); got != 200 || body != "ok" || err != nil {
				t.Fatalf("%d %q %v", got, body, err)
			}
			slowest = max(slowest, time.Since(began))
		}
		for _, s := range b.upstream.pool.Status() {
			if len(s.Out) != 0 || s.Requests != 0 {
				t.Errorf("who lost is blamed, or not over: %+v", s)
			}
		}
		return slowest
	}
	without := worst(`{}`)
	with := worst(`{hedging: {delay: 20ms}}`)
	t.Logf("slowest of 20, each fifth answer takes 300 ms: %v without, %v with hedging", without, with)
	if without < 250*time.Millisecond || with > without/2 {
		t.Errorf("%v without, %v with hedging", without, with)
	}
	for deadline := time.Now().Add(patience); interrupted.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("those who lost are not interrupted")
		}
	}
}

// A request that is hedged gets the good answer, whichever comes first, and a bad
// one when there is no better.
func TestAHedgedRequestPrefersAGoodAnswer(t *testing.T) {
	bad := origin(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	good := origin(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "good") })
	for range 10 {
		b := guarded(t, `{}`, `{hedging: {delay: 1ms}, retries: {backoff: 1ms}}`, bad, good)
		if got, body, err := send(b, get("/"), patience); got != 200 || body != "good" || err != nil {
			t.Fatalf("%d %q %v", got, body, err)
		}
	}
	b := guarded(t, `{}`, `{hedging: {delay: 1ms}, retries: {backoff: 1ms}}`, bad)
	if got, _, err := send(b, get("/"), patience); got != 503 || err != nil {
		t.Fatalf("%d %v", got, err)
	}
	b = guarded(t, `{}`, `{hedging: {delay: 1ms}}`, closedPort(t), closedPort(t))
	if _, _, err := send(b, get("/"), patience); !errors.Is(err, ErrUnavailable) {
		t.Fatal(err)
	}
	b = guarded(t, `{}`, `{hedging: {delay: 1s}}`, closedPort(t), good)
	if got, _, err := send(b, get("/"), patience); got != 200 || err != nil {
		t.Fatalf("%d %v", got, err)
	}
}

// The breaker refuses what is beyond its bounds, at once.
func TestBreakerRefuses(t *testing.T) {
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	url := origin(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-release })
	b := guarded(t, `{circuitBreaker: {maxRequests: 2}}`, `{}`, url)
	var group sync.WaitGroup
	for range 2 {
		group.Go(func() {
			if got, _, err := send(b, get("/"), patience); got != 200 || err != nil {
				t.Errorf("%d %v", got, err)
			}
		})
		<-arrived
	}
	if _, _, err := send(b, get("/"), patience); !errors.Is(err, ErrOverloaded) || errors.Is(err, ErrUnavailable) {
		t.Errorf("the third: %v", err)
	}
	close(release)
	group.Wait()
	if got, _, err := send(b, get("/"), patience); got != 200 || err != nil {
		t.Errorf("afterwards: %d %v", got, err)
	}
	if s := b.upstream.pool.Status()[0]; s.Refused[guard.Requests] != 1 || s.Requests != 0 {
		t.Errorf("%+v", s)
	}
}

// With one connection requests wait for each other, also when it is idle and goes
// to another endpoint; with nowhere to wait they are refused.
func TestConnectionsAreBounded(t *testing.T) {
	var open, most atomic.Int64
	p := NewPool(Config{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		n := open.Add(1)
		for seen := most.Load(); n > seen && !most.CompareAndSwap(seen, n); seen = most.Load() {
		}
		return &watched{Conn: conn, closed: sync.OnceFunc(func() { open.Add(-1) })}, nil
	}})
	defer p.Cut()
	ok := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }
	u, err := p.Acquire(key, upstreamSpec(t, `{circuitBreaker: {maxConnections: 1}, balance: {algorithm: round_robin}}`, origin(t, ok), origin(t, ok)))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	b := backendOf(u)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 10 {
				if got, _, err := send(b, get("/"), patience); got != 200 || err != nil {
					t.Errorf("%d %v", got, err)
				}
			}
		})
	}
	group.Wait()
	if n := b.upstream.breaker.Len(guard.Connections); n > 1 || most.Load() != 1 {
		t.Errorf("%d connections, %d at once: expected one", n, most.Load())
	}
	arrived, release := make(chan struct{}), make(chan struct{})
	url := origin(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-release })
	b = guarded(t, `{circuitBreaker: {maxConnections: 1, maxPending: 1}}`, `{}`, url)
	group.Go(func() { _, _, _ = send(b, get("/"), patience) })
	<-arrived
	group.Go(func() { _, _, _ = send(b, get("/"), patience) })
	for b.upstream.breaker.Len(guard.Pending) == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, _, err := send(b, get("/"), patience); !errors.Is(err, ErrOverloaded) {
		t.Errorf("nowhere to wait: %v", err)
	}
	release <- struct{}{}
	<-arrived
	release <- struct{}{}
	group.Wait()
	if n := b.upstream.breaker.Len(guard.Pending); n != 0 {
		t.Errorf("%d are left waiting", n)
	}
}

// watched is a connection whose end is heard of.
type watched struct {
	net.Conn
	closed func()
}

func (w *watched) Close() error {
	w.closed()
	return w.Conn.Close()
}

// What the upstream bears is shared out by criticality.
func TestConcurrencyIsLimitedByCriticality(t *testing.T) {
	arrived, release := make(chan struct{}, 100), make(chan struct{})
	url := origin(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-release })
	p := running(t)
	u, err := p.Acquire(key, upstreamSpec(t, `{adaptiveConcurrency: {min: 10, max: 10}}`, url))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	var group sync.WaitGroup
	fill := func(criticality string, want int) {
		t.Helper()
		b := NewBackend(u, spec(t, "Route", "{criticality: "+criticality+"}").GetRoute(), &configv1.Backend{Upstream: "up"})
		for range want {
			group.Go(func() { _, _, _ = send(b, get("/"), patience) })
			<-arrived
		}
		if _, _, err := send(b, get("/"), patience); !errors.Is(err, ErrOverloaded) {
			t.Errorf("%s beyond its share: %v", criticality, err)
		}
	}
	fill("sheddable", 8)
	fill("normal", 2)
	fill("critical", 2)
	close(release)
	group.Wait()
	if s := p.Status()[0]; s.Shed != 3 || s.Limit != 10 || u.adaptive.Len() != 0 {
		t.Errorf("%+v", s)
	}
}

func TestMirrorsGetCopies(t *testing.T) {
	type copyOf struct{ method, path, mark, body string }
	copies := make(chan copyOf, 10)
	hold := make(chan struct{})
	mirror := origin(t, func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		copies <- copyOf{r.Method, r.URL.RequestURI(), r.Header.Get("X-Portcullis-Mirror"), string(body)}
		<-hold
	})
	var marked atomic.Bool
	main := origin(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		marked.Store(marked.Load() || r.Header.Get("X-Portcullis-Mirror") != "")
		io.WriteString(w, "main")
	})
	p := running(t)
	u, err := p.Acquire(key, upstreamSpec(t, `{}`, main))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	m, err := p.Acquire(config.Key{Kind: config.KindUpstream, Workspace: "default", Name: "mirror"}, upstreamSpec(t, `{}`, mirror))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	b := NewBackend(u, &configv1.Route{}, &configv1.Backend{Upstream: "up"}, NewMirror(m, &configv1.Mirror{Upstream: "mirror"}))
	long := strings.Repeat("x", 30<<10)
	for _, c := range []struct{ method, body string }{{"GET", ""}, {"POST", "hello"}, {"PUT", long}} {
		began := time.Now()
		if got, body, err := send(b, method(c.method, c.body), patience); got != 200 || body != "main" || err != nil {
			t.Fatalf("%d %q %v", got, body, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a mirror that hangs delays the request: %v", took)
		}
		select {
		case got := <-copies:
			if want := (copyOf{c.method, "/", "true", c.body}); got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("%s: no copy came", c.method)
		}
	}
	if _, _, err := send(b, method("POST", strings.Repeat("x", 100<<10)), patience); err != nil {
		t.Fatal(err)
	}
	close(hold)
	zero := 0.0
	never := NewBackend(u, &configv1.Route{}, &configv1.Backend{Upstream: "up"}, NewMirror(m, &configv1.Mirror{Upstream: "mirror", Ratio: &zero}))
	for range 20 {
		if _, _, err := send(never, get("/"), patience); err != nil {
			t.Fatal(err)
		}
	}
	p.mirrors.done.Wait()
	if len(copies) != 0 || marked.Load() {
		t.Errorf("%d copies too many, the original is marked: %t", len(copies), marked.Load())
	}
}

func TestTheUpstreamIsToldHowLongItHas(t *testing.T) {
	fields := make(chan http.Header, 1)
	url := origin(t, func(_ http.ResponseWriter, r *http.Request) { fields <- r.Header })
	b := guarded(t, `{}`, `{timeouts: {deadlineHeader: X-Timeout-Ms, attempt: 2s}}`, url)
	e := get("/")
	e.Request.Header.Add("x-timeout-ms", "999999")
	if _, _, err := send(b, e, patience); err != nil {
		t.Fatal(err)
	}
	var ms int
	if got := (<-fields)["X-Timeout-Ms"]; len(got) != 1 {
		t.Errorf("%q", got)
	} else if _, err := fmt.Sscan(got[0], &ms); err != nil || ms > 2000 || ms < 1 {
		t.Errorf("%q", got)
	}
	if got := e.Request.Header.Get("X-Timeout-Ms"); got != "999999" {
		t.Errorf("the exchange's own request is changed: %q", got)
	}
	e = method("POST", "")
	e.Request.Header.Add("Content-Type", "application/grpc+proto")
	e.Request.Header.Add("Grpc-Timeout", "500m")
	if _, _, err := send(guarded(t, `{}`, `{}`, url), e, patience); err != nil {
		t.Fatal(err)
	}
	if left, ok := grpcTimeout((<-fields).Get("Grpc-Timeout")); !ok || left > 500*time.Millisecond {
		t.Errorf("%v %t", left, ok)
	}
	hang := origin(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	e = method("POST", "")
	e.Request.Header.Add("Content-Type", "application/grpc")
	e.Request.Header.Add("Grpc-Timeout", "50m")
	if _, _, err := send(guarded(t, `{}`, `{}`, hang), e, time.Minute); !errors.Is(err, ErrTimeout) {
		t.Errorf("the caller's own deadline: %v", err)
	}
}

func TestGRPCTimeouts(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "4m": 4 * time.Millisecond, "5u": 5 * time.Microsecond, "6n": 6, "99999999H": 1<<63 - 1,
	} {
		if got, ok := grpcTimeout(text); !ok || got != want {
			t.Errorf("%s: %v %t", text, got, ok)
		}
	}
	for _, text := range []string{"", "S", "1", "123456789S", "-1S", "1s", "1.5S", " 1S"} {
		if got, ok := grpcTimeout(text); ok {
			t.Errorf("%q: %v", text, got)
		}
	}
	for left, want := range map[time.Duration]string{0: "1m", 1500 * time.Microsecond: "1m", time.Minute: "60000m", 1000 * time.Hour: "3600000S"} {
		if got := grpcTimeoutText(left); got != want {
			t.Errorf("%v: %s, want %s", left, got, want)
		}
	}
}

// A body that falls silent ends.
func TestSilentAnswersEnd(t *testing.T) {
	url := origin(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	_, body, err := send(guarded(t, `{}`, `{timeouts: {idle: 100ms}}`, url), get("/"), patience)
	if body != "begun" || err == nil {
		t.Errorf("%q %v", body, err)
	}
}
