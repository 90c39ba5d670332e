package upstream

import (
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/upstream/health"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// eventually waits for what health finds out.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in time", what)
		}
	}
}

// outOf lists the endpoints that are out, by reason and what was seen.
func outOf(p *Pool) []string {
	var out []string
	for _, s := range p.Status() {
		for _, e := range s.Out {
			out = append(out, string(e.Reason)+": "+e.Detail)
		}
	}
	return out
}

// An active check takes an endpoint out and brings it back; what it knows survives
// a change of configuration.
func TestHealthChecksOverTheWire(t *testing.T) {
	var sick atomic.Bool
	var served atomic.Int64
	ill := origin(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ready" {
			served.Add(1)
		} else if sick.Load() {
			w.WriteHeader(503)
		}
	})
	well := origin(t, func(http.ResponseWriter, *http.Request) {})
	const settings = `{balance: {algorithm: round_robin}, healthCheck: {http: {path: /ready}, interval: 100ms, unhealthy: 2, healthy: 1}, panicThreshold: 0}`
	p := running(t)
	u, err := p.Acquire(key, upstreamSpec(t, settings, ill, well))
	if err != nil {
		t.Fatal(err)
	}
	b := backendOf(u)
	asks := func(b *Backend) int64 {
		before := served.Load()
		for range 10 {
			if got, _, err := send(b, get("/"), patience); got != 200 || err != nil {
				t.Errorf("%d %v", got, err)
			}
		}
		return served.Load() - before
	}
	if asks(b) == 0 {
		t.Error("an endpoint is not used before its first check")
	}
	sick.Store(true)
	eventually(t, "out", func() bool { return slices.Equal(outOf(p), []string{"health_check: status 503"}) })
	eventually(t, "taken over", func() bool { return asks(b) == 0 })
	// A weight changes; nothing that is known does.
	changed := upstreamSpec(t, settings, ill, well)
	weight := uint32(7)
	changed.Endpoints[1].Weight = &weight
	next, err := p.Acquire(key, changed)
	if err != nil {
		t.Fatal(err)
	}
	u.Release()
	defer next.Release()
	b = backendOf(next)
	if n := asks(b); n != 0 || !slices.Equal(outOf(p), []string{"health_check: status 503"}) {
		t.Errorf("after the swap: %d requests to it, %v", n, outOf(p))
	}
	sick.Store(false)
	eventually(t, "back", func() bool { return len(outOf(p)) == 0 && asks(b) > 0 })
}

// One of three endpoints fails every second request, after a while. What a client
// sees of it without and with the policies.
func TestOneOfThreeFailsHalf(t *testing.T) {
	const requests = 300
	measure := func(upstream, route string) (success float64, median, slow time.Duration) {
		var n atomic.Int64
		bad := origin(t, func(w http.ResponseWriter, _ *http.Request) {
			if n.Add(1)%2 == 0 {
				time.Sleep(5 * time.Millisecond)
				w.WriteHeader(500)
			}
		})
		ok := func(http.ResponseWriter, *http.Request) {}
		b := guarded(t, upstream, route, bad, origin(t, ok), origin(t, ok))
		var took []time.Duration
		good := 0
		for range requests {
			began := time.Now()
			if status, _, err := send(b, get("/"), patience); err == nil && status == 200 {
				good++
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		return float64(good) / requests, took[requests/2], took[requests*99/100]
	}
	type row struct {
		name         string
		success      float64
		median, slow time.Duration
	}
	var rows []row
	add := func(name, upstream, route string) row {
		r := row{name: name}
		r.success, r.median, r.slow = measure(upstream, route)
		rows = append(rows, r)
		return r
	}
	const turn = `balance: {algorithm: round_robin}`
	const detect = `outlierDetection: {failureRatio: 0.3, minRequests: 10, ejection: 1m}`
	without := add("without", `{`+turn+`}`, `{}`)
	retried := add("retries", `{`+turn+`}`, `{retries: {on: [server_error], attempts: 2, backoff: 1ms}}`)
	detected := add("outlier detection", `{`+turn+`, `+detect+`}`, `{}`)
	both := add("both", `{`+turn+`, `+detect+`}`, `{retries: {on: [server_error], attempts: 2, backoff: 1ms}}`)
	for _, r := range rows {
		t.Logf("%-18s success %6.2f %%, p50 %v, p99 %v", r.name, 100*r.success, r.median.Round(time.Microsecond), r.slow.Round(time.Microsecond))
	}
	if without.success > 0.9 || retried.success < 0.99 || detected.success < 0.95 || both.success < 0.999 {
		t.Errorf("%+v", rows)
	}
}

// An endpoint that refuses or hangs is noticed by live traffic alone, and the
// client hardly notices.
func TestRefusingAndHangingEndpoints(t *testing.T) {
	good := origin(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })
	hang := origin(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for name, c := range map[string]struct{ url, route, want string }{
		"refuses": {closedPort(t), `{}`, "outlier: connection refused"},
		"hangs":   {hang, `{retries: {on: [timeout]}, timeouts: {attempt: 30ms}}`, "outlier: timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			b := guarded(t, `{balance: {algorithm: round_robin}, outlierDetection: {consecutiveFailures: 3, ejection: 1m}, panicThreshold: 0}`, c.route, c.url, good)
			for range 30 {
				if status, body, err := send(b, get("/"), patience); status != 200 || body != "ok" || err != nil {
					t.Fatalf("%d %q %v", status, body, err)
				}
			}
			if got := outOf(b.upstream.pool); len(got) != 1 || got[0] != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
			s := b.upstream.pool.Status()[0]
			if s.Ejections != 1 || s.Usable() != 1 || s.Endpoints != 2 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A name that cannot be looked up stands among what is out.
func TestUnresolvedNamesAreTold(t *testing.T) {
	p := NewPool(Config{Lookup: (&names{}).lookup})
	defer p.Close()
	u, err := p.Acquire(key, &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: "http://none.example:80", Resolve: configv1.Resolve_RESOLVE_ADDRESSES}}})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Release()
	eventually(t, "told", func() bool {
		s := p.Status()[0]
		return len(s.Out) == 1 && s.Out[0].Reason == health.Unresolved && s.Out[0].Address == "none.example" && s.Out[0].Detail != "" && s.Usable() == 0
	})
}

// The same policies hold over HTTP/2: what is refused is retried with its body, and
// who loses a race is interrupted without blame.
func TestPoliciesOverHTTP2(t *testing.T) {
	var asked, interrupted atomic.Int64
	serve := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		n := asked.Add(1)
		switch {
		case r.Method == "POST" && n == 1:
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "14")
		case r.Method == "POST":
			_, _ = w.Write(body)
		case n == 3:
			<-r.Context().Done()
			interrupted.Add(1)
		}
	}
	one, _ := serveHTTP2(t, serve)
	other, _ := serveHTTP2(t, serve)
	const upstream = `{protocol: http2, outlierDetection: {consecutiveFailures: 1}, circuitBreaker: {maxConnections: 2, maxPending: 10}}`
	b := guarded(t, upstream, `{retries: {nonIdempotent: true, backoff: 1ms}, hedging: {delay: 20ms}}`, one, other)
	e := method("POST", "hello")
	e.Request.Header.Add("Content-Type", "application/grpc")
	if status, body, err := send(b, e, patience); status != 200 || body != "hello" || err != nil || asked.Load() != 2 {
		t.Errorf("%d %q %v, asked %d times", status, body, err, asked.Load())
	}
	began := time.Now()
	if status, _, err := send(b, get("/"), patience); status != 200 || err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("%d %v after %v", status, err, time.Since(began))
	}
	eventually(t, "interrupted", func() bool { return interrupted.Load() == 1 })
	if out := outOf(b.upstream.pool); len(out) != 0 {
		t.Errorf("who lost is blamed: %v", out)
	}
}
