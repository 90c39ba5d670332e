package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Two matches compete when host, path and the tests of headers and query are the
// same: then the methods and the priority decide. Such matches share a bucket,
// named by all that is the same, so that a change is compared with its rivals
// only.

// maxRivals bounds a bucket, and with it the cost of comparing all in it.
const maxRivals = 64

// pattern is one entry of the index: a route's i-th bucket.
type pattern struct {
	bucket string
	route  holder
	i      int
}

// Compare orders patterns by bucket, then route.
func (p pattern) Compare(o pattern) int {
	if c := strings.Compare(p.bucket, o.bucket); c != 0 {
		return c
	}
	if c := p.route.Compare(o.route); c != 0 {
		return c
	}
	return cmp.Compare(p.i, o.i)
}

// hosts returns the route's host patterns; "" is every host.
func hosts(t *configv1.Route) []string {
	if len(t.GetHostnames()) == 0 {
		return []string{""}
	}
	return t.GetHostnames()
}

// matches returns the route's matches; one that is empty matches everything.
func matches(t *configv1.Route) []*configv1.Match {
	if len(t.GetMatches()) == 0 {
		return []*configv1.Match{{}}
	}
	return t.GetMatches()
}

// buckets returns, for each match and each host, the name of its bucket.
func buckets(t *configv1.Route) []string {
	out := make([]string, 0, len(hosts(t))*len(matches(t)))
	for _, m := range matches(t) {
		rest := "\x00" + pathBucket(m.GetPath())
		var tests []string
		for _, h := range m.GetHeaders() {
			tests = append(tests, testBucket("h", strings.ToLower(h.GetName()), h))
		}
		for _, q := range m.GetQuery() {
			tests = append(tests, testBucket("q", q.GetName(), q))
		}
		slices.Sort(tests)
		rest += strings.Join(slices.Compact(tests), "")
		if len(m.GetMethods()) > 0 {
			rest += "\x00m" // those that name methods win over those that do not
		}
		for _, h := range hosts(t) {
			out = append(out, h+rest)
		}
	}
	return out
}

func testBucket(where, name string, v *configv1.ValueMatch) string {
	kind, value := "p", ""
	switch k := v.GetKind().(type) {
	case *configv1.ValueMatch_Exact:
		kind, value = "e", k.Exact
	case *configv1.ValueMatch_Regex:
		kind, value = "r", k.Regex
	}
	return "\x00" + where + kind + strconv.Quote(name) + strconv.Quote(value)
}

// pathBucket makes templates that differ in names only the same.
func pathBucket(p *configv1.PathMatch) string {
	switch kind := p.GetKind().(type) {
	case *configv1.PathMatch_Exact:
		return "=" + kind.Exact
	case *configv1.PathMatch_Template:
		segments := strings.Split(kind.Template, "/")
		for i, s := range segments {
			if strings.HasPrefix(s, "{") {
				segments[i] = "{}"
			}
		}
		return "~" + strings.Join(segments, "/")
	case *configv1.PathMatch_Prefix:
		return "^" + kind.Prefix
	}
	return "^/"
}

// overlaps compares the routes of every touched bucket. One that has its bucket to
// itself is reached there whatever stands in its others.
func (a *application) overlaps() {
	routes := map[Key]*entry{}
	for b := range a.touched {
		a.turn.next()
		first, many := (*entry)(nil), false
		for e := range a.bucket(b) {
			if first == nil {
				first = e.route
				continue
			}
			many = true
			routes[*e.route.self.Key] = e.route
		}
		if many {
			routes[*first.self.Key] = first
		}
	}
	for k, e := range routes {
		a.turn.next()
		r := report{key: k, env: a.env}
		a.rivals(&r, e)
		a.problems = append(a.problems, r.problems...)
	}
}

type rival struct {
	route *entry
	match int
}

func (c Checked) bucket(name string) func(yield func(rival) bool) {
	return func(yield func(rival) bool) {
		for p, e := range c.patterns.from(pattern{bucket: name, route: holder{&Key{Kind: KindRoute}}}) {
			if p.bucket != name || !yield(rival{e, p.i / len(hosts(e.resource.GetRoute()))}) {
				return
			}
		}
	}
}

// rivals reports matches of a route that no request can reach, and those for
// which it is left open whether they or another's are reached.
func (a *application) rivals(r *report, e *entry) {
	t := e.resource.GetRoute()
	n := len(hosts(t))
	for i, m := range matches(t) {
		path := "spec"
		if len(t.GetMatches()) > 0 {
			path += ".matches[" + strconv.Itoa(i) + "]"
		}
		shadowedBy, dead := Key{}, true
		for h := range n {
			by, covered, stop := a.compare(r, path, e, i, m, e.buckets[i*n+h])
			if stop {
				dead = false
				break
			}
			if dead = dead && covered; covered {
				shadowedBy = by
			}
		}
		if dead {
			r.fail(path, "is never reached: %s matches the same with a higher priority", shadowedBy)
		}
	}
}

// compare looks at the others in one bucket. covered: they take every request
// that m matches. stop: a problem has been reported.
func (a *application) compare(r *report, path string, e *entry, i int, m *configv1.Match, bucket string) (by Key, covered, stop bool) {
	left := map[string]bool{}
	for _, method := range m.GetMethods() {
		left[method] = true
	}
	count := 0
	for o := range a.bucket(bucket) {
		if count++; count > maxRivals {
			r.fail(path, "is one of more than %d matches of the same requests: expected fewer", maxRivals)
			return by, false, true
		}
		if o.route == e && o.match == i {
			continue
		}
		theirs := matches(o.route.resource.GetRoute())[o.match].GetMethods()
		if len(theirs) > 0 && !slices.ContainsFunc(theirs, func(s string) bool { return slices.Contains(m.GetMethods(), s) }) {
			continue
		}
		switch c := cmp.Compare(o.route.resource.GetRoute().GetPriority(), e.resource.GetRoute().GetPriority()); {
		case o.route == e && o.match < i:
			r.fail(path, "matches the same as matches[%d]: expected each once", o.match)
			return by, false, true
		case o.route == e || c < 0 || c == 0 && o.route.self.Compare(e.self) > 0:
			continue
		case c == 0:
			r.fail(path, "matches the same requests as %s: expected another match or another priority", *o.route.self.Key)
			return by, false, true
		}
		by = *o.route.self.Key
		covered = covered || len(theirs) == 0
		for _, method := range theirs {
			delete(left, method)
		}
	}
	return by, covered || len(m.GetMethods()) > 0 && len(left) == 0, false
}
