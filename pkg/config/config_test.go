package config

import (
	"flag"
	"os"
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
		"default: gateway policies[0]", "shop: workspace shop policies[0]",
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
