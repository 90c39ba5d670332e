package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"portcullis.dev/portcullis/pkg/config/expr"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Bounds of policies.
const (
	maxPolicies      = 64
	maxRules         = 64
	maxWords         = 128
	maxLimits        = 8
	maxHeaderChanges = 64
	maxRequests      = 1_000_000_000
)

func (r *report) policies(path string, policies []*configv1.Policy) {
	if len(policies) > maxPolicies {
		r.fail(path, "has %d entries: expected at most %d", len(policies), maxPolicies)
		return
	}
	for i, p := range policies {
		r.policy(path+"["+strconv.Itoa(i)+"]", p)
	}
}

// policy is the one switch over policy kinds of this package.
func (r *report) policy(path string, p *configv1.Policy) {
	switch kind := p.GetKind().(type) {
	case *configv1.Policy_Ref:
		if why := badName(kind.Ref); why != "" {
			r.fail(path+".ref", "%s", why)
		}
	case *configv1.Policy_Jwt:
		r.jwt(path+".jwt", kind.Jwt)
	case *configv1.Policy_ApiKey:
		r.apiKey(path+".apiKey", kind.ApiKey)
	case *configv1.Policy_Authorize:
		r.authorize(path+".authorize", kind.Authorize)
	case *configv1.Policy_RateLimit:
		r.rateLimit(path+".rateLimit", kind.RateLimit)
	case *configv1.Policy_Headers:
		r.headers(path+".headers", kind.Headers)
	default:
		group := p.ProtoReflect().Descriptor().Oneofs().ByName("kind")
		r.fail(path, "is empty: expected %s", quoteList(groupNames(group)))
	}
}

// authenticates reports whether the policy proves who the caller is.
func authenticates(p *configv1.Policy) bool { return p.GetJwt() != nil || p.GetApiKey() != nil }

func (r *report) jwt(path string, j *configv1.JWT) {
	if len(j.GetIssuers()) == 0 {
		r.fail(path+".issuers", "is empty: expected the names of Issuers")
	}
	r.words(path+".issuers", j.GetIssuers(), 32, badName)
	if len(j.GetAudiences()) == 0 {
		r.fail(path+".audiences", "is empty: expected what a token's aud must contain, so that no token meant for another API is accepted")
	}
	r.words(path+".audiences", j.GetAudiences(), 32, badWord)
}

func (r *report) apiKey(path string, k *configv1.APIKey) {
	name := k.GetHeader()
	if name == "" {
		return
	}
	if why := badHeaderName(name); why != "" {
		r.fail(path+".header", "%s", why)
	} else if oneOfHeaders(name, append(hopByHop(), "Host", "Cookie", "Set-Cookie")) || gatewayOwned(name) {
		r.fail(path+".header", "is %q: expected a header of its own, or \"Authorization\"", name)
	}
}

func (r *report) authorize(path string, a *configv1.Authorize) {
	if n := len(a.GetRules()); n == 0 || n > maxRules {
		r.fail(path+".rules", "has %d entries: expected 1 to %d", n, maxRules)
		return
	}
	names := map[string]int{}
	for i, rule := range a.GetRules() {
		at := path + ".rules[" + strconv.Itoa(i) + "]"
		if name := rule.GetName(); name != "" {
			r.text(at+".name", name, 63)
			if first, ok := names[name]; ok {
				r.fail(at+".name", "%q repeats rules[%d]: expected each name once", shorten(name), first)
			}
			names[name] = i
		}
		if len(rule.GetScopes()) == 0 && len(rule.GetRoles()) == 0 && rule.GetRequire() == "" {
			r.fail(at, "asks for nothing: expected \"scopes\", \"roles\" or \"require\"")
		}
		r.words(at+".scopes", rule.GetScopes(), maxWords, badScope)
		r.words(at+".roles", rule.GetRoles(), maxWords, badWord)
		r.expression(at+".when", rule.GetWhen(), expr.Bool)
		r.expression(at+".require", rule.GetRequire(), expr.Bool)
	}
}

func (r *report) rateLimit(path string, l *configv1.RateLimit) {
	r.expression(path+".key", l.GetKey(), expr.String)
	if n := len(l.GetLimits()); n == 0 || n > maxLimits {
		r.fail(path+".limits", "has %d entries: expected 1 to %d", n, maxLimits)
		return
	}
	names := map[string]int{}
	for i, limit := range l.GetLimits() {
		at := path + ".limits[" + strconv.Itoa(i) + "]"
		name := limit.GetName()
		if name != "" && badName(name) != "" {
			r.fail(at+".name", "%s", badName(name))
		} else if first, ok := names[name]; ok {
			r.fail(at+".name", "%q repeats limits[%d]: expected each name once", name, first)
		}
		names[name] = i
		if n := limit.GetRequests(); n == 0 || n > maxRequests {
			r.fail(at+".requests", "is %d: expected 1 to %d", n, maxRequests)
		}
		if n := limit.GetBurst(); n > maxRequests {
			r.fail(at+".burst", "is %d: expected at most %d", n, maxRequests)
		}
		if limit.GetWindow() == nil {
			r.fail(at+".window", "is missing: expected a duration such as 1s")
		}
		r.duration(at+".window", limit.GetWindow(), 100*time.Millisecond, 31*24*time.Hour)
	}
}

func (r *report) headers(path string, h *configv1.Headers) {
	if h.GetRequest() == nil && h.GetResponse() == nil {
		r.fail(path, "changes nothing: expected \"request\" or \"response\"")
	}
	r.headerChanges(path+".request", h.GetRequest(), func(name string) string {
		if gatewayOwned(name) {
			return fmt.Sprintf("%q is written by the gateway, and upstreams believe it: expected another header", name)
		}
		return ""
	})
	r.headerChanges(path+".response", h.GetResponse(), func(name string) string {
		if oneOfHeaders(name, []string{"X-Request-Id", "RateLimit", "RateLimit-Policy"}) {
			return fmt.Sprintf("%q is written by the gateway: expected another header", name)
		}
		return ""
	})
}

func (r *report) headerChanges(path string, c *configv1.HeaderChanges, owned func(string) string) {
	if c == nil {
		return
	}
	if n := len(c.GetRemove()) + len(c.GetSet()) + len(c.GetAdd()); n == 0 || n > maxHeaderChanges {
		r.fail(path, "has %d changes: expected 1 to %d", n, maxHeaderChanges)
		return
	}
	name := func(s string) string {
		if why := badHeaderName(s); why != "" {
			return why
		}
		if oneOfHeaders(s, hopByHop()) {
			return fmt.Sprintf("%q belongs to the connection: expected an end-to-end header", s)
		}
		if sameHeader(s, "Host") {
			return `"Host" selects the route: expected another header`
		}
		return owned(s)
	}
	r.words(path+".remove", c.GetRemove(), maxHeaderChanges, name)
	r.headerValues(path+".set", c.GetSet(), name)
	r.headerValues(path+".add", c.GetAdd(), name)
}

func (r *report) headerValues(path string, values map[string]string, valid func(string) string) {
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		at := path + "[" + name + "]"
		if why := valid(name); why != "" {
			r.fail(at, "%s", why)
		} else if j := slices.IndexFunc(names[:i], func(n string) bool { return strings.EqualFold(n, name) }); j >= 0 {
			r.fail(at, "names the same header as %q: expected each once", names[j])
		}
		if why := badHeaderValue(values[name]); why != "" {
			r.fail(at, "%s", why)
		}
	}
}
