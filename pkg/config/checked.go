package config

import (
	"fmt"
	"iter"
	"strconv"

	"portcullis.dev/portcullis/pkg/config/expr"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Checked is a configuration that obeys every rule: only Check and Apply build
// one. It is an immutable value; those made from one another share structure. The
// zero Checked is the empty configuration. Safe for concurrent use. Resources
// that it returns are shared: read only.
//
// Credentials are no part of it, see CheckCredential.
type Checked struct {
	docs     tree[Key, *entry]
	users    tree[Key, tree[holder, none]] // who refers to a key, or would if it existed
	patterns tree[pattern, *entry]         // what routes match, to find those that match the same
	digest   [32]byte
	env      *expr.Env
	memory   *memory // see recall
}

type none struct{}

// entry is a resource and what was derived from it once.
type entry struct {
	self     holder
	resource *configv1.Resource
	digest   [32]byte
	refs     []Key    // candidates: each name in the workspace and in default
	buckets  []string // of a route: for each match, for each hostname
}

// holder is a key that is held by many index entries and so stored once.
type holder struct{ *Key }

// Compare orders holders by their keys.
func (h holder) Compare(o holder) int {
	if h.Key == o.Key {
		return 0
	}
	return h.Key.Compare(*o.Key)
}

// Get returns a resource.
func (c Checked) Get(k Key) (*configv1.Resource, bool) {
	e, ok := c.docs.get(k)
	if !ok {
		return nil, false
	}
	return e.resource, true
}

// Resolve returns the resource that a document of the workspace means by a name:
// the workspace's own, else that of the default workspace. An Upstream of the
// latter is found only when it is shared, since what it opens is a service and
// perhaps a certificate; an Application never is, since its keys would be good for
// the routes of every tenant.
func (c Checked) Resolve(kind, workspace, name string) (*configv1.Resource, bool) {
	if r, ok := c.Get(Key{kind, workspace, name}); ok || workspace == DefaultWorkspace || kind == KindApplication {
		return r, ok
	}
	r, ok := c.Get(Key{kind, DefaultWorkspace, name})
	if ok && kind == KindUpstream && !r.GetUpstream().GetShared() {
		return nil, false
	}
	return r, ok
}

// All yields every resource in the order of the keys.
func (c Checked) All() iter.Seq[*configv1.Resource] {
	return func(yield func(*configv1.Resource) bool) {
		for _, e := range c.docs.all() {
			if !yield(e.resource) {
				return
			}
		}
	}
}

// OfKind yields the resources of a kind in the order of the keys. It costs as
// much as there are of them, however many others there are.
func (c Checked) OfKind(kind string) iter.Seq2[Key, *configv1.Resource] {
	return func(yield func(Key, *configv1.Resource) bool) {
		for e := range c.within(kind, "") {
			if !yield(*e.self.Key, e.resource) {
				return
			}
		}
	}
}

// within yields the resources of a kind, of one workspace unless it is "".
func (c Checked) within(kind, workspace string) iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		for k, e := range c.docs.from(Key{Kind: kind, Workspace: workspace}) {
			if k.Kind != kind || workspace != "" && k.Workspace != workspace || !yield(e) {
				return
			}
		}
	}
}

// Len returns the number of resources.
func (c Checked) Len() int { return c.docs.size }

// Digest returns the XOR of the resources' digests; zero when there are none.
func (c Checked) Digest() [32]byte { return c.digest }

// EffectivePolicy is a policy that holds for a route, references followed.
type EffectivePolicy struct {
	Policy *configv1.Policy
	// Origin says where it stands: "gateway policies[0]", "workspace shop
	// policies[1]", "policies[0]" for the route's own, followed by the shared Policy
	// in brackets when it is one: "policies[2] (Policy shop/office-hours)".
	Origin string
	// Level is whose policy it is.
	Level Level
	// Workspace is where the names in Policy are looked up first: the default one
	// for a baseline and for all that it leads to.
	Workspace string
}

// Level is where a policy is declared, from the outside in. What an outer one
// declares holds whatever an inner one adds.
type Level uint8

// The levels.
const (
	LevelGateway Level = iota
	LevelWorkspace
	LevelRoute
)

// Policies returns what holds for a route: the Gateway's baseline, its
// Workspace's, then its own, each in the order listed. None for a route that does
// not exist.
func (c Checked) Policies(route Key) []EffectivePolicy {
	r, ok := c.Get(route)
	if !ok || r.GetRoute() == nil {
		return nil
	}
	own := r.GetRoute().GetPolicies()
	out := make([]EffectivePolicy, 0, len(own)+4)
	if g, ok := c.Get(Key{KindGateway, DefaultWorkspace, "default"}); ok {
		out = c.follow(out, LevelGateway, "gateway ", DefaultWorkspace, g.GetGateway().GetPolicies())
	}
	if w, ok := c.Get(Key{Kind: KindWorkspace, Name: route.Workspace}); ok {
		// Not in the workspace itself: whoever is bound by the baseline could declare
		// what its names mean.
		out = c.follow(out, LevelWorkspace, "workspace "+route.Workspace+" ", DefaultWorkspace, w.GetWorkspace().GetPolicies())
	}
	return c.follow(out, LevelRoute, "", route.Workspace, own)
}

func (c Checked) follow(out []EffectivePolicy, level Level, from, workspace string, policies []*configv1.Policy) []EffectivePolicy {
	for i, p := range policies {
		e := EffectivePolicy{Policy: p, Origin: from + "policies[" + strconv.Itoa(i) + "]", Level: level, Workspace: workspace}
		if p.GetRef() != "" {
			shared, ok := c.shared(workspace, p)
			if !ok {
				continue // only before Check has refused it
			}
			e.Policy, e.Workspace = shared.GetPolicy(), shared.GetMetadata().GetWorkspace()
			e.Origin += fmt.Sprintf(" (%s)", KeyOf(shared))
		}
		out = append(out, e)
	}
	return out
}

// maxRefs is the length of the longest chain of references that is followed.
const maxRefs = 16

// shared follows a reference to the Policy that is none itself.
func (c Checked) shared(workspace string, p *configv1.Policy) (*configv1.Resource, bool) {
	for range maxRefs {
		r, ok := c.Resolve(KindPolicy, workspace, p.GetRef())
		if !ok {
			return nil, false
		}
		if r.GetPolicy().GetRef() == "" {
			return r, true
		}
		workspace, p = r.GetMetadata().GetWorkspace(), r.GetPolicy()
	}
	return nil, false
}
