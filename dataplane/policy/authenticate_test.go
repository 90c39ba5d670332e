package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

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
	// A flood of them asks once a second, and a clock that is set back does no harm.
	for _, step := range []struct {
		after time.Duration
		asked int
	}{{0, 1}, {999 * time.Millisecond, 1}, {time.Millisecond, 2}, {0, 2}, {-time.Hour, 3}} {
		w.now = w.now.Add(step.after)
		for range 100 {
			w.pipeline.Run(w.request("GET", "/", "Authorization", "Bearer "+compact))
		}
		if len(w.missing) != step.asked {
			t.Errorf("%v later: asked %d times, want %d", step.after, len(w.missing), step.asked)
		}
	}
}

func TestTokenBoundToCertificate(t *testing.T) {
	w := newWorld(t, hotRoute)
	leaf := &x509.Certificate{Raw: []byte("a certificate")}
	sum := sha256.Sum256(leaf.Raw)
	bearer := "Bearer " + mint(map[string]any{"cnf": map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(sum[:])}})
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

// A cached verdict is about a signature only: everything that can change or
// differ is asked again on each hit.
func TestCachedVerdictIsNoDecision(t *testing.T) {
	w := newWorld(t, levelsConfig("", "", `{jwt: {issuers: [local], audiences: [a]}}, {authorize: {rules: [{scopes: [x]}]}}`)+`---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: other}
spec:
  matches: [{path: {prefix: /other}}]
  policies: [{jwt: {issuers: [local], audiences: [b]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: partners}
spec:
  matches: [{path: {prefix: /partners}}]
  policies: [{jwt: {issuers: [partner], audiences: [a]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: scope}
spec:
  matches: [{path: {prefix: /scope}}]
  policies: [{jwt: {issuers: [local], audiences: [a]}}, {authorize: {rules: [{scopes: [y]}]}}]
  backends: [{upstream: up}]
`)
	bearer := "Bearer " + mint(map[string]any{"aud": "a", "scope": "x"})
	on := func(name string) Reason {
		key := config.Key{Kind: config.KindRoute, Workspace: "shop", Name: name}
		r, _ := w.checked.Get(key)
		p, err := CompileRoute(key, r.GetRoute(), w.checked.Policies(key), w.deps)
		if err != nil {
			t.Fatal(err)
		}
		w.pipeline = p
		return w.run(w.request("GET", "/", "Authorization", bearer))
	}
	for range 2 {
		for name, want := range map[string]Reason{"route": "", "other": TokenWrongAudience, "partners": TokenWrongIssuer, "scope": ScopeMissing} {
			if got := on(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
	}
	w.now = noon.Add(time.Hour)
	if got := on("route"); got != TokenExpired {
		t.Errorf("expired between hits: %q", got)
	}
	w.now = noon
	w.revoke(controlv1.RevocationKind_REVOCATION_KIND_SUBJECT, "https://local.example", "alice", noon.Unix()-61)
	if got := on("route"); got != "" {
		t.Errorf("issued after the watermark: %q", got)
	}
	w.revoke(controlv1.RevocationKind_REVOCATION_KIND_SUBJECT, "https://local.example", "alice", noon.Unix()-60)
	if got := on("route"); got != TokenRevoked {
		t.Errorf("revoked between hits: %q", got)
	}
}

// TestRulesJudgeTheirOwnLevel: what an inner level lets in does not satisfy the
// rules of an outer one, nor does it say whose requests an outer limit counts.
func TestRulesJudgeTheirOwnLevel(t *testing.T) {
	const (
		jwt  = `{jwt: {issuers: [local], audiences: ["https://api.example"]}}`
		key  = `{apiKey: {}}`
		rule = `{authorize: {rules: [{name: needs, scopes: ["orders:write"]}, {name: says, require: "auth.method == '%s'"}]}}`
	)
	is := func(method string) string { return fmt.Sprintf(rule, method) }
	for name, c := range map[string]struct {
		gateway, workspace, route string
		token                     string // scopes; the key has orders:write
		want                      Reason
	}{
		"the tenant's key has what the platform's token lacks": {gateway: jwt + "," + is("jwt"), route: key, token: "orders:read", want: ScopeMissing},
		"the token has it":                             {gateway: jwt + "," + is("jwt"), route: key, token: "orders:write"},
		"the workspace's level":                        {workspace: jwt + "," + is("jwt"), route: key, token: "orders:read", want: ScopeMissing},
		"inherited from outside":                       {gateway: jwt, workspace: is("jwt"), route: key, token: "orders:write"},
		"inherited from outside, and not enough":       {gateway: jwt, workspace: is("jwt"), route: key, token: "orders:read", want: ScopeMissing},
		"the route's rules are about the route's":      {gateway: jwt, route: key + "," + is("api_key"), token: "orders:read"},
		"nothing outside: the route's":                 {gateway: is("api_key"), route: key},
		"nothing outside: the outermost that there is": {gateway: is("jwt"), workspace: jwt, route: key, token: "orders:read", want: ScopeMissing},
		"the route has none of its own":                {gateway: jwt, route: is("jwt"), token: "orders:write"},
	} {
		w := newWorld(t, levelsConfig(c.gateway, c.workspace, c.route))
		fields := []string{"X-API-Key", w.key("all", "shop/erp", "", 0)}
		if c.token != "" {
			fields = append(fields, "Authorization", "Bearer "+mint(map[string]any{"scope": c.token}))
		}
		e := w.request("GET", "/", fields...)
		if got := w.run(e); got != c.want {
			t.Errorf("%s: %q by %v, want %q", name, got, e.Why, c.want)
		}
		if inner := strings.Contains(c.route, key); inner && e.Identity.Method != "api_key" {
			t.Errorf("%s: the upstream is told %q", name, e.Identity.Method)
		}
	}
	// One token is one caller to the gateway's limit, whatever key comes with it.
	const limit = `{rateLimit: {%slimits: [{requests: 2, window: 1h}]}}`
	for _, by := range []string{"", "key: auth.client, ", `key: "auth.method + auth.client", `} {
		w := newWorld(t, levelsConfig(jwt+","+fmt.Sprintf(limit, by), "", key))
		for i, want := range []Reason{"", "", LimitExceeded} {
			app := []string{"shop/erp", "shop/clerk"}[i%2]
			e := w.request("GET", "/", "Authorization", "Bearer "+mint(nil), "X-API-Key", w.key(app, app, "", 0))
			if got := w.run(e); got != want {
				t.Errorf("key %q, request %d: %q, want %q", by, i, got, want)
			}
		}
	}
}

func TestLevelsAllocateNothing(t *testing.T) {
	const jwt = `{jwt: {issuers: [local], audiences: ["https://api.example"]}}`
	w := newWorld(t, levelsConfig(jwt+`, {authorize: {rules: [{scopes: ["orders:read"]}]}}, {rateLimit: {limits: [{requests: 1000000, window: 1s}]}}`, "", jwt))
	e := w.request("GET", "/", "Authorization", "Bearer "+mint(nil))
	run := func() {
		if d := w.pipeline.Run(e); d != nil {
			t.Fatal(d.Reason)
		}
	}
	run()
	if n := testing.AllocsPerRun(200, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
