package policy

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"portcullis.dev/portcullis/dataplane/exchange"
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
    - authorize: {rules: [{when: "request.method == 'GET'", scopes: ["orders:read"]}]}
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

// What shares counts is what is declared once.
func TestDeclaredScopes(t *testing.T) {
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
		got = append(got, fmt.Sprintf("%d %s", d.Level, d.scope))
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

func TestCompileRefuses(t *testing.T) {
	policy := func(p *configv1.Policy) []config.EffectivePolicy {
		return []config.EffectivePolicy{{Policy: p, Origin: "policies[0]", Level: config.LevelRoute, Workspace: "shop"}}
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

func TestRunConcurrently(t *testing.T) {
	w := newWorld(t, hotRoute)
	good, bad := "Bearer "+mint(nil), "Bearer "+mint(map[string]any{"scope": "x"})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var e exchange.Exchange
			for i := range 300 {
				e.Reset()
				e.Received, e.Route, e.Request.Method = noon, exchange.RouteInfo{Workspace: "shop", Name: "route"}, "GET"
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
