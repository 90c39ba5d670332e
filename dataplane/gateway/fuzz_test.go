package gateway

import (
	"context"
	"testing"

	"portcullis.dev/portcullis/dataplane/follow"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// FuzzCheckedApplies: what config.Check accepts compiles, from scratch and on top
// of another configuration, and what is compiled does not panic on a request.
func FuzzCheckedApplies(f *testing.F) {
	for _, text := range []string{
		twoRoutes, guarded, typical + issuer("default", "local", "https://local.example", secret) + upstreamAt("up", "http://127.0.0.1:1"),
		refusals + issuer("default", "local", "https://local.example", secret) + upstreamAt("up", "http://127.0.0.1:1") + upstreamAt("down", "https://[::1]:2"),
		guarded + keySet("default", "remote", 0, 1),
		doc("Workspace", "", "shop", "{policies: [{ref: p}]}") + doc("Policy", "default", "p", "{headers: {response: {set: {X-A: b}}}}") + upstreamAt("up", "http://127.0.0.1:1") +
			doc("Route", "shop", "a", "{public: true, hostnames: ['*.x.example', y.example], matches: [{path: {template: '/u/{id}/v'}}, {path: {exact: '/a%20b'}}], backends: [{upstream: up, weight: 3}]}"),
		upstreamAt("up", "http://127.0.0.1:1") + doc("Route", "default", "a", "{public: true, matches: [{path: {exact: '/a%3Bb'}}, {path: {prefix: '/50%25'}}, {path: {exact: '/a:b@c'}}, "+
			"{path: {template: '/{a}/%C3%A9/{b}'}, headers: [{name: X-A, regex: 'a|b'}]}], backends: [{upstream: up}]}"),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		decoded, err := config.Decode("f.yaml", data)
		if err != nil {
			return
		}
		var rs []*configv1.Resource
		for _, d := range decoded {
			// Certificates and keys of upstreams are pkg/identity's to compile.
			if d.Resource.GetUpstream().GetTls() == nil {
				rs = append(rs, d.Resource)
			}
		}
		checked, err := config.Check(rs)
		if err != nil {
			return
		}
		r := newRig(t)
		if err := r.g.Apply(context.Background(), follow.Next{Version: config.Version{Epoch: 1, Revision: 1}, Checked: checked, Affected: config.Affected{All: true}}); err != nil {
			t.Fatalf("accepted by Check, refused by Apply: %v\n%s", err, data)
		}
		for host := range r.hosts() {
			f := r.g.begin(request("GET", host+"/"))
			_, _ = f.decide(request("GET", host+"/a/b", "X-Key", "pc_x", "Authorization", "Bearer x"))
		}
		// On top of what is there, and away again.
		other := newRig(t)
		other.apply(twoRoutes)
		if _, _, err := other.checked.Apply(config.Delta{Upserts: rs}); err == nil {
			if err := other.try(config.Delta{Upserts: rs}); err != nil {
				t.Fatalf("accepted by Check, refused by Apply: %v\n%s", err, data)
			}
		}
		if err := other.try(config.Delta{Deletes: keysOf(other.checked)}); err != nil || other.pool.Users() != 0 {
			t.Fatalf("%v; %d upstreams held by nothing", err, other.pool.Users())
		}
	})
}

// hosts are those that routes name, and one that none does.
func (r *rig) hosts() map[string]bool {
	hosts := map[string]bool{"none.test": true}
	for _, route := range r.g.compiled.routes {
		for _, p := range route.patterns {
			hosts[p.Host] = true
		}
	}
	return hosts
}
