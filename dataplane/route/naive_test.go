package route

import (
	"cmp"
	"slices"
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// naive is the oracle: a list, every pattern tried, the best of those that match
// chosen by comparing what the documentation of Pattern says.
type naive[T any] struct {
	patterns []Pattern
	values   []T
}

func sameEntry(a, b Pattern) bool {
	return a.Host == b.Host && a.Kind == b.Kind && a.Name == b.Name && a.Index == b.Index &&
		slices.Equal(shape(a), shape(b))
}

// shape is the path's segments, "{}" for a captured one.
func shape(p Pattern) []string {
	path := p.Path
	if p.Kind == Prefix {
		path = strings.TrimSuffix(path, "/")
	}
	s := strings.Split(path, "/")
	for i := range s {
		if p.Kind == Template && isParam(s[i]) {
			s[i] = "{}"
		}
	}
	return s
}

func isParam(s string) bool { return len(s) > 2 && s[0] == '{' && s[len(s)-1] == '}' }

func (n *naive[T]) put(p Pattern, v T) {
	n.delete(p)
	n.patterns = append(n.patterns, p)
	n.values = append(n.values, v)
}

func (n *naive[T]) delete(p Pattern) {
	if i := slices.IndexFunc(n.patterns, func(o Pattern) bool { return sameEntry(o, p) }); i >= 0 {
		n.patterns = slices.Delete(n.patterns, i, i+1)
		n.values = slices.Delete(n.values, i, i+1)
	}
}

func (n *naive[T]) lookup(host, method, path string, accept func(T) bool) (best int, params []exchange.Param) {
	best = -1
	for i, p := range n.patterns {
		ps, ok := matches(p, host, method, path)
		if ok && accept(n.values[i]) && (best < 0 || better(p, n.patterns[best])) {
			best, params = i, ps
		}
	}
	return best, params
}

func matches(p Pattern, host, method, path string) (params []exchange.Param, ok bool) {
	switch {
	case p.Host == "", p.Host == host:
	case strings.HasPrefix(p.Host, "*.") && strings.HasSuffix(host, p.Host[1:]) && len(host) >= len(p.Host):
	default:
		return nil, false
	}
	if len(p.Methods) > 0 && !slices.Contains(p.Methods, method) {
		return nil, false
	}
	switch p.Kind {
	case Exact:
		return nil, p.Path == path
	case Prefix:
		prefix := strings.TrimSuffix(p.Path, "/")
		return nil, prefix == "" || path == prefix || strings.HasPrefix(path, prefix+"/")
	}
	want, got := strings.Split(p.Path, "/"), strings.Split(path, "/")
	if len(want) != len(got) {
		return nil, false
	}
	for i := range want {
		switch {
		case isParam(want[i]) && got[i] != "":
			params = append(params, exchange.Param{Name: want[i][1 : len(want[i])-1], Value: exchange.Unescape(got[i])})
		case isParam(want[i]), want[i] != got[i]:
			return nil, false
		}
	}
	return params, true
}

func better(a, b Pattern) bool {
	host := func(p Pattern) int {
		switch {
		case p.Host == "":
			return -1
		case p.Host[0] == '*':
			return len(p.Host)
		}
		return 1 << 20
	}
	some := func(m []string) int { return min(1, len(m)) }
	c := cmp.Or(cmp.Compare(host(b), host(a)), cmp.Compare(a.Kind, b.Kind))
	if c == 0 && a.Kind == Template {
		c = slices.CompareFunc(shape(a), shape(b), func(x, y string) int {
			if x == y {
				return 0
			}
			// Both match the request, so that where they differ one captures.
			if x == "{}" {
				return 1
			}
			return -1
		})
	}
	if c == 0 && a.Kind == Prefix {
		c = cmp.Compare(len(shape(b)), len(shape(a)))
	}
	return cmp.Or(c, cmp.Compare(some(b.Methods), some(a.Methods)), cmp.Compare(b.Predicates, a.Predicates),
		cmp.Compare(b.Priority, a.Priority), strings.Compare(a.Name, b.Name), cmp.Compare(a.Index, b.Index)) < 0
}
