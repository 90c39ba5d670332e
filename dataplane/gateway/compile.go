package gateway

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/follow"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/dataplane/upstream"
	"portcullis.dev/portcullis/dataplane/upstream/balance"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// defaultTimeout is what a route gets that names none.
const defaultTimeout = 30 * time.Second

// compiled is what the applier keeps beside the live snapshot, so that a change
// compiles only what it touches. One goroutine at a time uses it: follow's.
type compiled struct {
	routes    map[config.Key]*Route
	upstreams map[config.Key]*upstream.Upstream
	issuers   map[config.Key]*token.Issuer
}

// stage is a change in the making: what it puts in place of what is there.
// Nothing of it is seen by a request before commit.
type stage struct {
	g         *Gateway
	checked   config.Checked
	all       bool
	routes    map[config.Key]*Route             // nil: removed
	upstreams map[config.Key]*upstream.Upstream // nil: removed
	issuers   map[config.Key]*token.Issuer      // nil: removed
	// keys are the newest ones of live issuers that do not change themselves.
	keys     map[*token.Issuer]*configv1.KeySet
	problems config.Problems
	steps    int
}

// pause is called once for each route that is worked on: requests run in between,
// since a node may have but one processor.
func (s *stage) pause() {
	if s.steps++; s.steps%16 == 0 {
		runtime.Gosched()
	}
}

// Apply implements follow.Applier: it compiles what changed, off the request
// path, and swaps the whole snapshot in. An error leaves the snapshot before it
// live. A panic while compiling is an error like any other.
func (g *Gateway) Apply(_ context.Context, next follow.Next) (err error) {
	s := &stage{
		g: g, checked: next.Checked, all: next.Affected.All,
		routes: map[config.Key]*Route{}, upstreams: map[config.Key]*upstream.Upstream{}, issuers: map[config.Key]*token.Issuer{},
		keys: map[*token.Issuer]*configv1.KeySet{},
	}
	defer func() {
		if cause := recover(); cause != nil {
			g.cfg.Log.Error("compiling a revision failed", "revision", next.Version.String(), "panic", cause, "stack", string(debug.Stack()))
			err = fmt.Errorf("this revision cannot be compiled by this release: %v", cause)
		}
		if err != nil {
			s.discard()
		}
	}()
	s.compile(next.Affected)
	if len(s.problems) > 0 {
		return s.problems
	}
	return s.commit(next.Version)
}

func (s *stage) compile(affected config.Affected) {
	if s.all {
		affected = s.everything()
	}
	for _, key := range affected.Upstreams {
		s.upstreams[key] = nil
		if resource, ok := s.checked.Get(key); ok {
			acquired, err := s.g.cfg.Pool.Acquire(key, resource.GetUpstream())
			s.note(key, err)
			s.upstreams[key] = acquired
		}
	}
	for _, key := range affected.Issuers {
		s.issuers[key] = nil
		if resource, ok := s.checked.Get(key); ok {
			issuer, err := token.Compile(key.Workspace+"/"+key.Name, resource.GetIssuer(), s.keySet(key), s.g.cfg.Tokens)
			s.note(key, err)
			s.issuers[key] = issuer
		}
	}
	for _, key := range affected.KeySets {
		s.rotate(key)
	}
	if len(s.problems) > 0 {
		return
	}
	for _, key := range affected.Routes {
		s.pause()
		s.routes[key] = nil
		if resource, ok := s.checked.Get(key); ok {
			compiled, err := s.route(key, resource.GetRoute())
			s.note(key, err)
			s.routes[key] = compiled
		}
	}
}

func (s *stage) note(key config.Key, err error) {
	if err != nil {
		s.problems = append(s.problems, problemAt(key, "spec", err))
	}
}

// rotate stages new keys for an issuer that does not change itself, and so for
// routes that are not compiled again. What cannot be used is refused before any
// issuer has it.
func (s *stage) rotate(set config.Key) {
	key := config.Key{Kind: config.KindIssuer, Workspace: set.Workspace, Name: set.Name}
	issuer, live := s.g.compiled.issuers[key]
	if _, staged := s.issuers[key]; staged || !live {
		return
	}
	resource, _ := s.checked.Get(key)
	keys := s.keySet(key)
	_, err := token.Compile(issuer.Name(), resource.GetIssuer(), keys, nil)
	s.note(set, err)
	s.keys[issuer] = keys
}

// everything lists all that there is and all that was.
func (s *stage) everything() config.Affected {
	all := config.Affected{All: true}
	for resource := range s.checked.All() {
		switch key := config.KeyOf(resource); key.Kind {
		case config.KindRoute:
			all.Routes = append(all.Routes, key)
		case config.KindUpstream:
			all.Upstreams = append(all.Upstreams, key)
		case config.KindIssuer:
			all.Issuers = append(all.Issuers, key)
		}
	}
	gone := func(list *[]config.Key, key config.Key) {
		if _, ok := s.checked.Get(key); !ok {
			*list = append(*list, key)
		}
	}
	for key := range s.g.compiled.routes {
		gone(&all.Routes, key)
	}
	for key := range s.g.compiled.upstreams {
		gone(&all.Upstreams, key)
	}
	for key := range s.g.compiled.issuers {
		gone(&all.Issuers, key)
	}
	return all
}

func (s *stage) keySet(issuer config.Key) *configv1.KeySet {
	set, _ := s.checked.Get(config.Key{Kind: config.KindKeySet, Workspace: issuer.Workspace, Name: issuer.Name})
	return set.GetKeySet()
}

// issuer resolves a name as the route will: staged ones first, in the workspace
// and then in the default one.
func (s *stage) issuer(workspace, name string) (*token.Issuer, bool) {
	resource, ok := s.checked.Resolve(config.KindIssuer, workspace, name)
	if !ok {
		return nil, false
	}
	key := config.KeyOf(resource)
	if staged, ok := s.issuers[key]; ok {
		return staged, staged != nil
	}
	issuer, ok := s.g.compiled.issuers[key]
	return issuer, ok
}

func (s *stage) upstream(workspace, name string) (*upstream.Upstream, bool) {
	resource, ok := s.checked.Resolve(config.KindUpstream, workspace, name)
	if !ok {
		return nil, false
	}
	key := config.KeyOf(resource)
	if staged, ok := s.upstreams[key]; ok {
		return staged, staged != nil
	}
	found, ok := s.g.compiled.upstreams[key]
	return found, ok
}

// route compiles one route.
func (s *stage) route(key config.Key, spec *configv1.Route) (*Route, error) {
	r := &Route{
		info: exchange.RouteInfo{Workspace: key.Workspace, Name: key.Name}, timeout: defaultTimeout, criticality: spec.GetCriticality(),
	}
	if spec.GetTimeouts().GetRequest() != nil {
		r.timeout = spec.Timeouts.Request.AsDuration()
	}
	deps := s.g.cfg.Policy
	deps.Issuer, deps.Application = s.issuer, s.g.application
	var err error
	if r.pipeline, err = policy.CompileRoute(key, spec, s.checked.Policies(key), deps); err != nil {
		return nil, err
	}
	var mirrors []*upstream.Mirror
	for i, m := range spec.Mirrors {
		found, ok := s.upstream(key.Workspace, m.Upstream)
		if !ok {
			return nil, fmt.Errorf("%s: no Upstream %q", index("mirrors", i), m.Upstream)
		}
		mirrors = append(mirrors, upstream.NewMirror(found, m))
	}
	var weights []uint32
	for i, backend := range spec.Backends {
		found, ok := s.upstream(key.Workspace, backend.Upstream)
		if !ok {
			return nil, fmt.Errorf("%s: no Upstream %q", index("backends", i), backend.Upstream)
		}
		weight := uint32(1)
		if backend.Weight != nil {
			weight = *backend.Weight
		}
		r.backends = append(r.backends, upstream.NewBackend(found, spec, backend, mirrors...))
		weights = append(weights, weight)
	}
	r.picker = balance.NewWheel(weights)
	return r, r.addPatterns(key, spec)
}

// discard gives back what a refused stage had acquired.
func (s *stage) discard() {
	for _, acquired := range s.upstreams {
		if acquired != nil {
			acquired.Release()
		}
	}
}
