package gateway

import (
	"fmt"
	"regexp"
	"strconv"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/route"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// predicate tests one header field or query parameter.
type predicate struct {
	query bool
	name  string
	// exact and pattern are both unset for a test of presence.
	exact   *string
	pattern *regexp.Regexp
}

// holds says whether any value of the name passes.
func (p *predicate) holds(r *exchange.Request) bool {
	if p.query {
		for name, value := range exchange.Query(r.Query) {
			if name == p.name && p.passes(value) {
				return true
			}
		}
		return false
	}
	for _, field := range r.Header.Fields() {
		if exchange.EqualFold(field.Name, p.name) && p.passes(field.Value) {
			return true
		}
	}
	return false
}

func (p *predicate) passes(value string) bool {
	switch {
	case p.exact != nil:
		return value == *p.exact
	case p.pattern != nil:
		return p.pattern.MatchString(value)
	}
	return true
}

func predicatesOf(match *configv1.Match) ([]predicate, error) {
	var out []predicate
	add := func(query bool, matches []*configv1.ValueMatch) error {
		for _, m := range matches {
			p := predicate{query: query, name: m.Name}
			switch kind := m.Kind.(type) {
			case *configv1.ValueMatch_Exact:
				p.exact = &kind.Exact
			case *configv1.ValueMatch_Regex:
				// The whole value: an unanchored pattern would match more than it says.
				compiled, err := regexp.Compile(`\A(?:` + kind.Regex + `)\z`)
				if err != nil {
					return fmt.Errorf("regex of %q: %w", m.Name, err)
				}
				p.pattern = compiled
			}
			out = append(out, p)
		}
		return nil
	}
	if err := add(false, match.GetHeaders()); err != nil {
		return nil, err
	}
	return out, add(true, match.GetQuery())
}

// addPatterns gives the route its entries in the table: one for each host and
// match.
func (r *Route) addPatterns(key config.Key, spec *configv1.Route) error {
	matches := spec.Matches
	if len(matches) == 0 {
		matches = []*configv1.Match{{}}
	}
	hosts := spec.Hostnames
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	for i, match := range matches {
		predicates, err := predicatesOf(match)
		if err != nil {
			return err
		}
		for j, host := range hosts {
			p := route.Pattern{
				Host: host, Kind: route.Prefix, Path: "/", Methods: match.GetMethods(), Predicates: len(predicates),
				Priority: spec.Priority, Name: key.Workspace + "/" + key.Name, Index: i*len(hosts) + j,
			}
			switch kind := match.GetPath().GetKind().(type) {
			case *configv1.PathMatch_Exact:
				p.Kind, p.Path = route.Exact, kind.Exact
			case *configv1.PathMatch_Prefix:
				p.Path = kind.Prefix
			case *configv1.PathMatch_Template:
				p.Kind, p.Path = route.Template, kind.Template
			}
			if r.pattern == "" {
				r.pattern = p.Path
			}
			r.patterns = append(r.patterns, p)
			r.targets = append(r.targets, &target{route: r, predicates: predicates})
		}
	}
	return nil
}

// problemAt places a compile error in the route's document.
func problemAt(key config.Key, path string, err error) *config.Problem {
	return &config.Problem{Key: key, Path: path, Reason: err.Error()}
}

// index prints a path element of a list.
func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
