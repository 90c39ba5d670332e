package gateway

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
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

// Who asks why an answer was cut short is told, also when the gateway had refused
// nothing.
func TestCutAnswersAreRemembered(t *testing.T) {
	r := newRig(t)
	up := newOrigin(t, r, ok)
	r.apply(doc("Route", "default", "open", "{public: true, backends: [{upstream: up}]}") + upstreamAt("up", up.URL))
	for cause, want := range map[error]string{nil: "", io.ErrUnexpectedEOF: "The answer was cut short: unexpected EOF"} {
		e := request("GET", "x/")
		resp := r.g.Handle(e)
		if _, err := io.Copy(io.Discard, resp.Body.Reader); err != nil {
			t.Fatal(err)
		}
		e.Result = exchange.Result{Status: resp.Status, Err: cause}
		resp.Body.Reader.Close()
		e.End()
		if got := r.decision(e.ID).Detail; got != want {
			t.Errorf("%v: %q", cause, got)
		}
	}
}
