package policy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config"
)

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
		{exchange.Identity{Method: "jwt", IssuerName: "shop/a", Issuer: "a", Client: "x", Subject: "s"}, ""},
		{exchange.Identity{Method: "jwt", IssuerName: "shop/a", Issuer: "a", Client: "x", Subject: "t"}, LimitExceeded},
		{exchange.Identity{Method: "jwt", IssuerName: "shop/b", Issuer: "b", Client: "x"}, ""},
		{exchange.Identity{Method: "jwt", IssuerName: "shop/a", Issuer: "a", Subject: "x"}, ""},
		{exchange.Identity{Method: "jwt", IssuerName: "pay/a", Issuer: "a", Client: "x"}, ""},
		{exchange.Identity{Method: "jwt", IssuerName: "pay/a", Issuer: "a", Subject: "x"}, ""},
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

// TestIssuersOfTheSameName: two tenants' Issuers may have the same iss, and their
// tokens the same client; a limit that holds for both counts them apart.
func TestIssuersOfTheSameName(t *testing.T) {
	w := newWorld(t, `
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {workspace: shop, name: twin}
spec: {issuer: "https://local.example", hmacSecret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}
---
apiVersion: portcullis.dev/v1
kind: Policy
metadata: {name: shared}
spec: {rateLimit: {limits: [{requests: 1, window: 1h}]}}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: route}
spec:
  matches: [{path: {prefix: /a}}]
  policies: [{jwt: {issuers: [local], audiences: ["https://api.example"]}}, {ref: shared}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: second}
spec:
  matches: [{path: {prefix: /b}}]
  policies: [{jwt: {issuers: [twin], audiences: ["https://api.example"]}}, {ref: shared}]
  backends: [{upstream: up}]
`)
	for i, c := range []struct {
		route, issuer string
		want          Reason
	}{{"route", "default/local", ""}, {"second", "shop/twin", ""}, {"route", "", LimitExceeded}, {"second", "", LimitExceeded}} {
		w.route.Name = c.route
		w.compile()
		e := w.request("GET", "/", "Authorization", "Bearer "+mint(nil))
		if got := w.run(e); got != c.want {
			t.Errorf("%d: %q, want %q", i, got, c.want)
		}
		if c.issuer != "" && (e.Identity.IssuerName != c.issuer || e.Identity.Issuer != "https://local.example") {
			t.Errorf("%d: vouched for by %q, %q", i, e.Identity.IssuerName, e.Identity.Issuer)
		}
	}
}
