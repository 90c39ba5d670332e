package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"portcullis.dev/portcullis/pkg/httppath"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Bounds of one route. hostnames x matches is what it adds to the table.
const (
	maxHostnames = 100
	maxMatches   = 100
	maxPatterns  = 1000
	maxBackends  = 64
	maxWeight    = 1_000_000
	maxPath      = 1024
)

func (r *report) route(t *configv1.Route) {
	r.words("spec.hostnames", t.GetHostnames(), maxHostnames, badHost)
	if n := len(t.GetMatches()); n > maxMatches {
		r.fail("spec.matches", "has %d entries: expected at most %d", n, maxMatches)
		return
	}
	if n := len(t.GetMatches()) * len(t.GetHostnames()); n > maxPatterns {
		r.fail("spec", "hostnames x matches is %d: expected at most %d", n, maxPatterns)
	}
	for i, m := range t.GetMatches() {
		r.match("spec.matches["+strconv.Itoa(i)+"]", m)
	}
	r.policies("spec.policies", t.GetPolicies())
	r.backends("spec.backends", t.GetBackends())
	r.duration("spec.timeouts.request", t.GetTimeouts().GetRequest(), time.Millisecond, time.Hour)
	r.routeResilience(t)
	if v := t.GetRevocation(); v != nil {
		if v.GetMaxStaleness() == nil {
			r.fail("spec.revocation.maxStaleness", "is missing: expected a duration such as 5s")
		}
		// Heartbeats come every 250 ms: a bound of less than two would deny at rest.
		r.duration("spec.revocation.maxStaleness", v.GetMaxStaleness(), 500*time.Millisecond, 24*time.Hour)
	}
}

func (r *report) match(path string, m *configv1.Match) {
	if m.GetPath() != nil {
		r.path(path+".path", m.GetPath())
	}
	r.words(path+".methods", m.GetMethods(), 32, badMethod)
	if len(m.GetHeaders())+len(m.GetQuery()) > 32 {
		r.fail(path, "has more than 32 headers and query parameters")
		return
	}
	for i, h := range m.GetHeaders() {
		at := path + ".headers[" + strconv.Itoa(i) + "]"
		if why := badHeaderName(h.GetName()); why != "" {
			r.fail(at+".name", "%s", why)
		} else if strings.EqualFold(h.GetName(), "host") {
			r.fail(at+".name", "is %q: expected hostnames to be used for it", h.GetName())
		} else if !httppath.SafeName(h.GetName()) {
			r.fail(at+".name", "is %q, which is dropped from requests: expected letters, digits and '-' only", h.GetName())
		} else if oneOfHeaders(h.GetName(), hopByHop()) {
			r.fail(at+".name", "is %q, which belongs to a connection and is dropped from requests", h.GetName())
		}
		r.valueMatch(at, h, badHeaderValue)
	}
	for i, q := range m.GetQuery() {
		at := path + ".query[" + strconv.Itoa(i) + "]"
		if n := q.GetName(); n == "" || len(n) > 256 || !printable(n) {
			r.fail(at+".name", "is %q: expected the name of a query parameter, 1 to 256 bytes", shorten(n))
		}
		r.valueMatch(at, q, func(s string) string {
			if len(s) > 4096 {
				return fmt.Sprintf("is %d bytes long: expected at most 4096", len(s))
			}
			return ""
		})
	}
}

func (r *report) valueMatch(path string, v *configv1.ValueMatch, valid func(string) string) {
	switch kind := v.GetKind().(type) {
	case *configv1.ValueMatch_Exact:
		if why := valid(kind.Exact); why != "" {
			r.fail(path+".exact", "%s", why)
		}
	case *configv1.ValueMatch_Regex:
		r.regex(path+".regex", kind.Regex)
	}
}

func (r *report) path(path string, p *configv1.PathMatch) {
	switch kind := p.GetKind().(type) {
	case *configv1.PathMatch_Exact:
		if why := badPath(kind.Exact); why != "" {
			r.fail(path+".exact", "%s", why)
		}
	case *configv1.PathMatch_Prefix:
		if why := badPath(kind.Prefix); why != "" {
			r.fail(path+".prefix", "%s", why)
		} else if kind.Prefix != "/" && strings.HasSuffix(kind.Prefix, "/") {
			r.fail(path+".prefix", "is %q: expected no '/' at the end, since a prefix matches whole segments", shorten(kind.Prefix))
		}
	case *configv1.PathMatch_Template:
		r.template(path+".template", kind.Template)
	default:
		r.fail(path, "is empty: expected \"exact\", \"prefix\" or \"template\"")
	}
}

func (r *report) template(path, template string) {
	// The names are cut out first, so that the rest can be checked as a path.
	var names []string
	plain := strings.Split(template, "/")
	for i, segment := range plain {
		if !strings.ContainsAny(segment, "{}") {
			continue
		}
		name := strings.TrimSuffix(strings.TrimPrefix(segment, "{"), "}")
		if segment != "{"+name+"}" || !isIdentifier(name) {
			r.fail(path, "has the segment %q: expected {name} as a whole segment, the name of letters, digits and '_'", shorten(segment))
			return
		}
		if slices.Contains(names, name) {
			r.fail(path, "has {%s} twice: expected each name once", name)
			return
		}
		names = append(names, name)
		plain[i] = "x"
	}
	if why := badPath(strings.Join(plain, "/")); why != "" {
		r.fail(path, "%s", why)
	} else if len(names) > httppath.MaxParams {
		r.fail(path, "captures %d segments: expected at most %d", len(names), httppath.MaxParams)
	} else if len(names) == 0 {
		r.fail(path, "is %q: expected at least one {name}; without one use exact", shorten(template))
	}
}

func isIdentifier(s string) bool {
	for i := range len(s) {
		if s[i] != '_' && (!isAlnum(s[i]) || i == 0 && s[i] <= '9') {
			return false
		}
	}
	return s != "" && len(s) <= 63
}

// badPath says what is wrong with a path that is compared, byte for byte, with
// the canonical path of requests: one that no canonical path equals never
// matches, and would be a hole in whatever it was meant to protect.
func badPath(s string) string {
	if s == "" || s[0] != '/' {
		return fmt.Sprintf("is %q: expected a path that starts with '/'", shorten(s))
	}
	if len(s) > maxPath {
		return fmt.Sprintf("is %d bytes long: expected at most %d", len(s), maxPath)
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '?' || c == '#':
			return fmt.Sprintf("is %q: expected a path without query and fragment", shorten(s))
		case c != '/' && c != '%' && !isAlnum(c) && strings.IndexByte("-._~!$&'()*+,=:@", c) < 0:
			r, _ := utf8.DecodeRuneInString(s[i:])
			return fmt.Sprintf("is %q: expected %q to be escaped or left out", shorten(s), r)
		}
	}
	for i, segment := range strings.Split(s[1:], "/") {
		if segment == "." || segment == ".." {
			return fmt.Sprintf("is %q: expected no %q segment", shorten(s), segment)
		}
		if segment == "" && i < strings.Count(s[1:], "/") {
			return fmt.Sprintf("is %q: expected no empty segment", shorten(s))
		}
	}
	// The rest is said by what brings requests to their one spelling.
	switch canonical, err := httppath.CanonicalPath(s); {
	case err != nil:
		return fmt.Sprintf("is %q, which no request has: %s", shorten(s), strings.TrimPrefix(err.Error(), httppath.ErrMalformed.Error()+": "))
	case canonical != s:
		return fmt.Sprintf("is %q: expected %q, as requests have it", shorten(s), shorten(canonical))
	}
	return ""
}

func badMethod(s string) string {
	switch {
	case s == "CONNECT" || s == "TRACE":
		return fmt.Sprintf("is %q, which a gateway does not forward", s)
	case !isToken(s) || len(s) > 32:
		return fmt.Sprintf("is %q: expected an HTTP method such as GET", shorten(s))
	case strings.ToUpper(s) != s:
		return fmt.Sprintf("is %q: expected upper case, %q", s, strings.ToUpper(s))
	}
	return ""
}

func (r *report) backends(path string, backends []*configv1.Backend) {
	if len(backends) == 0 || len(backends) > maxBackends {
		r.fail(path, "has %d entries: expected 1 to %d", len(backends), maxBackends)
		return
	}
	names := make([]string, len(backends))
	total := uint64(0)
	for i, b := range backends {
		names[i] = b.GetUpstream()
		total += uint64(r.weight(path+"["+strconv.Itoa(i)+"].weight", b.Weight))
		r.labels(path+"["+strconv.Itoa(i)+"].subset", b.GetSubset())
	}
	if total == 0 {
		r.fail(path, "all have weight 0: expected at least one with more")
	}
	for i, name := range names {
		at := path + "[" + strconv.Itoa(i) + "].upstream"
		if why := badName(name); why != "" {
			r.fail(at, "%s", why)
		} else if first := slices.IndexFunc(backends, func(b *configv1.Backend) bool { return sameBackend(b, backends[i]) }); first < i {
			r.fail(at, "%q repeats backends[%d]: expected each upstream once, or with another subset", name, first)
		}
	}
}

// weight checks a weight and returns it; the default is 1.
func (r *report) weight(path string, w *uint32) uint32 {
	if w == nil {
		return 1
	}
	if *w > maxWeight {
		r.fail(path, "is %d: expected 0 to %d", *w, maxWeight)
	}
	return *w
}
