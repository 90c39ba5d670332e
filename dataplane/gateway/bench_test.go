package gateway

import (
	"context"
	"fmt"
	"testing"

	"portcullis.dev/portcullis/dataplane/follow"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// typical is a route with all that a request usually meets: token, revocations,
// scopes, a rule, limits, changed headers.
const typical = `
---
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec: {policies: [{headers: {request: {remove: [X-Debug]}}}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: orders}
spec:
  hostnames: [api.example]
  matches: [{path: {template: "/orders/{id}"}, methods: [GET], headers: [{name: X-Version, exact: "2"}]}]
  policies:
    - jwt: {issuers: [local], audiences: ["https://api.example"]}
    - authorize: {rules: [{scopes: ["orders:read"]}]}
    - rateLimit: {key: auth.client, limits: [{name: burst, requests: 1000000000, window: 1s}, {name: hour, requests: 1000000000, window: 1h}]}
  revocation: {maxStaleness: 1h, onStale: deny}
  backends: [{upstream: up}]
`

func (r *rig) typical() {
	r.apply(typical + issuer("default", "local", "https://local.example", secret) + upstreamAt("up", "http://127.0.0.1:1"))
}

// once hands run what Handle does until the upstream is asked.
func (r *rig) once(b testing.TB, run func(decide func())) {
	authorization := "Bearer " + mint(secret, nil)
	e := request("GET", "api.example/orders/42", "X-Version", "2", "Accept", "*/*", "Authorization", authorization)
	id, host, path := e.ID, e.Request.Host, e.Request.Path
	run(func() {
		e.Reset()
		e.Context, e.ID, e.Received = context.Background(), id, started
		e.Request.Method, e.Request.Host, e.Request.Path, e.Request.Scheme = "GET", host, path, "https"
		e.Request.Header.Add("X-Version", "2")
		e.Request.Header.Add("Accept", "*/*")
		e.Request.Header.Add("Authorization", authorization)
		f := r.g.begin(e)
		if _, denial := f.decide(e); denial != nil {
			b.Fatal(denial.Reason, e.Why)
		}
		e.Done = e.Done[:0]
		r.g.cfg.Counters.Ended("GET", false)
		*f = flight{g: r.g, end: f.end}
		r.g.flights.Put(f)
	})
}

func TestDecidingAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("ALLOCATIONS ARE NOT COUNTED under the race detector, where sync.Pool forgets: make test counts them without")
	}
	r := newRig(t)
	r.typical()
	r.once(t, func(decide func()) {
		decide()
		if n := testing.AllocsPerRun(1000, decide); n != 0 {
			t.Errorf("%v allocations from Admit to Transform on a token-cache hit", n)
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	r := newRig(b)
	r.typical()
	b.ReportAllocs()
	r.once(b, func(decide func()) {
		for b.Loop() {
			decide()
		}
	})
}

// manyRoutes is a configuration of n routes on as many hosts as an estate has.
func manyRoutes(b testing.TB, n int) config.Checked {
	rs := documents(b, upstreamAt("up", "http://127.0.0.1:1")+issuer("default", "local", "https://local.example", secret)+
		doc("Route", "default", "one", `{hostnames: [h.example], policies: [{jwt: {issuers: [local], audiences: ["https://api.example"]}}], backends: [{upstream: up}]}`))
	one := rs[2]
	rs = rs[:2]
	for i := range n {
		rs = append(rs, routeNo(one, i, 0))
	}
	checked, err := config.Check(rs)
	if err != nil {
		b.Fatal(err)
	}
	return checked
}

func routeNo(like *configv1.Resource, i int, priority int32) *configv1.Resource {
	spec := like.GetRoute()
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "default", Name: fmt.Sprintf("r%06d", i)},
		Spec: &configv1.Resource_Route{Route: &configv1.Route{
			Hostnames: []string{fmt.Sprintf("h%d.example", i/100)}, Policies: spec.Policies, Backends: spec.Backends, Priority: priority,
			Matches: []*configv1.Match{{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: fmt.Sprintf("/api/v%d", i%100)}}}},
		}},
	}
}

// BenchmarkApplyOneOf100k is one changed route of 100,000, from the checked change
// to the swap.
func BenchmarkApplyOneOf100k(b *testing.B) {
	r := newRig(b)
	const n = 100_000
	checked := manyRoutes(b, n)
	apply := func(c config.Checked, affected config.Affected) {
		r.revision++
		if err := r.g.Apply(context.Background(), follow.Next{Version: config.Version{Epoch: 1, Revision: r.revision}, Checked: c, Affected: affected}); err != nil {
			b.Fatal(err)
		}
	}
	apply(checked, config.Affected{All: true})
	like, _ := checked.Get(config.Key{Kind: config.KindRoute, Workspace: "default", Name: "r000000"})
	i := int32(0)
	b.ReportAllocs()
	for b.Loop() {
		i++
		next, affected, err := checked.Apply(config.Delta{Upserts: []*configv1.Resource{routeNo(like, int(i*7919)%n, i)}})
		if err != nil {
			b.Fatal(err)
		}
		apply(next, affected)
		checked = next
	}
}
