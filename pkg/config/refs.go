package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// ref is one name in a document that means another document. It stands at form,
// in which each # is the next index of at.
type ref struct {
	form       string
	at         [2]int
	kind, name string
}

// path spells out where the name stands, which only a problem says.
func (f ref) path() string {
	path := f.form
	for _, i := range f.at {
		path = strings.Replace(path, "#", strconv.Itoa(i), 1)
	}
	return path
}

// scope is the workspace in which a document's names are looked up. A baseline's
// are not looked up in the workspace that it binds.
func scope(k Key) string {
	if k.Kind == KindWorkspace {
		return DefaultWorkspace
	}
	return k.Workspace
}

// policiesOf returns a document's policies and the path of each.
func policiesOf(r *configv1.Resource) (policies []*configv1.Policy, path func(int) string) {
	path = func(i int) string { return "spec.policies[" + strconv.Itoa(i) + "]" }
	switch spec := r.GetSpec().(type) {
	case *configv1.Resource_Gateway:
		return spec.Gateway.GetPolicies(), path
	case *configv1.Resource_Workspace:
		return spec.Workspace.GetPolicies(), path
	case *configv1.Resource_Route:
		return spec.Route.GetPolicies(), path
	case *configv1.Resource_Policy:
		return []*configv1.Policy{spec.Policy}, func(int) string { return "spec" }
	}
	return nil, path
}

// eachRef calls f for every reference of a document.
func eachRef(r *configv1.Resource, f func(ref)) {
	switch spec := r.GetSpec().(type) {
	case *configv1.Resource_Gateway:
		eachPolicyRef(spec.Gateway.GetPolicies(), f)
		for i, l := range spec.Gateway.GetListeners() {
			for j, name := range l.GetTls().GetCertificates() {
				f(ref{"spec.listeners[#].tls.certificates[#]", [2]int{i, j}, KindCertificate, name})
			}
		}
	case *configv1.Resource_Workspace:
		eachPolicyRef(spec.Workspace.GetPolicies(), f)
	case *configv1.Resource_Policy:
		switch kind := spec.Policy.GetKind().(type) {
		case *configv1.Policy_Ref:
			f(ref{"spec.ref", [2]int{}, KindPolicy, kind.Ref})
		case *configv1.Policy_Jwt:
			for j, name := range kind.Jwt.GetIssuers() {
				f(ref{"spec.jwt.issuers[#]", [2]int{j}, KindIssuer, name})
			}
		}
	case *configv1.Resource_Route:
		eachPolicyRef(spec.Route.GetPolicies(), f)
		for i, b := range spec.Route.GetBackends() {
			f(ref{"spec.backends[#].upstream", [2]int{i}, KindUpstream, b.GetUpstream()})
		}
		eachMirror(spec.Route, f)
	}
}

func eachPolicyRef(policies []*configv1.Policy, f func(ref)) {
	for i, p := range policies {
		switch kind := p.GetKind().(type) {
		case *configv1.Policy_Ref:
			f(ref{"spec.policies[#].ref", [2]int{i}, KindPolicy, kind.Ref})
		case *configv1.Policy_Jwt:
			for j, name := range kind.Jwt.GetIssuers() {
				f(ref{"spec.policies[#].jwt.issuers[#]", [2]int{i, j}, KindIssuer, name})
			}
		}
	}
}

// candidates returns every key that the document's names may mean.
func candidates(k Key, r *configv1.Resource) []Key {
	var keys []Key
	workspace := scope(k)
	eachRef(r, func(f ref) {
		keys = append(keys, Key{f.kind, workspace, f.name})
		if workspace != DefaultWorkspace {
			keys = append(keys, Key{f.kind, DefaultWorkspace, f.name})
		}
	})
	return keys
}

// global checks what depends on other resources; c holds them all.
func (r *report) global(c Checked, res *configv1.Resource) {
	if r.key.Kind != KindWorkspace && r.key.Workspace != DefaultWorkspace {
		if _, ok := c.Get(Key{Kind: KindWorkspace, Name: r.key.Workspace}); !ok {
			r.fail("metadata.workspace", "Workspace %q does not exist%s: expected one that is declared, or %q",
				shorten(r.key.Workspace), c.nearest(KindWorkspace, "", r.key.Workspace), DefaultWorkspace)
		}
	}
	complete := true
	eachRef(res, func(f ref) {
		if badName(f.name) != "" {
			complete = false // said already
		} else if _, ok := c.Resolve(f.kind, scope(r.key), f.name); !ok {
			complete = false
			if _, ok := c.Get(Key{f.kind, DefaultWorkspace, f.name}); ok {
				r.fail(f.path(), "%s %q of workspace %q is not shared: expected shared: true there, or one in workspace %q",
					f.kind, f.name, DefaultWorkspace, scope(r.key))
				return
			}
			where := fmt.Sprintf("workspace %q", scope(r.key))
			if scope(r.key) != DefaultWorkspace {
				where += fmt.Sprintf(" or %q", DefaultWorkspace)
			}
			r.fail(f.path(), "%s %q does not exist in %s%s", f.kind, f.name, where, c.nearest(f.kind, scope(r.key), f.name))
		}
	})
	r.issuersDiffer(c, res)
	switch r.key.Kind {
	case KindPolicy:
		r.cycle(c, res)
	case KindRoute:
		r.hostnames(c, res.GetRoute())
		r.subsets(c, res.GetRoute())
		if complete {
			r.closed(c, res.GetRoute())
		}
	}
}

// hostnames holds a route to the host names of its workspace, so that no tenant
// takes the requests of another.
func (r *report) hostnames(c Checked, t *configv1.Route) {
	w, _ := c.Get(Key{Kind: KindWorkspace, Name: r.key.Workspace})
	allowed := w.GetWorkspace().GetHostnames()
	if len(allowed) == 0 {
		return
	}
	if len(t.GetHostnames()) == 0 {
		r.fail("spec", "has no hostnames and so takes the requests of every host: expected hostnames within those of Workspace %q, %s",
			r.key.Workspace, someOf(allowed))
	}
	for i, host := range t.GetHostnames() {
		if !slices.ContainsFunc(allowed, func(a string) bool { return covers(a, host) }) {
			r.fail("spec.hostnames["+strconv.Itoa(i)+"]", "%q is not within the hostnames of Workspace %q: expected %s",
				shorten(host), r.key.Workspace, someOf(allowed))
		}
	}
}

// covers reports whether every host that a pattern matches, the other does too.
func covers(allowed, host string) bool {
	if allowed == host {
		return true
	}
	suffix, wildcard := strings.CutPrefix(allowed, "*")
	return wildcard && strings.HasSuffix(host, suffix)
}

// someOf lists the first few.
func someOf(words []string) string {
	if len(words) > 8 {
		return quoteList(words[:8]) + ", ..."
	}
	return quoteList(words)
}

// nearest suggests a name that exists; it looks at the first thousand.
func (c Checked) nearest(kind, workspace, name string) string {
	var names []string
	for _, w := range []string{workspace, DefaultWorkspace} {
		for e := range c.within(kind, w) {
			if names = append(names, e.self.Name); len(names) > 1000 {
				break
			}
		}
		if w == DefaultWorkspace || kind == KindWorkspace {
			break
		}
	}
	return didYouMean(name, names)
}

// issuersDiffer refuses two Issuers with the same iss in one policy: a token
// could not tell which of them vouches for it.
func (r *report) issuersDiffer(c Checked, res *configv1.Resource) {
	policies, path := policiesOf(res)
	for i, p := range policies {
		names := p.GetJwt().GetIssuers()
		if len(names) < 2 {
			continue
		}
		seen := map[string]string{}
		for j, name := range names {
			issuer, ok := c.Resolve(KindIssuer, scope(r.key), name)
			if !ok {
				continue
			}
			iss := issuer.GetIssuer().GetIssuer()
			if other, twice := seen[iss]; twice && other != name {
				r.fail(path(i)+".jwt.issuers["+strconv.Itoa(j)+"]", "Issuers %q and %q both have issuer %q: expected it once", other, name, shorten(iss))
			}
			seen[iss] = name
		}
	}
}

// cycle refuses a shared Policy that refers, through others, to itself, and
// chains too long to follow.
func (r *report) cycle(c Checked, res *configv1.Resource) {
	chain := []string{r.key.String()}
	for at := res; at.GetPolicy().GetRef() != ""; {
		next, ok := c.Resolve(KindPolicy, at.GetMetadata().GetWorkspace(), at.GetPolicy().GetRef())
		if !ok {
			return // said where it stands
		}
		key := KeyOf(next)
		chain = append(chain, key.String())
		if key == r.key {
			r.fail("spec.ref", "refers to itself: %s", strings.Join(chain, " -> "))
			return
		}
		if len(chain) > maxRefs {
			r.fail("spec.ref", "does not end within %d references: expected a Policy that is no reference", maxRefs)
			return
		}
		at = next
	}
}

// closed holds the rule that a route says who may use it: one without an
// authenticating policy must say that it is public.
func (r *report) closed(c Checked, t *configv1.Route) {
	authenticated := false
	for _, p := range c.Policies(r.key) {
		if !authenticates(p.Policy) {
			continue
		}
		authenticated = true
		if t.GetPublic() && p.Level == LevelRoute {
			r.fail("spec.public", "contradicts %s, which authenticates: expected one of them", p.Origin)
			return
		}
	}
	if !authenticated && !t.GetPublic() {
		r.fail("spec", `has no authenticating policy: expected "jwt" or "apiKey" in policies, or public: true`)
	}
}
