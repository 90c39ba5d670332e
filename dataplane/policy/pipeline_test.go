package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const hotRoute = `
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: route}
spec:
  policies:
    - rateLimit: {limits: [{name: second, requests: 1000000, window: 1s}, {name: hour, requests: 900000000, window: 1h}]}
    - authorize: {rules: [{scopes: ["orders:read"]}]}
    - jwt: {issuers: [local], audiences: ["https://api.example"]}
    - headers: {request: {set: {X-Env: prod}}, response: {remove: [Server]}}
  revocation: {maxStaleness: 5s}
  backends: [{upstream: up}]
`

func TestRunAllocatesNothing(t *testing.T) {
	w := newWorld(t, hotRoute)
	bearer := "Bearer " + mint(nil)
	e := w.request("GET", "/orders", "Authorization", bearer, "X-Env", "theirs")
	run := func() {
		e.After = e.After[:0]
		if d := w.pipeline.Run(e); d != nil {
			t.Fatal(d.Reason)
		}
	}
	run()
	if n := testing.AllocsPerRun(200, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got := e.ResponseHeader.Get("RateLimit"); !strings.HasPrefix(got, `"second";r=`) && !strings.HasPrefix(got, `"hour";r=`) {
		t.Errorf("RateLimit: %s", got)
	}
}

func BenchmarkRun(b *testing.B) {
	w := newWorld(b, hotRoute)
	bearer := "Bearer " + mint(nil)
	e := w.request("GET", "/orders", "Authorization", bearer, "X-Env", "theirs")
	b.ReportAllocs()
	for b.Loop() {
		e.After = e.After[:0]
		e.Received = e.Received.Add(time.Millisecond)
		if d := w.pipeline.Run(e); d != nil {
			b.Fatal(d.Reason)
		}
	}
}

func TestPhasesNotListingOrderTheSteps(t *testing.T) {
	w := newWorld(t, hotRoute)
	var got []Phase
	for _, s := range w.pipeline.Steps() {
		got = append(got, s.Phase)
	}
	if d := cmp.Diff([]Phase{Authenticate, Authorize, Limit, Transform}, got); d != "" {
		t.Error(d)
	}
	for p := Admit; p <= Respond; p++ {
		if p.String() == "" {
			t.Error(p)
		}
	}
	// Nobody who is refused spends from a limit.
	for range 3 {
		w.run(w.request("GET", "/"))
	}
	e := w.request("GET", "/", "Authorization", "Bearer "+mint(nil))
	if reason := w.run(e); reason != "" || !strings.Contains(e.ResponseHeader.Get("RateLimit"), "r=999000;") {
		t.Error(reason, e.ResponseHeader.Get("RateLimit"))
	}
}

// levelsConfig declares authenticators on any of the three levels.
func levelsConfig(gateway, workspace, route string) string {
	policies := func(s string) string {
		if s == "" {
			return ""
		}
		return "\n  policies: [" + s + "]"
	}
	return fmt.Sprintf(`
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec:
  limits: {maxHeaderBytes: 65536}%s
---
apiVersion: portcullis.dev/v1
kind: Workspace
metadata: {name: shop}
spec:
  description: a shop%s
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: route}
spec:
  public: %v%s
  backends: [{upstream: up}]
`, policies(gateway), policies(workspace), !strings.Contains(route, "jwt:") && !strings.Contains(route, "apiKey:"), policies(route))
}

// TestLevels tries every pair of a bearer token and an API key against
// authenticators on every level, and compares with the rule as one would say it.
func TestLevels(t *testing.T) {
	const jwt, key = `jwt: {issuers: [local], audiences: ["https://api.example"]}`, `apiKey: {}`
	sets := map[string]string{"": "", "j": "{" + jwt + "}", "k": "{" + key + "}", "jk": "{" + jwt + "}, {" + key + "}"}
	for g, gateway := range sets {
		for ws, workspace := range sets {
			for r, route := range sets {
				w := newWorld(t, levelsConfig(gateway, workspace, route))
				bearers := map[string][]string{"": nil, "good": {mint(nil)}, "bad": {mint(map[string]any{"exp": 1})}, "twice": {mint(nil), mint(nil)}}
				good := w.key("good", "shop/erp", "", 0)
				keys := map[string][]string{"": nil, "good": {good}, "bad": {good + "x"}, "twice": {good, good}}
				for b, bearer := range bearers {
					for k, apiKey := range keys {
						var fields []string
						for _, v := range bearer {
							fields = append(fields, "Authorization", "Bearer "+v)
						}
						for _, v := range apiKey {
							fields = append(fields, "X-API-Key", v)
						}
						e := w.request("GET", "/", fields...)
						got := string(w.run(e))
						if got == "" {
							got = "as " + e.Identity.Method
						}
						if want := expect([]string{g, ws, r}, b, k); got != want {
							t.Errorf("gateway %q, workspace %q, route %q; bearer %q, key %q: got %s, want %s", g, ws, r, b, k, got, want)
						}
						if strings.HasPrefix(got, "as") == (e.Identity.Method == "") && got != "as " {
							t.Errorf("%s with identity %q", got, e.Identity.Method)
						}
					}
				}
			}
		}
	}
}

// expect says what becomes of a request, level by level from the outside in.
func expect(levels []string, bearer, key string) string {
	as := ""
	count := map[string]int{"": 0, "good": 1, "bad": 1, "twice": 2}
	for _, l := range levels {
		if l == "" {
			continue
		}
		n := 0
		if strings.Contains(l, "j") {
			n += count[bearer]
		}
		if strings.Contains(l, "k") {
			n += count[key]
		}
		switch {
		case n == 0:
			return "credential_missing"
		case n > 1:
			return "credential_duplicate"
		case strings.Contains(l, "j") && bearer == "bad":
			return "token_expired"
		case strings.Contains(l, "k") && key == "bad":
			return "credential_malformed"
		case strings.Contains(l, "j") && bearer == "good":
			as = "jwt"
		default:
			as = "api_key"
		}
	}
	return "as " + as
}

// A baseline is in addition to the route's own, never an alternative to it.
func TestBaselineAudienceHoldsToo(t *testing.T) {
	w := newWorld(t, levelsConfig(`{jwt: {issuers: [local], audiences: [company]}}`, "", `{jwt: {issuers: [local], audiences: [orders]}}`))
	for _, c := range []struct {
		aud  []string
		want Reason
	}{{[]string{"orders"}, TokenWrongAudience}, {[]string{"company"}, TokenWrongAudience}, {[]string{"company", "orders"}, ""}} {
		if got := w.run(w.request("GET", "/", "Authorization", "Bearer "+mint(map[string]any{"aud": c.aud}))); got != c.want {
			t.Errorf("%v: %q, want %q", c.aud, got, c.want)
		}
	}
}

func TestUnknownKeyIsAskedFor(t *testing.T) {
	w := newWorld(t, `
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: route}
spec:
  policies: [{jwt: {issuers: [remote], audiences: [a]}}]
  backends: [{upstream: up}]
`)
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	compact := part(`{"alg":"ES256","typ":"at+jwt","kid":"new"}`) + "." + part(`{"iss":"https://remote.example","aud":"a","exp":1}`) + "." + part("x")
	e := w.request("GET", "/", "Authorization", "Bearer "+compact)
	d := w.pipeline.Run(e)
	if d == nil || d.Reason != KeysUnavailable || d.StatusCode() != 503 || d.Challenges != nil {
		t.Fatalf("%+v", d)
	}
	if d := cmp.Diff([]string{"default/remote"}, w.missing); d != "" {
		t.Error(d)
	}
}

func TestTokenBoundToCertificate(t *testing.T) {
	w := newWorld(t, hotRoute)
	leaf := &x509.Certificate{Raw: []byte("a certificate")}
	print := sha256.Sum256(leaf.Raw)
	bearer := "Bearer " + mint(map[string]any{"cnf": map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(print[:])}})
	for name, c := range map[string]struct {
		tls  *exchange.PeerTLS
		want Reason
	}{
		"no TLS":         {nil, CredentialMalformed},
		"no certificate": {&exchange.PeerTLS{}, CredentialMalformed},
		"another":        {&exchange.PeerTLS{Verified: []*x509.Certificate{{Raw: []byte("x")}, leaf}}, CredentialMalformed},
		"the one":        {&exchange.PeerTLS{Verified: []*x509.Certificate{leaf}}, ""},
	} {
		for range 2 { // the binding is asked for on a cached verdict too
			e := w.request("GET", "/", "Authorization", bearer)
			e.Request.TLS = c.tls
			if got := w.run(e); got != c.want {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
		}
	}
}

func TestServedStaleIsCountedAndMarked(t *testing.T) {
	w := newWorld(t, strings.Replace(hotRoute, "maxStaleness: 5s", "maxStaleness: 5s, onStale: allow", 1))
	w.now = noon.Add(time.Minute)
	e := w.request("GET", "/", "Authorization", "Bearer "+mint(nil))
	if got := w.run(e); got != "" || w.stale != 1 || e.Why.Rule != "onStale" {
		t.Error(got, w.stale, e.Why)
	}
}

// A node that was frozen after it took the request in judges by the time after.
func TestStalenessIsJudgedAtTheTimeOfTheCheck(t *testing.T) {
	w := newWorld(t, hotRoute)
	e := w.request("GET", "/", "Authorization", "Bearer "+mint(nil))
	w.now = noon.Add(time.Minute)
	if got := w.run(e); got != RevocationsStale {
		t.Error(got)
	}
}

func TestLimitsAreCountedByCaller(t *testing.T) {
	w := newWorld(t, levelsConfig(`{rateLimit: {limits: [{requests: 1, window: 1h}]}}`, "", ""))
	peer := func(s string) Reason {
		e := w.request("GET", "/")
		e.Request.Peer = netip.MustParseAddr(s)
		return w.run(e)
	}
	for i, c := range []struct {
		peer string
		want Reason
	}{
		{"192.0.2.1", ""}, {"192.0.2.1", LimitExceeded}, {"::ffff:192.0.2.1", LimitExceeded}, {"192.0.2.2", ""},
		{"2001:db8::1", ""}, {"2001:db8::2", LimitExceeded}, {"2001:db8:0:1::1", ""},
	} {
		if got := peer(c.peer); got != c.want {
			t.Errorf("%d %s: %q, want %q", i, c.peer, got, c.want)
		}
	}
	as := func(id exchange.Identity) Reason {
		e := w.request("GET", "/")
		e.Identity = id
		return w.run(e)
	}
	for i, c := range []struct {
		id   exchange.Identity
		want Reason
	}{
		{exchange.Identity{Method: "jwt", Issuer: "a", Client: "x", Subject: "s"}, ""},
		{exchange.Identity{Method: "jwt", Issuer: "a", Client: "x", Subject: "t"}, LimitExceeded},
		{exchange.Identity{Method: "jwt", Issuer: "b", Client: "x"}, ""},
		{exchange.Identity{Method: "jwt", Issuer: "a", Subject: "x"}, ""},
		{exchange.Identity{Method: "api_key", Client: "x"}, ""},
		{exchange.Identity{Method: "api_key", Client: "x"}, LimitExceeded},
	} {
		if got := as(c.id); got != c.want {
			t.Errorf("%d: %q, want %q", i, got, c.want)
		}
	}
}

// A shared Policy counts once for all routes, and once for a request however
// often it is listed; a route's own counts for the route.
func TestLimitScopes(t *testing.T) {
	text := common + `---
apiVersion: portcullis.dev/v1
kind: Policy
metadata: {name: shared}
spec: {rateLimit: {key: "'all'", limits: [{requests: 3, window: 1h}]}}
---
` + levelsConfig("{ref: shared}", "", "{ref: shared}, {rateLimit: {limits: [{name: own, requests: 2, window: 1h}]}}") + `---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: second}
spec:
  public: true
  matches: [{path: {prefix: /second}}]
  policies: [{rateLimit: {limits: [{name: own, requests: 2, window: 1h}]}}]
  backends: [{upstream: up}]
`
	w := newWorld(t, strings.TrimPrefix(text, common+"---\n"))
	other := config.Key{Kind: config.KindRoute, Workspace: "shop", Name: "second"}
	r, _ := w.checked.Get(other)
	second, err := CompileRoute(other, r.GetRoute(), w.checked.Policies(other), w.deps)
	if err != nil {
		t.Fatal(err)
	}
	first := w.pipeline
	var got []string
	for _, p := range []*Pipeline{first, first, first, second, second} {
		w.pipeline = p
		e := w.request("GET", "/")
		reason := w.run(e)
		got = append(got, string(reason)+" "+e.Why.Rule)
	}
	want := []string{" ", " ", "limit_exceeded own", " ", "limit_exceeded default"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// The places that Origin tells apart are the ones that config writes.
func TestDeclareReadsOrigins(t *testing.T) {
	w := newWorld(t, `
apiVersion: portcullis.dev/v1
kind: Policy
metadata: {name: keys}
spec: {apiKey: {}}
---
`+levelsConfig("{ref: keys}", "{apiKey: {header: X-A}}, {ref: keys}", "{apiKey: {header: X-B}}, {ref: keys}"))
	var got []string
	for _, p := range w.checked.Policies(w.route) {
		d := declare(w.route, p)
		got = append(got, fmt.Sprintf("%d %s", d.level, d.scope))
	}
	want := []string{
		"0 (Policy default/keys)",
		"1 workspace shop policies[0]", "1 (Policy default/keys)",
		"2 Route shop/route policies[0]", "2 (Policy default/keys)",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestTextsRound(t *testing.T) {
	var x texts
	for _, c := range []struct {
		remaining, reset int64
		want             string
	}{
		{0, 0, `"n";r=0;t=0`}, {999, 999, `"n";r=999;t=999`}, {1000, 1000, `"n";r=1000;t=1000`}, {1009, 1001, `"n";r=1000;t=1010`},
		{999999, 999999, `"n";r=999000;t=1000000`}, {123456789, 2678400, `"n";r=123000000;t=2680000`},
	} {
		for range 2 {
			if got := x.of("n", c.remaining, c.reset); got != c.want {
				t.Errorf("%d %d: %s, want %s", c.remaining, c.reset, got, c.want)
			}
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	policy := func(p *configv1.Policy) []config.EffectivePolicy {
		return []config.EffectivePolicy{{Policy: p, Origin: "policies[0]", Workspace: "shop"}}
	}
	w := newWorld(t, hotRoute)
	jwt := &configv1.JWT{Issuers: []string{"local"}, Audiences: []string{"a"}}
	for name, c := range map[string]struct {
		policies []config.EffectivePolicy
		deps     Deps
		want     string
	}{
		"nothing authenticates": {nil, w.deps, "not public"},
		"an empty policy":       {policy(&configv1.Policy{}), w.deps, "cannot be run by this release"},
		"a reference":           {policy(&configv1.Policy{Kind: &configv1.Policy_Ref{Ref: "x"}}), w.deps, "not resolved"},
		"no such issuer":        {policy(&configv1.Policy{Kind: &configv1.Policy_Jwt{Jwt: &configv1.JWT{Issuers: []string{"x"}, Audiences: []string{"a"}}}}), w.deps, "does not exist"},
		"no audience":           {policy(&configv1.Policy{Kind: &configv1.Policy_Jwt{Jwt: &configv1.JWT{Issuers: []string{"local"}}}}), w.deps, "audiences"},
		"no deps":               {policy(&configv1.Policy{Kind: &configv1.Policy_Jwt{Jwt: jwt}}), Deps{}, "Deps.Issuer"},
		"no revocations":        {policy(&configv1.Policy{Kind: &configv1.Policy_Jwt{Jwt: jwt}}), Deps{Issuer: w.deps.Issuer}, "Deps.Revocations"},
		"no rules":              {policy(&configv1.Policy{Kind: &configv1.Policy_Authorize{Authorize: &configv1.Authorize{}}}), w.deps, "none"},
		"no limits":             {policy(&configv1.Policy{Kind: &configv1.Policy_RateLimit{RateLimit: &configv1.RateLimit{}}}), w.deps, "none"},
		"a bad header": {policy(&configv1.Policy{Kind: &configv1.Policy_Headers{Headers: &configv1.Headers{
			Request: &configv1.HeaderChanges{Set: map[string]string{"X": "a\r\nB: c"}}}}}), w.deps, "field"},
	} {
		_, err := CompileRoute(w.route, &configv1.Route{}, c.policies, c.deps)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestReasons(t *testing.T) {
	statuses := []int{400, 401, 403, 404, 413, 429, 500, 502, 503, 504}
	titles := map[string]Reason{}
	for _, r := range Reasons() {
		if !slices.Contains(statuses, r.Status()) || (r.Status() == 500) != (r == InternalError) {
			t.Errorf("%s: %d", r, r.Status())
		}
		if other, twice := titles[r.Title()]; twice {
			t.Errorf("%s and %s have one title", r, other)
		}
		titles[r.Title()] = r
	}
	if Reason("x").Status() != 500 || Reason("x").Title() != InternalError.Title() {
		t.Error("an unknown reason")
	}
	for _, r := range token.Refusals() {
		if !slices.Contains(Reasons(), Reason(r.Reason)) {
			t.Errorf("package token refuses for %q, which is no reason", r.Reason)
		}
		if strings.ContainsAny(r.Detail, "\"\\") {
			t.Errorf("%q cannot stand in a challenge", r.Detail)
		}
	}
}

func TestDenialResponse(t *testing.T) {
	d := &Denial{Reason: LimitExceeded, Detail: `a "detail"`, Challenges: []string{"A", "B"}, RetryAfter: 1500 * time.Millisecond}
	r := d.Response("r-1", "t-1")
	var got map[string]any
	text := body(t, r)
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"type": "https://portcullis.dev/problems/limit_exceeded", "title": "A rate limit is exceeded", "status": 429.0,
		"detail": `a "detail"`, "reason": "limit_exceeded", "request_id": "r-1", "trace_id": "t-1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if r.Status != 429 || r.Body.Length != int64(len(text)) || r.Header.Get("Retry-After") != "2" || r.Header.Count("WWW-Authenticate") != 2 ||
		r.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%+v", r)
	}
	if d := (&Denial{Reason: RequestTooLarge, Status: 431}); d.StatusCode() != 431 || d.Response("", "").Status != 431 {
		t.Error("the status is not overridden")
	}
}

func TestRunConcurrently(t *testing.T) {
	w := newWorld(t, hotRoute)
	good, bad := "Bearer "+mint(nil), "Bearer "+mint(map[string]any{"scope": "x"})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var e exchange.Exchange
			for i := range 300 {
				e.Reset()
				e.Received, e.Route = noon, exchange.RouteInfo{Workspace: "shop", Name: "route"}
				bearer, want := good, Reason("")
				if i%3 == 0 {
					bearer, want = bad, ScopeMissing
				}
				e.Request.Header.Add("Authorization", bearer)
				var got Reason
				if d := w.pipeline.Run(&e); d != nil {
					got = d.Reason
				}
				if got != want {
					t.Errorf("got %q, want %q", got, want)
					return
				}
			}
		})
	}
	wg.Wait()
}
