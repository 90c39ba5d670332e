package gateway

import (
	"fmt"
	"runtime"
	"testing"
	"weak"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// A route that is compiled once and then left alone, as most are, keeps nothing of
// the configurations that were replaced since.
func TestACompiledRouteKeepsNoConfiguration(t *testing.T) {
	r := newRig(t)
	passing := func(i int) string {
		return doc("Application", "default", "passing", fmt.Sprintf("{description: 'n%d'}", i))
	}
	r.apply(guarded + passing(0) + doc("Route", "default", "limited", `{public: true, hostnames: [limited.example], backends: [{upstream: up}],
  policies: [{rateLimit: {limits: [{requests: 5, window: 1s}]}}, {headers: {response: {set: {a: b}}}}]}`))
	const changes = 10
	var superseded []weak.Pointer[configv1.Resource]
	for i := range changes {
		resource, ok := r.checked.Get(config.Key{Kind: config.KindApplication, Workspace: "default", Name: "passing"})
		if !ok {
			t.Fatal("the Application is missing")
		}
		superseded = append(superseded, weak.Make(resource))
		r.apply(passing(i + 1))
	}
	runtime.GC()
	kept := 0
	for _, p := range superseded {
		if p.Value() != nil {
			kept++
		}
	}
	if kept > 0 {
		t.Errorf("%d of %d superseded documents are kept", kept, changes)
	}
	runtime.KeepAlive(r)
}
