package config

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// golden compares got with testdata/name and rewrites it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := "testdata/" + name
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (rewrite with -update):\n%s", file, got)
	}
}

func decode(t testing.TB, text string) []*configv1.Resource {
	t.Helper()
	docs, err := Decode("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	rs := make([]*configv1.Resource, len(docs))
	for i, d := range docs {
		rs[i] = d.Resource
	}
	return rs
}

const shop = `
apiVersion: portcullis.dev/v1
kind: Workspace
metadata: {name: shop}
spec:
  policies:
    - rateLimit: {limits: [{name: all, requests: 1000, window: 1s}]}
---
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec:
  trustedProxies: [10.0.0.0/8]
  policies: [{headers: {response: {set: {Strict-Transport-Security: max-age=1}}}}]
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: local}
spec: {issuer: https://local.example, builtIn: true}
---
apiVersion: portcullis.dev/v1
kind: Policy
metadata: {name: office-hours}
spec: {authorize: {rules: [{name: hours, require: "now.getHours() >= 8"}]}}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {workspace: shop, name: orders}
spec: {endpoints: [{url: "http://127.0.0.1:9000"}]}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {workspace: shop, name: orders-canary}
spec: {endpoints: [{url: "http://127.0.0.1:9001", weight: 2, labels: {zone: a}}]}
---
# The example of the design.
apiVersion: portcullis.dev/v1
kind: Route
metadata: {workspace: shop, name: orders}
spec:
  hostnames: [api.shop.example]
  matches: [{path: {prefix: /orders}, methods: [GET, POST]}]
  policies:
    - jwt: {issuers: [local], audiences: [https://api.shop.example]}
    - authorize:
        rules:
          - {when: "request.method == 'GET'",  scopes: [orders:read]}
          - {when: "request.method == 'POST'", scopes: [orders:write]}
          - {name: own-tenant, require: "request.headers['x-tenant'] == auth.claims.tenant"}
    - rateLimit:
        key: auth.client
        limits: [{name: burst, requests: 20, window: 1s}, {name: hour, requests: 5000, window: 1h}]
        onPartition: split
    - ref: office-hours
  revocation: {maxStaleness: 5s, onStale: deny}
  backends: [{upstream: orders, weight: 90}, {upstream: orders-canary, weight: 10}]
  timeouts: {request: 5s}
`

func TestDesignExample(t *testing.T) {
	c, err := Check(decode(t, shop))
	if err != nil {
		t.Fatal(err)
	}
	var origins []string
	for _, p := range c.Policies(Key{KindRoute, "shop", "orders"}) {
		origins = append(origins, p.Workspace+": "+p.Origin)
	}
	want := []string{
		"default: gateway policies[0]", "default: workspace shop policies[0]",
		"shop: policies[0]", "shop: policies[1]", "shop: policies[2]",
		"default: policies[3] (Policy default/office-hours)",
	}
	if len(origins) != len(want) {
		t.Fatalf("policies: %q", origins)
	}
	for i := range want {
		if origins[i] != want[i] {
			t.Errorf("policy %d: %q; want %q", i, origins[i], want[i])
		}
	}
	if c.Len() != 7 {
		t.Errorf("Len = %d", c.Len())
	}
}

// TestBaselineIsNotShadowed: whoever may write in a workspace cannot give another
// meaning to a name in the baseline that binds it.
func TestBaselineIsNotShadowed(t *testing.T) {
	const header = "apiVersion: portcullis.dev/v1\n"
	base, err := Check(decode(t, header+strings.Join([]string{
		"kind: Workspace\nmetadata: {name: shop}\nspec: {policies: [{ref: baseline}, {jwt: {issuers: [platform], audiences: [a]}}]}",
		"kind: Gateway\nmetadata: {name: default}\nspec: {policies: [{ref: rules}]}",
		"kind: Policy\nmetadata: {name: baseline}\nspec: {ref: rules}",
		"kind: Policy\nmetadata: {name: rules}\nspec: {authorize: {rules: [{scopes: [platform]}]}}",
		"kind: Issuer\nmetadata: {name: platform}\nspec: {issuer: https://platform.example, builtIn: true}",
		"kind: Upstream\nmetadata: {workspace: shop, name: up}\nspec: {endpoints: [{url: http://a}]}",
		"kind: Route\nmetadata: {workspace: shop, name: r}\nspec: {backends: [{upstream: up}]}",
	}, "\n---\n"+header)))
	if err != nil {
		t.Fatal(err)
	}
	route := Key{KindRoute, "shop", "r"}
	hiding := decode(t, header+strings.Join([]string{
		"kind: Policy\nmetadata: {workspace: shop, name: baseline}\nspec: {headers: {response: {remove: [Server]}}}",
		"kind: Policy\nmetadata: {workspace: shop, name: rules}\nspec: {headers: {response: {remove: [Server]}}}",
		"kind: Issuer\nmetadata: {workspace: shop, name: platform}\nspec: {issuer: https://tenant.example, builtIn: true}",
	}, "\n---\n"+header))
	next, affected, err := base.Apply(Delta{Upserts: hiding})
	if err != nil || len(affected.Routes) > 0 || affected.All {
		t.Fatalf("%+v, %v", affected, err)
	}
	policies := next.Policies(route)
	if len(policies) != 3 {
		t.Fatalf("%d policies", len(policies))
	}
	for _, p := range policies {
		if p.Workspace != DefaultWorkspace || p.Policy.GetHeaders() != nil {
			t.Errorf("%s: in %s: %v", p.Origin, p.Workspace, p.Policy)
		}
	}
	// What a baseline refers to is in default, or the document is refused.
	_, _, err = next.Apply(Delta{Deletes: []Key{{KindPolicy, DefaultWorkspace, "baseline"}, {KindIssuer, DefaultWorkspace, "platform"}}})
	for _, want := range []string{
		`Workspace shop: spec.policies[0].ref: Policy "baseline" does not exist in workspace "default"`,
		`Workspace shop: spec.policies[1].jwt.issuers[0]: Issuer "platform" does not exist in workspace "default"`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
	}
	// What changes there reaches the routes that it binds.
	change := decode(t, header+"kind: Policy\nmetadata: {name: rules}\nspec: {authorize: {rules: [{scopes: [more]}]}}")
	if _, affected, err := base.Apply(Delta{Upserts: change, Deletes: []Key{{KindGateway, DefaultWorkspace, "default"}}}); err != nil || !affected.All {
		t.Errorf("%+v, %v", affected, err)
	}
	base, _, err = base.Apply(Delta{Deletes: []Key{{KindGateway, DefaultWorkspace, "default"}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, affected, err := base.Apply(Delta{Upserts: change}); err != nil || !slices.Equal(affected.Routes, []Key{route}) {
		t.Errorf("%+v, %v", affected, err)
	}
}

// TestResolve: a name falls back to default for what tenants are to share, and not
// for what would open a service or let a key in.
func TestResolve(t *testing.T) {
	const header = "apiVersion: portcullis.dev/v1\n"
	c, err := Check(decode(t, header+strings.Join([]string{
		"kind: Workspace\nmetadata: {name: shop}",
		"kind: Upstream\nmetadata: {name: billing}\nspec: {endpoints: [{url: http://a}]}",
		"kind: Upstream\nmetadata: {name: open}\nspec: {endpoints: [{url: http://a}], shared: true}",
		"kind: Application\nmetadata: {name: erp}",
		"kind: Application\nmetadata: {workspace: shop, name: own}",
		"kind: Issuer\nmetadata: {name: local}\nspec: {issuer: https://local.example, builtIn: true}",
		"kind: Policy\nmetadata: {name: keys}\nspec: {apiKey: {}}",
	}, "\n---\n"+header)))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		kind, workspace, name string
		found                 bool
	}{
		{KindUpstream, "default", "billing", true}, {KindUpstream, "shop", "billing", false},
		{KindUpstream, "default", "open", true}, {KindUpstream, "shop", "open", true},
		{KindApplication, "default", "erp", true}, {KindApplication, "shop", "erp", false}, {KindApplication, "shop", "own", true},
		{KindApplication, "default", "own", false}, {KindIssuer, "shop", "local", true}, {KindPolicy, "shop", "keys", true},
	} {
		if _, found := c.Resolve(want.kind, want.workspace, want.name); found != want.found {
			t.Errorf("%+v: %v", want, found)
		}
	}
	route := func(upstream string) Delta {
		return Delta{Upserts: decode(t, header+"kind: Route\nmetadata: {workspace: shop, name: r}\nspec: {public: true, backends: [{upstream: "+upstream+"}]}")}
	}
	if _, _, err := c.Apply(route("billing")); err == nil || !strings.Contains(err.Error(), `Upstream "billing" of workspace "default" is not shared`) {
		t.Error(err)
	}
	c, _, err = c.Apply(route("open"))
	if err != nil {
		t.Fatal(err)
	}
	// Who stops sharing is told whom that breaks.
	unshared := decode(t, header+"kind: Upstream\nmetadata: {name: open}\nspec: {endpoints: [{url: http://a}]}")
	if _, _, err := c.Apply(Delta{Upserts: unshared}); err == nil || !strings.Contains(err.Error(), "Route shop/r: spec.backends[0].upstream") {
		t.Error(err)
	}
	tenants := decode(t, header+"kind: Upstream\nmetadata: {workspace: shop, name: own}\nspec: {endpoints: [{url: http://a}], shared: true}")
	if _, _, err := c.Apply(Delta{Upserts: tenants}); err == nil || !strings.Contains(err.Error(), "spec.shared: has no effect") {
		t.Error(err)
	}
}
