package gateway

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/pkg/config"
)

// change draws a document of a small world, so that names meet.
func change(t *rapid.T) string {
	pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	ws := pick("workspace", "default", "shop")
	// Ports on which nobody listens: the error names the one that was asked.
	url := func() string { return "http://127.0.0.1:" + pick("port", "1", "2", "3") }
	authorize := func() string {
		return pick("rule", `{authorize: {rules: [{require: "request.method == 'GET'"}]}}`,
			`{authorize: {rules: [{scopes: ["orders:read"]}]}}`, `{authorize: {rules: [{scopes: [none]}]}}`)
	}
	shared := func() string {
		return pick("policy", authorize(), "{ref: q}", "{jwt: {issuers: [local], audiences: ['https://api.example']}}",
			"{headers: {request: {set: {X-A: b}}}}")
	}
	switch pick("kind", "Route", "Route", "Route", "Upstream", "Issuer", "KeySet", "Policy", "Application", "Workspace", "Gateway") {
	case "Upstream":
		return doc("Upstream", ws, pick("name", "a", "b"), "{endpoints: [{url: '"+url()+"'}]}")
	case "Issuer":
		if rapid.Bool().Draw(t, "remote") {
			return doc("Issuer", ws, "remote", "{issuer: https://remote.example, jwksUri: https://remote.example/keys, clockSkew: "+pick("skew", "1s", "2s")+"}")
		}
		return issuer(ws, "local", pick("iss", "https://local.example", "https://other.example"), pick("secret", secret, otherSecret))
	case "KeySet":
		return pick("keys", keySet(ws, "remote"), keySet(ws, "remote", 0), keySet(ws, "remote", 1), keySet(ws, "remote", 0, 1))
	case "Policy":
		name := pick("name", "p", "q")
		if name == "q" {
			return doc("Policy", ws, "q", authorize())
		}
		return doc("Policy", ws, "p", shared())
	case "Application":
		return doc("Application", ws, "web", "{disabled: "+pick("disabled", "true", "false")+"}")
	case "Workspace":
		return doc("Workspace", "", "shop", "{policies: ["+pick("baseline", "", authorize(), "{ref: p}")+"]}")
	case "Gateway":
		return doc("Gateway", "", "default", "{policies: ["+pick("baseline", "", authorize(), "{ref: p}")+"]}")
	}
	var matches []string
	for range rapid.IntRange(1, 2).Draw(t, "matches") {
		match := "path: " + pick("path", "{exact: /x}", "{prefix: /x}", "{prefix: /}", "{template: '/u/{id}'}")
		match += pick("methods", "", ", methods: [GET]", ", methods: [POST]")
		match += pick("predicate", "", "", ", headers: [{name: x-tenant, exact: a}]", ", query: [{name: v, regex: '[0-9]+'}]")
		matches = append(matches, "{"+match+"}")
	}
	policies := []string{pick("authentication", "{jwt: {issuers: [local], audiences: ['https://api.example']}}",
		"{jwt: {issuers: [remote], audiences: ['https://api.example']}}", "{jwt: {issuers: [local, remote], audiences: ['https://api.example']}}")}
	if rapid.Bool().Draw(t, "more") {
		policies = append(policies, pick("own", authorize(), "{ref: p}", "{ref: q}"))
	}
	public := rapid.Bool().Draw(t, "public")
	if public {
		policies = policies[1:]
	}
	return doc("Route", ws, pick("name", "r0", "r1", "r2", "r3"), fmt.Sprintf(
		"{public: %t, priority: %s, hostnames: [%s], matches: [%s], policies: [%s], backends: [{upstream: %s}]}", public,
		pick("priority", "0", "1", "2", "3"), pick("hosts", "", "a.example", "'*.example'", "a.example, b.example"),
		strings.Join(matches, ", "), strings.Join(policies, ", "), pick("backend", "a", "b")))
}

// outcome is all that a request's life depends on the configuration.
func (r *rig) outcome(host, path, method, compact string, fields ...string) string {
	if compact != "" {
		fields = append(fields, bearer(compact)...)
	}
	e := request(method, host+path, fields...)
	status := r.do(e).status
	rec := r.decision(e.ID)
	return fmt.Sprintln(method, host+path, "->", status, rec.Workspace, rec.Route, rec.Reason, rec.Policy, rec.Rule, rec.Detail, rec.Upstream, rec.Version, e.Params)
}

// Whatever the way to a configuration, a gateway that went along it decides like
// one that starts with it, and holds as many upstreams.
func TestIncrementalIsFull(t *testing.T) {
	applied, routed := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		r := newRig(t)
		r.apply(doc("Workspace", "", "shop", "{}") + issuer("default", "local", "https://local.example", secret) +
			doc("Issuer", "default", "remote", "{issuer: https://remote.example, jwksUri: https://remote.example/keys}") +
			doc("Upstream", "default", "a", "{endpoints: [{url: 'http://127.0.0.1:1'}]}") + doc("Upstream", "default", "b", "{endpoints: [{url: 'http://127.0.0.1:2'}]}") +
			doc("Policy", "default", "q", `{authorize: {rules: [{scopes: ["orders:read"]}]}}`) + doc("Policy", "default", "p", "{ref: q}"))
		steps := rapid.IntRange(1, 12).Draw(rt, "steps")
		for range steps {
			var d config.Delta
			for range rapid.IntRange(1, 4).Draw(rt, "changes") {
				if existing := keysOf(r.checked); rapid.IntRange(0, 5).Draw(rt, "delete") == 0 {
					d.Deletes = append(d.Deletes, rapid.SampledFrom(existing).Draw(rt, "key"))
				} else {
					d.Upserts = append(d.Upserts, documents(t, change(rt))...)
				}
			}
			if _, _, err := r.checked.Apply(d); err != nil {
				continue
			}
			applied++
			if err := r.try(d); err != nil {
				rt.Fatalf("accepted by Check, refused by Apply: %v", err)
			}
		}
		f := r.fresh()
		if r.pool.Users() != f.pool.Users() {
			rt.Fatalf("%d upstreams are held, %d needed", r.pool.Users(), f.pool.Users())
		}
		tokens := []string{"", mint(secret, nil), mint(otherSecret, map[string]any{"iss": "https://other.example"}),
			mintBy(0, map[string]any{"iss": "https://remote.example"}), mintBy(1, map[string]any{"iss": "https://remote.example", "client_id": "none"})}
		for _, host := range []string{"a.example", "b.example", "c.test"} {
			for _, path := range []string{"/x", "/x/y", "/u/7", "/?v=1"} {
				method := rapid.SampledFrom([]string{"GET", "POST"}).Draw(rt, "method")
				compact := rapid.SampledFrom(tokens).Draw(rt, "token")
				got, want := r.outcome(host, path, method, compact, "X-Tenant", "a"), f.outcome(host, path, method, compact, "X-Tenant", "a")
				if got != want {
					rt.Fatal(cmp.Diff(want, got))
				}
				if !strings.Contains(got, "no_route") {
					routed++
				}
			}
		}
	})
	if applied < 100 || routed < 100 {
		t.Errorf("only %d changes were applied and %d requests found a route: the world is too strict to test anything", applied, routed)
	}
}

func keysOf(checked config.Checked) (keys []config.Key) {
	for resource := range checked.All() {
		keys = append(keys, config.KeyOf(resource))
	}
	return keys
}

const twoRoutes = `
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: "http://127.0.0.1:1"}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: a}
spec: {public: true, matches: [{path: {prefix: /a}}], backends: [{upstream: up}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: b}
spec: {public: true, matches: [{path: {prefix: /b}}], backends: [{upstream: up}]}
`

func TestARefusedChangeLeavesEverything(t *testing.T) {
	for name, server := range map[string]string{"refused": refusedName, "panic": panicName} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.apply(twoRoutes + doc("Issuer", "default", "remote", "{issuer: https://remote.example, jwksUri: https://remote.example/keys}") + keySet("default", "remote", 0))
			before, users := r.g.Live(), r.pool.Users()
			issuers := map[string]string{}
			for key, issuer := range r.g.compiled.issuers {
				issuers[key.Name] = fmt.Sprintf("%p", issuer)
			}
			// Good changes beside the bad one must not come through either.
			text := strings.ReplaceAll(twoRoutes, "/a}", "/c}") + keySet("default", "remote", 1) +
				doc("Upstream", "default", "also", "{endpoints: [{url: 'http://127.0.0.1:3'}]}") +
				doc("Upstream", "default", "bad", "{endpoints: [{url: 'https://127.0.0.1:2'}], tls: {serverName: "+server+"}}") +
				doc("Issuer", "default", "new", "{issuer: https://new.example, jwksUri: https://new.example/keys}") +
				doc("Route", "default", "new", "{public: true, matches: [{path: {prefix: /new}}], backends: [{upstream: also}]}")
			for range 3 {
				err := r.try(config.Delta{Upserts: documents(t, text)})
				if err == nil || strings.Contains(err.Error(), "goroutine") {
					t.Fatalf("error %v", err)
				}
				if problems, ok := err.(config.Problems); name == "refused" && (!ok || problems[0].Key.Name != "bad" || problems[0].Reason == "") {
					t.Errorf("error %v does not name the resource", err)
				}
			}
			if r.g.Live() != before || r.pool.Users() != users {
				t.Errorf("the snapshot is another: %t; %d upstreams held, not %d", r.g.Live() != before, r.pool.Users(), users)
			}
			for key, issuer := range r.g.compiled.issuers {
				if issuers[key.Name] != fmt.Sprintf("%p", issuer) {
					t.Errorf("issuer %s is another", key.Name)
				}
			}
			if got := r.outcome("x", "/a/1", "GET", ""); !strings.Contains(got, "default a upstream_unavailable") {
				t.Error(got)
			}
			if got := r.outcome("x", "/c", "GET", ""); !strings.Contains(got, "no_route") {
				t.Error(got)
			}
			// The next good one passes, and nothing of the refused is in it.
			r.apply(doc("Upstream", "default", "up", "{endpoints: [{url: 'http://127.0.0.1:2'}]}"))
			if got, want := r.pool.Users(), r.fresh().pool.Users(); got != want {
				t.Errorf("%d upstreams held, not %d", got, want)
			}
		})
	}
}

const guarded = `
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: "http://127.0.0.1:1"}]}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: remote}
spec: {issuer: "https://remote.example", jwksUri: "https://remote.example/keys"}
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {name: web}
spec: {}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: a}
spec:
  policies: [{jwt: {issuers: [remote], audiences: ["https://api.example"]}}]
  backends: [{upstream: up}]
`

// Keys, applications and issuers act on routes that stay as they were compiled.
func TestLiveStateReachesCompiledRoutes(t *testing.T) {
	r := newRig(t)
	first := mintBy(0, map[string]any{"iss": "https://remote.example"})
	second := mintBy(1, map[string]any{"iss": "https://remote.example"})
	want := func(compact, reason string) {
		t.Helper()
		e := request("GET", "x/", bearer(compact)...)
		if got := r.do(e).reason(); got != reason {
			t.Errorf("%q, want %q", got, reason)
		}
	}
	route := func() *Route {
		return r.g.compiled.routes[config.Key{Kind: config.KindRoute, Workspace: "default", Name: "a"}]
	}
	r.apply(guarded)
	compiled := route()
	want(first, "keys_unavailable")
	if len(r.missing) != 1 || r.missing[0] != "default/remote" {
		t.Errorf("asked for %v", r.missing)
	}
	r.apply(keySet("default", "remote", 0))
	want(first, "upstream_unavailable")
	want(first, "upstream_unavailable") // from the cache
	want(second, "token_bad_signature")
	r.apply(keySet("default", "remote", 0, 1))
	want(second, "upstream_unavailable")
	r.apply(keySet("default", "remote", 1))
	want(first, "token_bad_signature")
	want(second, "upstream_unavailable")
	r.apply(doc("Application", "default", "web", "{disabled: true}"))
	want(second, "token_revoked")
	r.apply(doc("Application", "default", "web", "{}"))
	want(second, "upstream_unavailable")
	r.apply("", config.Key{Kind: config.KindKeySet, Workspace: "default", Name: "remote"})
	want(second, "keys_unavailable")
	if route() != compiled {
		t.Error("the route was compiled again")
	}
	// Without the issuer the route could not be; one that is public again can.
	r.apply(doc("Route", "default", "a", "{public: true, backends: [{upstream: up}]}"), config.Key{Kind: config.KindIssuer, Workspace: "default", Name: "remote"})
	want(second, "upstream_unavailable")
	if len(r.g.compiled.issuers) != 0 || r.g.cfg.Tokens.Len() != 0 {
		t.Errorf("%d issuers, %d tokens left", len(r.g.compiled.issuers), r.g.cfg.Tokens.Len())
	}
}

func TestSettings(t *testing.T) {
	r := newRig(t)
	unset := r.g.Settings()
	if unset == nil || r.g.Settings() != unset || !r.g.logs.Load() {
		t.Error("settings before the first configuration")
	}
	r.apply(twoRoutes)
	if r.g.Settings() != unset {
		t.Error("no Gateway resource is another Gateway resource")
	}
	r.apply(doc("Gateway", "", "default", "{limits: {maxBodyBytes: 7}, accessLog: {disabled: true}, tracing: {ratio: 1, trustIncoming: true}}"))
	set := r.g.Settings()
	if set.GetLimits().GetMaxBodyBytes() != 7 || r.g.logs.Load() {
		t.Errorf("%v", set)
	}
	parent := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if d := r.sampler.Decide(parent); d.Parent.String() != parent {
		t.Errorf("%+v", d)
	}
	r.apply(strings.ReplaceAll(twoRoutes, "/a}", "/c}"))
	if r.g.Settings() != set {
		t.Error("the settings are another, and the Gateway resource is not")
	}
	r.apply("", config.Key{Kind: config.KindGateway, Workspace: "default", Name: "default"})
	if r.g.Settings() != unset || !r.g.logs.Load() || r.sampler.Decide(parent).Parent.String() == parent {
		t.Error("defaults are not back")
	}
}

// A route that is gone is not exported any more; one that was refused never was.
func TestCountersFollowRoutes(t *testing.T) {
	r := newRig(t)
	r.apply(twoRoutes)
	for _, path := range []string{"x/a", "x/b", "x/c"} {
		r.do(request("GET", path))
	}
	exported := func() string {
		scopes, err := r.counters.Produce(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(scopes)
	}
	if text := exported(); !strings.Contains(text, "default/a") && !strings.Contains(text, "upstream_unavailable") {
		t.Fatal(text)
	}
	a := r.g.compiled.routes[config.Key{Kind: config.KindRoute, Workspace: "default", Name: "a"}].counters
	r.apply(strings.ReplaceAll(twoRoutes, "/a}", "/c}"))
	if r.counters.Route("default", "a") != a {
		t.Error("a route that changed lost its counts")
	}
	r.apply("", config.Key{Kind: config.KindRoute, Workspace: "default", Name: "a"})
	if r.counters.Route("default", "a") == a {
		t.Error("a route that is gone is still counted")
	}
}
