package config

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/config/expr"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Delta is a change of a configuration. Deleting what does not exist does
// nothing, so that merged deltas can be applied.
type Delta struct {
	Upserts []*configv1.Resource
	Deletes []Key
	// Owned: nobody modifies Upserts any more, so they are kept as they are and not
	// cloned.
	Owned bool
}

// Affected says what a change may make different for a node. Lists are sorted and
// name what was removed, too.
type Affected struct {
	// All: every route. Routes then names only those that changed themselves or
	// were removed.
	All bool
	// Routes whose compiled form may differ: their document, or anything that it
	// refers to or that is looked up for it, changed. KeySets and Applications are
	// not counted: they belong to live state that routes find by name.
	Routes []Key
	// Resources of these kinds that were put or removed.
	Upstreams, Issuers, KeySets, Applications []Key
	// Certificates and IssuedCertificates that were put or removed: listeners show
	// others, and no route is another.
	Certificates []Key
	// Gateway: what it says beyond policies may differ, too.
	Gateway bool
}

// Empty reports whether nothing changed for a node.
func (a Affected) Empty() bool {
	return !a.All && !a.Gateway && len(a.Routes)+len(a.Upstreams)+len(a.Issuers)+len(a.KeySets)+len(a.Applications)+len(a.Certificates) == 0
}

// Check checks a whole configuration. The error is Problems, every one that there
// is. The input is cloned.
func Check(rs []*configv1.Resource) (Checked, error) {
	c, _, err := Checked{}.Apply(Delta{Upserts: rs})
	return c, err
}

// Apply checks a change and returns the configuration after it. Its cost is that
// of the change and of what depends on it, not of c; a document that is in c as it
// is costs its digest. Verdict and result are those of Check of the whole. On an
// error, which is Problems, c is returned. Affected may be shared: read only.
//
// A long Apply lets other goroutines run in between.
func (c Checked) Apply(d Delta) (Checked, Affected, error) {
	a := application{Checked: c, x: new(txn), changed: make(map[Key]*entry, len(d.Upserts)), touched: map[string]bool{}}
	if a.env == nil {
		a.env = expr.New()
	}
	a.decide(d)
	if known := c.recall(&a); known != nil {
		return known.checked, known.affected, nil
	}
	a.memory = new(memory)
	a.memory.from.Store(c.memory)
	a.remove()
	a.put()
	affected := a.spread()
	for _, e := range a.recheck {
		a.turn.next()
		r := report{key: *e.self.Key, env: a.env}
		r.global(a.Checked, e.resource)
		a.problems = append(a.problems, r.problems...)
	}
	a.overlaps()
	if err := a.problems.sorted(); err != nil {
		return c, Affected{}, err
	}
	c.remember(&outcome{a.changed, a.Checked, affected})
	return a.Checked, affected, nil
}

// application is one run of Apply: the configuration in the making.
type application struct {
	Checked
	x    *txn
	hash hasher
	turn turn
	// What the change comes to, as decide finds it: documents that differ from what
	// is there, and what is to go.
	puts []draft
	gone []*entry

	changed  map[Key]*entry  // nil entry: removed
	touched  map[string]bool // buckets whose routes must be compared again
	recheck  map[Key]*entry
	problems Problems
}

// draft is a document that differs from what is there under its key.
type draft struct {
	key      Key
	resource *configv1.Resource
	digest   [32]byte
	size     int    // of its encoding, in bytes
	old      *entry // nil for a new one
}

func (a *application) fail(k Key, path, format string, args ...any) {
	a.problems = append(a.problems, &Problem{Key: k, Path: path, Reason: fmt.Sprintf(format, args...)})
}

// decide finds what of the change changes anything, and changes nothing yet.
func (a *application) decide(d Delta) {
	seen := make(map[Key]bool, len(d.Upserts))
	for _, res := range d.Upserts {
		a.turn.next()
		if res == nil {
			a.problems = append(a.problems, &Problem{Reason: "is empty: expected a resource"})
			continue
		}
		key := KeyOf(res)
		if seen[key] {
			a.fail(key, "metadata.name", "is declared twice: expected each name once for a kind and workspace")
			continue
		}
		seen[key] = true
		if key.Kind == KindCredential {
			a.fail(key, "kind", "Credentials are no part of the configuration: expected one of the others")
			continue
		}
		digest, size := a.hash.digest(res)
		old, _ := a.docs.get(key)
		if old != nil && old.digest == digest {
			continue
		}
		switch {
		case !normalized(res):
			res = normalize(res)
		case !d.Owned:
			res = proto.Clone(res).(*configv1.Resource)
		}
		a.puts = append(a.puts, draft{key, res, digest, size, old})
	}
	deleted := make(map[Key]bool, len(d.Deletes))
	for _, k := range d.Deletes {
		if seen[k] {
			a.fail(k, "", "is put and deleted by the same change: expected one of them")
		} else if old, ok := a.docs.get(k); ok && !deleted[k] {
			deleted[k] = true
			a.gone = append(a.gone, old)
		}
	}
}

func (a *application) remove() {
	for _, old := range a.gone {
		a.unlink(old, nil)
		a.docs.remove(a.x, *old.self.Key)
		xor(&a.digest, old.digest)
		a.changed[*old.self.Key] = nil
	}
}

func (a *application) put() {
	for i := range a.puts {
		a.turn.next()
		a.putOne(&a.puts[i])
	}
}

func (a *application) putOne(d *draft) {
	r := report{key: d.key, env: a.env}
	r.local(d.resource, d.size)
	a.problems = append(a.problems, r.problems...)
	e := &entry{resource: d.resource, digest: d.digest, refs: candidates(d.key, d.resource)}
	if d.old != nil {
		e.self = d.old.self
		xor(&a.digest, d.old.digest)
	} else {
		key := d.key
		e.self = holder{&key}
	}
	if d.key.Kind == KindRoute && len(r.problems) == 0 {
		e.buckets = buckets(d.resource.GetRoute())
	}
	a.unlink(d.old, e)
	a.docs.put(a.x, d.key, e)
	xor(&a.digest, d.digest)
	a.changed[d.key] = e
}

// unlink replaces what the indexes say of old with what e says; either may be nil.
func (a *application) unlink(old, e *entry) {
	if old != nil {
		for _, k := range old.refs {
			if e == nil || !slices.Contains(e.refs, k) {
				users, _ := a.users.get(k)
				users.remove(a.x, old.self)
				if users.size == 0 {
					a.users.remove(a.x, k)
				} else {
					a.users.put(a.x, k, users)
				}
			}
		}
		for i, b := range old.buckets {
			a.touched[b] = true
			if e == nil || i >= len(e.buckets) || e.buckets[i] != b {
				a.patterns.remove(a.x, pattern{b, old.self, i})
			}
		}
	}
	if e == nil {
		return
	}
	for _, k := range e.refs {
		if old == nil || !slices.Contains(old.refs, k) {
			users, _ := a.users.get(k)
			users.put(a.x, e.self, none{})
			a.users.put(a.x, k, users)
		}
	}
	for i, b := range e.buckets {
		a.patterns.put(a.x, pattern{b, e.self, i}, e)
		a.touched[b] = true
	}
}

// spread finds what depends on the changed resources: what must be checked again,
// and what is affected.
func (a *application) spread() Affected {
	var out Affected
	a.recheck = make(map[Key]*entry, len(a.changed))
	queue := make([]Key, 0, len(a.changed))
	existed := a.changed
	change := func(k Key) {
		if e := a.changed[k]; e != nil {
			a.recheck[k] = e
		}
		out.add(k)
		queue = append(queue, k)
	}
	for i := range a.puts {
		change(a.puts[i].key)
	}
	for _, old := range a.gone {
		change(*old.self.Key)
	}
	// What comes sorted is found in that order, so that sorting it costs little.
	slices.Reverse(queue)
	var routes []Key
	visited := make(map[Key]bool, len(queue))
	for len(queue) > 0 {
		k := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if visited[k] {
			continue
		}
		a.turn.next()
		visited[k] = true
		if k.Kind == KindRoute {
			routes = append(routes, k)
		}
		users, _ := a.users.get(k)
		for user := range users.all() {
			a.again(*user.Key)
			// A certificate is its listeners' alone: the Gateway's other users, which are
			// all routes, stay as they are.
			if k.Kind != KindCertificate {
				queue = append(queue, *user.Key)
			}
		}
		switch k.Kind {
		case KindGateway:
			out.All = true
			for e := range a.within(KindRoute, "") {
				a.recheck[*e.self.Key] = e
			}
		case KindWorkspace:
			a.workspace(k, existed, &queue)
		}
	}
	out.Routes = slices.DeleteFunc(routes, func(k Key) bool { return out.All && a.unchanged(k) })
	out.sort()
	return out
}

// workspace spreads the change of a Workspace: its routes have other baselines;
// when it is gone nothing may be left in it.
func (a *application) workspace(k Key, changed map[Key]*entry, queue *[]Key) {
	for e := range a.within(KindRoute, k.Name) {
		a.recheck[*e.self.Key] = e
		*queue = append(*queue, *e.self.Key)
	}
	if e, ok := changed[k]; !ok || e != nil {
		return
	}
	for _, kind := range Kinds() {
		if kind == KindWorkspace {
			continue
		}
		for e := range a.within(kind, k.Name) {
			a.recheck[*e.self.Key] = e
		}
	}
}

func (a *application) again(k Key) {
	if e, ok := a.docs.get(k); ok {
		a.recheck[k] = e
	}
}

func (a *application) unchanged(k Key) bool {
	_, changed := a.changed[k]
	return !changed
}

func (out *Affected) add(k Key) {
	switch k.Kind {
	case KindGateway:
		out.Gateway = true
	case KindUpstream:
		out.Upstreams = append(out.Upstreams, k)
	case KindIssuer:
		out.Issuers = append(out.Issuers, k)
	case KindKeySet:
		out.KeySets = append(out.KeySets, k)
	case KindApplication:
		out.Applications = append(out.Applications, k)
	case KindCertificate, KindIssuedCertificate:
		out.Certificates = append(out.Certificates, k)
	}
}

func (out *Affected) sort() {
	for _, keys := range [][]Key{out.Routes, out.Upstreams, out.Issuers, out.KeySets, out.Applications, out.Certificates} {
		slices.SortFunc(keys, Key.Compare)
	}
}
