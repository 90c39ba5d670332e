package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/trace"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/pkg/telemetry"
)

// origin is an upstream that notes what reaches it.
type origin struct {
	*httptest.Server
	mu   sync.Mutex
	seen []http.Header
}

func newOrigin(t testing.TB, r *rig, handle http.HandlerFunc) *origin {
	o := &origin{}
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		o.mu.Lock()
		o.seen = append(o.seen, req.Header.Clone())
		o.mu.Unlock()
		handle(w, req)
	}))
	t.Cleanup(func() {
		r.pool.Close()
		o.Close()
	})
	return o
}

// last returns the header of the newest request and forgets all.
func (o *origin) last() http.Header {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.seen) == 0 {
		return nil
	}
	h := o.seen[len(o.seen)-1]
	o.seen = nil
	return h
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

func upstreamAt(name, url string) string {
	return doc("Upstream", "default", name, "{endpoints: [{url: '"+url+"'}]}")
}

const refusals = `
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: jwt}
spec:
  matches: [{path: {prefix: /jwt}}]
  policies:
    - jwt: {issuers: [local], audiences: ["https://api.example"]}
    - authorize: {rules: [{name: reader, scopes: ["orders:read"]}]}
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: rule}
spec:
  public: true
  matches: [{path: {prefix: /rule}}]
  policies: [{authorize: {rules: [{name: never, require: "request.method == 'BREW'"}]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: expression}
spec:
  public: true
  matches: [{path: {prefix: /expression}}]
  policies: [{authorize: {rules: [{name: tenant, require: "request.headers['x-tenant'] == 'a'"}]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: limit}
spec:
  public: true
  matches: [{path: {prefix: /limit}}]
  policies: [{rateLimit: {limits: [{requests: 1, window: 1h}]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: down}
spec: {public: true, matches: [{path: {prefix: /down}}], backends: [{upstream: down}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: slow}
spec: {public: true, matches: [{path: {prefix: /slow}}], backends: [{upstream: up}], timeouts: {request: 50ms}}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: key}
spec:
  matches: [{path: {prefix: /key}}]
  policies: [{apiKey: {header: X-Key}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: remote}
spec:
  matches: [{path: {prefix: /remote}}]
  policies: [{jwt: {issuers: [remote], audiences: ["https://api.example"]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: remote}
spec: {issuer: "https://remote.example", jwksUri: "https://remote.example/keys"}
`

// counted returns how many requests each reason was counted for, by route.
func (r *rig) counted() map[string]int64 {
	r.Helper()
	scopes, err := r.counters.Produce(context.Background())
	if err != nil {
		r.Fatal(err)
	}
	out := map[string]int64{}
	for _, scope := range scopes {
		for _, metric := range scope.Metrics {
			if metric.Name != "portcullis.requests" {
				continue
			}
			for _, p := range metric.Data.(metricdata.Sum[int64]).DataPoints {
				for _, a := range p.Attributes.ToSlice() {
					if strings.Contains(string(a.Key), "reason") {
						out[a.Value.AsString()] += p.Value
					}
				}
			}
		}
	}
	return out
}

// Answer, ring and counter tell the same reason; nothing reached the upstream.
func TestRefusals(t *testing.T) {
	r := newRig(t)
	up := newOrigin(t, r, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			<-req.Context().Done()
		}
	})
	down := httptest.NewServer(nil)
	down.Close()
	refuse := func(e *exchange.Exchange, status int, reason policy.Reason) {
		t.Helper()
		before := r.counted()[string(reason)]
		a := r.do(e)
		var p struct {
			Type, Title, Detail, Reason string
			Status                      int
			RequestID                   string `json:"request_id"`
			TraceID                     string `json:"trace_id"`
		}
		if err := json.Unmarshal([]byte(a.body), &p); err != nil {
			t.Fatalf("%s: %q: %v", reason, a.body, err)
		}
		if a.status != status || p.Status != status || p.Reason != string(reason) || p.Title != reason.Title() || p.Detail == "" ||
			p.Type != "https://portcullis.dev/problems/"+string(reason) || p.RequestID != e.ID || len(p.TraceID) != 32 ||
			a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %+v %+v", reason, a.status, p, a.header)
		}
		rec := r.decision(e.ID)
		if rec.Reason != string(reason) || rec.Status != int32(status) || rec.TraceId != p.TraceID || rec.Node != "n1" || rec.Peer != "192.0.2.7" {
			t.Errorf("%s: the ring says %v", reason, rec)
		}
		if got := r.counted()[string(reason)]; got != before+1 {
			t.Errorf("%s: counted %d times", reason, got-before)
		}
		if strings.Contains(a.body, "127.0.0.1") {
			t.Errorf("%s: the client learns of the upstream: %s", reason, a.body)
		}
	}
	refuse(request("GET", "x/"), 503, policy.NotReady)
	r.apply(refusals + issuer("default", "local", "https://local.example", secret) + upstreamAt("up", up.URL) + upstreamAt("down", down.URL))
	token := func(changes map[string]any) *exchange.Exchange {
		return request("GET", "x/jwt", bearer(mint(secret, changes))...)
	}
	now := started.Unix()

	refuse(request("GET", "x/none"), 404, policy.NoRoute)
	refuse(request("GET", "x/jwt"), 401, policy.CredentialMissing)
	refuse(request("GET", "x/jwt", "Authorization", "Basic YTpi"), 401, policy.CredentialMalformed)
	refuse(request("GET", "x/jwt", "Authorization", "Bearer a", "authorization", "Bearer b"), 400, policy.CredentialDuplicate)
	refuse(token(map[string]any{"exp": now - 600, "iat": now - 1200}), 401, policy.TokenExpired)
	refuse(token(map[string]any{"nbf": now + 600}), 401, policy.TokenNotYetValid)
	refuse(token(map[string]any{"aud": "https://other.example"}), 401, policy.TokenWrongAudience)
	refuse(token(map[string]any{"iss": "https://other.example"}), 401, policy.TokenWrongIssuer)
	refuse(request("GET", "x/jwt", bearer(mint(otherSecret, nil))...), 401, policy.TokenBadSignature)
	refuse(token(map[string]any{"scope": "none"}), 403, policy.ScopeMissing)
	refuse(request("GET", "x/remote", bearer(mintBy(0, map[string]any{"iss": "https://remote.example"}))...), 503, policy.KeysUnavailable)
	refuse(request("GET", "x/key", "X-Key", "pc_none"), 401, policy.CredentialMalformed)
	refuse(request("GET", "x/rule"), 403, policy.RuleDenied)
	refuse(request("GET", "x/expression"), 403, policy.ExpressionError)
	refuse(request("GET", "x/down"), 502, policy.UpstreamUnavailable)
	if up.last() != nil {
		t.Error("a refused request reached the upstream")
	}
	refuse(request("GET", "x/slow"), 504, policy.UpstreamTimeout)
	if got := r.do(request("GET", "x/limit")); got.status != 200 {
		t.Fatal(got)
	}
	refuse(request("GET", "x/limit"), 429, policy.LimitExceeded)
	if rec := r.counted(); rec["client_gone"] != 0 {
		t.Error(rec)
	}
	for _, broken := range []struct {
		err    error
		status int
		reason policy.Reason
	}{{exchange.ErrTooLarge, 413, policy.RequestTooLarge}, {exchange.ErrMalformed, 400, policy.RequestMalformed}} {
		e := request("POST", "x/jwt", bearer(mint(secret, nil))...)
		e.Request.Body = exchange.Body{Reader: failing{broken.err}, Length: -1}
		refuse(e, broken.status, broken.reason)
	}
	// A client that leaves is no fault of the upstream.
	gone, leave := context.WithCancel(t.Context())
	e := request("GET", "x/jwt", bearer(mint(secret, nil))...)
	e.Request.Body = exchange.Body{Reader: leaving{leave, gone}, Length: -1}
	e.Context = gone
	refuse(e, 499, policy.ClientGone)
	// The front end's own refusals go the same way.
	e = request("GET", "x/")
	e.Why.Detail = "two of a kind"
	resp := r.g.Refuse(e, "request_malformed", 431)
	e.Result.Status = resp.Status
	e.End()
	if rec := r.decision(e.ID); resp.Status != 431 || rec.Reason != "request_malformed" || rec.Detail != "two of a kind" || rec.Version.GetRevision() != r.revision {
		t.Errorf("%d %v", resp.Status, rec)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
func (f failing) Close() error             { return nil }

// leaving is the body of a client that goes away while it sends.
type leaving struct {
	leave context.CancelFunc
	gone  context.Context
}

func (l leaving) Read([]byte) (int, error) {
	l.leave()
	<-l.gone.Done()
	return 0, net.ErrClosed
}
func (l leaving) Close() error { return nil }

// What a client says of itself under our names never passes; what was proved
// does, harmless and whole.
func TestIdentityHeaders(t *testing.T) {
	r := newRig(t)
	up := newOrigin(t, r, ok)
	r.apply(refusals + issuer("default", "local", "https://local.example", secret) + upstreamAt("up", up.URL) + upstreamAt("down", up.URL) +
		doc("Route", "default", "public", "{public: true, matches: [{path: {prefix: /public}}], backends: [{upstream: up}]}"))
	forged := []string{"X-Portcullis-Subject", "root", "x-portcullis-scopes", "admin", "X-PORTCULLIS-ANYTHING", "1", "X-Portcullis-", "2", "X-Tenant", "a"}
	ours := func(h http.Header) []string {
		var out []string
		for name, values := range h {
			if strings.HasPrefix(name, "X-Portcullis-") {
				out = append(out, name[len("X-Portcullis-"):]+"="+strings.Join(values, "|"))
			}
		}
		slices.Sort(out)
		return out
	}
	for _, c := range []struct {
		path   string
		claims map[string]any
		want   string
	}{
		{"x/public", nil, "[]"},
		{"x/jwt", map[string]any{}, "[Auth-Method=jwt Client=web Issuer=https://local.example Scopes=orders:read Subject=alice]"},
		{"x/jwt", map[string]any{"client_id": nil}, "[Auth-Method=jwt Issuer=https://local.example Scopes=orders:read Subject=alice]"},
		// The verifier lets no control character in: TestFieldValues has those.
		{"x/jwt", map[string]any{"roles": []string{"a,b", "c"}, "groups": []string{"\u00fc", " x ", "50%"}},
			"[Auth-Method=jwt Client=web Groups=%C3%BC,%20x%20,50%25 Issuer=https://local.example Roles=a%2Cb,c Scopes=orders:read Subject=alice]"},
		{"x/jwt", map[string]any{"sub": "ali\u212Ae b"}, "[Auth-Method=jwt Client=web Issuer=https://local.example Scopes=orders:read Subject=ali%E2%84%AAe b]"},
	} {
		e := request("GET", c.path, forged...)
		if c.claims != nil {
			e.Request.Header.Add("Authorization", "Bearer "+mint(secret, c.claims))
		}
		if got := r.do(e); got.status != 200 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		h := up.last()
		if got := fmt.Sprint(ours(h)); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		if h.Get("X-Tenant") != "a" || h.Get("X-Admin") != "" {
			t.Errorf("%v", h)
		}
	}
}

// Every list of values comes out of its header as it went in, and no value can
// end the field.
func TestFieldValues(t *testing.T) {
	text := rapid.OneOf(rapid.StringOfN(rapid.SampledFrom([]rune(" ,%aü\r\n\x00\t;=\x7f")), 1, 6, -1), rapid.StringN(1, 8, -1))
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(text, 1, 4).Draw(t, "values")
		separator := rapid.SampledFrom([]string{" ", ","}).Draw(t, "separator")
		var h exchange.Header
		addList(&h, "X", values, separator)
		field := h.Get("X")
		if strings.TrimSpace(field) != field || strings.ContainsFunc(field, func(c rune) bool { return c < ' ' || c > '~' }) {
			t.Fatalf("%q cannot stand in a header", field)
		}
		var back []string
		for part := range strings.SplitSeq(field, separator) {
			value, err := url.PathUnescape(part)
			if err != nil {
				t.Fatal(err)
			}
			back = append(back, value)
		}
		if !slices.Equal(back, values) {
			t.Fatalf("%q became %q through %q", values, back, field)
		}
	})
}

const caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestTraceContext(t *testing.T) {
	r := newRig(t)
	up := newOrigin(t, r, ok)
	r.apply(doc("Route", "default", "a", "{public: true, backends: [{upstream: up}]}") + upstreamAt("up", up.URL))
	send := func(fields ...string) http.Header {
		t.Helper()
		if got := r.do(request("GET", "x/", append(fields, "Tracestate", "a=b", "Baggage", "user=1")...)); got.status != 200 {
			t.Fatal(got)
		}
		return up.last()
	}
	for _, parents := range [][]string{{caller}, nil, {"nonsense"}, {caller, caller}} {
		var fields []string
		for _, p := range parents {
			fields = append(fields, "traceparent", p)
		}
		h := send(fields...)
		own, err := telemetry.ParseTraceParent(h.Get("Traceparent"))
		if err != nil || len(h["Traceparent"]) != 1 || strings.Contains(caller, own.TraceIDString()) || h.Get("Tracestate")+h.Get("Baggage") != "" {
			t.Errorf("untrusted %v became %v", parents, h)
		}
	}
	r.apply(doc("Gateway", "", "default", "{tracing: {trustIncoming: true}}"))
	if h := send("Traceparent", caller); h.Get("Traceparent") != caller || h.Get("Tracestate") != "a=b" || h.Get("Baggage") != "user=1" {
		t.Errorf("trusted: %v", h)
	}
	for _, fields := range [][]string{{"Traceparent", "nonsense"}, {"Traceparent", caller, "Traceparent", caller}} {
		if h := send(fields...); strings.Contains(h.Get("Traceparent"), caller[3:35]) || len(h["Traceparent"]) != 1 || h.Get("Tracestate")+h.Get("Baggage") != "" {
			t.Errorf("trusted, but %v: %v", fields, h)
		}
	}
}

// spans notes what it is asked to begin.
type spans struct {
	silent
	began []telemetry.Decision
	names []string
}

func (s *spans) Start(ctx context.Context, d telemetry.Decision, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	s.began, s.names = append(s.began, d), append(s.names, name)
	return s.silent.Start(ctx, d, name, opts...)
}

func TestSpans(t *testing.T) {
	tel, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "test", Endpoint: "http://127.0.0.1:1", Timeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = tel.Shutdown(ctx) // nobody collects
	}()
	r := newRig(t)
	tracer := &spans{}
	r.g.cfg.Sampler, r.g.cfg.Tracer = tel.Sampler, tracer
	up := newOrigin(t, r, ok)
	r.apply(doc("Route", "default", "a", "{public: true, matches: [{path: {template: '/u/{id}'}}], backends: [{upstream: up}]}") + upstreamAt("up", up.URL) +
		doc("Gateway", "", "default", "{tracing: {ratio: 1}}"))
	r.do(request("GET", "x/u/7", "Traceparent", caller))
	sent := up.last().Get("Traceparent")
	if len(tracer.began) != 1 || tracer.names[0] != "GET /u/{id}" || tracer.began[0].Link.String() != caller || !tracer.began[0].Parent.IsZero() ||
		tracer.began[0].Self.String() != sent || !strings.HasSuffix(sent, "3") {
		t.Errorf("untrusted: %v %+v; sent %s", tracer.names, tracer.began, sent)
	}
	r.do(request("GET", "x/none")) // which has no route to name a span by
	r.apply(doc("Gateway", "", "default", "{tracing: {ratio: 0, trustIncoming: true}}"))
	r.do(request("GET", "x/u/7"))
	r.do(request("GET", "x/u/7", "Traceparent", caller))
	if len(tracer.began) != 2 || tracer.began[1].Parent.String() != caller || tracer.began[1].Self.TraceIDString() != caller[3:35] {
		t.Errorf("trusted: %+v", tracer.began)
	}
}

// What panics fails its own request, with a problem and a record, also when what
// panics is a change to the answer, which the refusal would run again.
func TestPanicsFailOneRequest(t *testing.T) {
	// The node's clock is ahead of the last heartbeat.
	r := newRigAt(t, func() time.Time { return started.Add(time.Minute) })
	up := newOrigin(t, r, ok)
	r.apply(doc("Route", "default", "stale", `{policies: [{jwt: {issuers: [local], audiences: ["https://api.example"]}}], revocation: {maxStaleness: 1s, onStale: allow}, backends: [{upstream: up}]}`) +
		issuer("default", "local", "https://local.example", secret) + upstreamAt("up", up.URL))
	send := func(after ...func(*exchange.Exchange, *exchange.Response)) (*answer, string) {
		e := request("GET", "x/", bearer(mint(secret, nil))...)
		e.After = after
		a := r.do(e)
		return a, r.decision(e.ID).Reason
	}
	fine := func() {
		t.Helper()
		if got, reason := send(); got.status != 200 || got.body != "ok" || reason != "" || up.last() == nil {
			t.Error(got, reason)
		}
	}
	broken := func(got *answer, reason string) {
		t.Helper()
		if got.status != 500 || got.reason() != "internal_error" || reason != "internal_error" {
			t.Error(got, reason)
		}
	}
	fine()
	r.stale = func() { panic("in a policy") }
	broken(send())
	if up.last() != nil {
		t.Error("the upstream was asked")
	}
	r.stale = func() {}
	fine()
	broken(send(func(*exchange.Exchange, *exchange.Response) { panic("in the answer") }))
	fine()
	if n := r.counted()["internal_error"]; n != 2 {
		t.Errorf("counted %d times", n)
	}
}

func TestWeights(t *testing.T) {
	r := newRig(t)
	a := newOrigin(t, r, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a") })
	b := newOrigin(t, r, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "b") })
	r.apply(upstreamAt("a", a.URL) + upstreamAt("b", b.URL) + upstreamAt("c", "http://127.0.0.1:1") +
		doc("Route", "default", "r", "{public: true, backends: [{upstream: a, weight: 9}, {upstream: b}, {upstream: c, weight: 0}]}"))
	got := map[string]int{}
	for range 200 {
		e := request("GET", "x/")
		body := r.do(e).body
		if got[body]++; r.decision(e.ID).Upstream != body {
			t.Fatalf("%s answered, and the record says %s", body, r.decision(e.ID).Upstream)
		}
	}
	if got["a"] < 175 || got["a"] > 185 || got["a"]+got["b"] != 200 {
		t.Errorf("%v of 9:1", got)
	}
}

func TestPredicates(t *testing.T) {
	r := newRig(t)
	up := newOrigin(t, r, ok)
	route := func(name, match string) string {
		return doc("Route", "default", name, "{public: true, matches: [{"+match+"}], backends: [{upstream: up}]}")
	}
	r.apply(upstreamAt("up", up.URL) + route("plain", "path: {prefix: /}") +
		route("exact", "headers: [{name: X-Tenant, exact: a}]") + route("regex", "headers: [{name: x-version, regex: '2|3'}]") +
		route("present", "headers: [{name: X-Any}]") + route("query", "query: [{name: page, regex: '[0-9]+'}]") +
		route("both", "headers: [{name: X-Tenant, exact: a}], query: [{name: debug}]") + route("empty", "query: [{name: q, exact: ''}]"))
	for _, c := range []struct {
		target string
		fields []string
		want   string
	}{
		{"x/", nil, "plain"},
		{"x/", []string{"x-tenant", "a"}, "exact"},
		{"x/", []string{"X-Tenant", "A"}, "plain"},
		{"x/", []string{"X-Tenant", "b", "X-Tenant", "a"}, "exact"},
		{"x/", []string{"X-Tenant", "a, b"}, "plain"},
		{"x/", []string{"X-Version", "3"}, "regex"},
		{"x/", []string{"X-Version", "23"}, "plain"},
		{"x/", []string{"X-Version", "2\n"}, "plain"},
		{"x/", []string{"X-Any", ""}, "present"},
		{"x/?page=12", nil, "query"},
		{"x/?page=%31", nil, "query"},
		{"x/?page=1a", nil, "plain"},
		{"x/?Page=1", nil, "plain"},
		{"x/?page=x&page=1", nil, "query"},
		{"x/?page=1;debug", nil, "plain"},
		{"x/?debug", []string{"X-Tenant", "a"}, "both"},
		{"x/?q", nil, "empty"},
		{"x/?q=1", nil, "plain"},
	} {
		e := request("GET", c.target, c.fields...)
		r.do(e)
		if got := r.decision(e.ID).Route; got != c.want {
			t.Errorf("%s %q: %s, want %s", c.target, c.fields, got, c.want)
		}
	}
}
