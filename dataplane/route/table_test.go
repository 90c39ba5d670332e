package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/dataplane/exchange"

	"pgregory.net/rapid"
)

func build(t testing.TB, patterns ...Pattern) Table[string] {
	t.Helper()
	var table Table[string]
	for _, p := range patterns {
		var err error
		if table, err = table.With(p, p.Name); err != nil {
			t.Fatal(err)
		}
	}
	return table
}

func TestPrecedence(t *testing.T) {
	table := build(t,
		Pattern{Name: "any", Kind: Prefix},
		Pattern{Name: "wild", Host: "*.example.com", Kind: Prefix, Path: "/"},
		Pattern{Name: "longer wild", Host: "*.b.example.com", Kind: Prefix, Path: "/"},
		Pattern{Name: "host", Host: "api.example.com", Kind: Prefix, Path: "/"},
		Pattern{Name: "prefix", Host: "api.example.com", Kind: Prefix, Path: "/users/"},
		Pattern{Name: "longer prefix", Host: "api.example.com", Kind: Prefix, Path: "/users/x/y"},
		Pattern{Name: "exact", Host: "api.example.com", Kind: Exact, Path: "/users/me"},
		Pattern{Name: "template", Host: "api.example.com", Kind: Template, Path: "/users/{id}"},
		Pattern{Name: "posts", Host: "api.example.com", Kind: Template, Path: "/users/{id}/posts"},
		Pattern{Name: "my", Host: "api.example.com", Kind: Template, Path: "/users/me/{what}"},
		Pattern{Name: "post", Host: "api.example.com", Kind: Exact, Path: "/users/me", Methods: []string{"POST"}},
		Pattern{Name: "slash", Host: "api.example.com", Kind: Exact, Path: "/users/me/"},
	)
	for request, want := range map[string]string{
		"GET api.example.com /":               "host",
		"GET api.example.com /users":          "prefix",
		"GET api.example.com /users/":         "prefix",
		"GET api.example.com /usersX":         "host",
		"GET api.example.com /users/me":       "exact",
		"POST api.example.com /users/me":      "post",
		"GET api.example.com /users/me/":      "slash",
		"GET api.example.com /users/7":        "template",
		"GET api.example.com /users/7/posts":  "posts",
		"GET api.example.com /users/me/posts": "my",
		"GET api.example.com /users/x/y/z":    "longer prefix",
		"GET api.example.com /users/x/z":      "prefix",
		"OPTIONS api.example.com *":           "host",
		"GET a.example.com /users/me":         "wild",
		"GET a.b.example.com /":               "longer wild",
		"GET b.example.com /":                 "wild",
		"GET example.com /":                   "any",
		"GET xexample.com /":                  "any",
		"GET [::1] /":                         "any",
	} {
		var method, host, path string
		fmt.Sscan(request, &method, &host, &path)
		var params []exchange.Param
		if got, _ := table.Lookup(host, method, path, &params, nil); got != want {
			t.Errorf("%s: got %q, want %q", request, got, want)
		}
	}
}

func TestParams(t *testing.T) {
	table := build(t,
		Pattern{Name: "a", Kind: Template, Path: "/t/{tenant}/users/{id}"},
		Pattern{Name: "b", Kind: Template, Path: "/t/{tenant}/{kind}/x", Methods: []string{"POST"}})
	params := make([]exchange.Param, 1, 4)
	if _, ok := table.Lookup("h", "GET", "/t/m%C3%BCnchen/users/7", &params, nil); !ok ||
		!slices.Equal(params, []exchange.Param{{Name: "tenant", Value: "münchen"}, {Name: "id", Value: "7"}}) {
		t.Error(params)
	}
	if v, ok := table.Lookup("h", "POST", "/t/1/users/x", &params, func(v string) bool { return v == "b" }); !ok || v != "b" ||
		!slices.Equal(params, []exchange.Param{{Name: "tenant", Value: "1"}, {Name: "kind", Value: "users"}}) {
		t.Error("after falling back:", v, params)
	}
	if _, ok := table.Lookup("h", "GET", "/t//users/7", &params, nil); ok || len(params) != 0 {
		t.Error("an empty segment was captured", params)
	}
}

func TestPatternsThatCannotMatchAreRefused(t *testing.T) {
	for _, p := range []Pattern{
		{Kind: Exact}, {Kind: Exact, Path: "a"}, {Kind: Exact, Path: "*"}, {Kind: Exact, Path: "/a//b"},
		{Kind: Prefix, Path: "//"}, {Kind: Prefix, Path: "/a//"}, {Kind: Prefix, Path: "/a/../b"},
		{Kind: Exact, Path: "/a/%2e"}, {Kind: Exact, Path: "/%61"}, {Kind: Exact, Path: "/a b"}, {Kind: Exact, Path: "/a?b"},
		{Kind: Exact, Path: "/{id}"}, {Kind: Template, Path: "/{}"}, {Kind: Template, Path: "/a{id}"},
		{Kind: Template, Path: "/{a}/{a}"}, {Kind: Template, Path: "/{{a}}"}, {Kind: Template, Path: strings.Repeat("/{a}", 17)},
		{Host: "API.example.com"}, {Host: "a.*.com"}, {Host: "*"}, {Host: "*."}, {Host: "a:80"}, {Host: "*.*.a"}, {Kind: 9, Path: "/"},
	} {
		table, err := Table[string]{}.With(p, "")
		if !errors.Is(err, ErrPattern) || table.Len() != 0 {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

var (
	hosts    = []string{"a.x", "b.a.x", "c.b.a.x", "x", "y"}
	segments = []string{"a", "b", "c%20d", "x"}
	methods  = []string{"GET", "POST", "PUT"}
)

func drawPattern(t *rapid.T) Pattern {
	p := Pattern{
		Host:       rapid.SampledFrom([]string{"", "a.x", "b.a.x", "x", "*.x", "*.a.x", "*.b.a.x"}).Draw(t, "host"),
		Kind:       rapid.SampledFrom([]Kind{Exact, Template, Prefix}).Draw(t, "kind"),
		Predicates: rapid.IntRange(0, 1).Draw(t, "predicates"),
		Priority:   rapid.Int32Range(-1, 1).Draw(t, "priority"),
		Name:       rapid.SampledFrom([]string{"p", "q", "r"}).Draw(t, "name"),
		Index:      rapid.IntRange(0, 1).Draw(t, "index"),
		Methods:    rapid.SliceOfNDistinct(rapid.SampledFrom(methods), 0, 2, rapid.ID).Draw(t, "methods"),
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "segments") {
		s := rapid.SampledFrom(segments).Draw(t, "segment")
		if p.Kind == Template && rapid.Bool().Draw(t, "captured") {
			s = fmt.Sprintf("{%s%d}", rapid.SampledFrom([]string{"k", "l"}).Draw(t, "param"), i)
		}
		p.Path += "/" + s
	}
	if p.Path == "" || rapid.IntRange(0, 4).Draw(t, "slash") == 0 {
		p.Path += "/"
	}
	return p
}

func drawPath(t *rapid.T) string {
	path := ""
	for range rapid.IntRange(0, 4).Draw(t, "segments") {
		path += "/" + rapid.SampledFrom(append(segments, "z")).Draw(t, "segment")
	}
	if path == "" || rapid.IntRange(0, 4).Draw(t, "slash") == 0 {
		path += "/"
	}
	return path
}

// checkAgainstNaive applies random changes to a table and to the oracle, and
// compares lookups; earlier tables must not change with later ones.
func checkAgainstNaive(t *rapid.T) {
	type version struct {
		table  Table[int]
		oracle naive[int]
	}
	var now version
	var before []version
	batch := now.table.Edit()
	for i := range rapid.IntRange(0, 25).Draw(t, "changes") {
		p := drawPattern(t)
		if len(now.oracle.patterns) > 0 && rapid.IntRange(0, 2).Draw(t, "delete") == 0 {
			if rapid.Bool().Draw(t, "known") {
				p = rapid.SampledFrom(now.oracle.patterns).Draw(t, "victim")
			}
			batch.Delete(p)
			now.oracle.delete(p)
		} else {
			if err := batch.Put(p, i); err != nil {
				t.Fatal(err)
			}
			now.oracle.put(p, i)
		}
		if rapid.IntRange(0, 3).Draw(t, "commit") == 0 {
			before = append(before, version{batch.Table(), naive[int]{slices.Clone(now.oracle.patterns), slices.Clone(now.oracle.values)}})
		}
	}
	now.table = batch.Table()
	before = append(before, now)
	refused := rapid.SliceOfN(rapid.IntRange(0, 25), 0, 5).Draw(t, "refused")
	accept := func(v int) bool { return !slices.Contains(refused, v) }
	for range 20 {
		host, method, path := rapid.SampledFrom(hosts).Draw(t, "host"), rapid.SampledFrom(methods).Draw(t, "method"), drawPath(t)
		for _, v := range before {
			if v.table.Len() != len(v.oracle.patterns) {
				t.Fatalf("%d entries, want %d", v.table.Len(), len(v.oracle.patterns))
			}
			var params []exchange.Param
			got, ok := v.table.Lookup(host, method, path, &params, accept)
			i, want := v.oracle.lookup(host, method, path, accept)
			if ok != (i >= 0) || ok && got != v.oracle.values[i] || !slices.Equal(params, want) {
				t.Fatalf("%s %s%s: got %d %v %v, want entry %d %v of %+v", method, host, path, got, ok, params, i, want, v.oracle.patterns)
			}
		}
	}
}

func TestLookupEqualsNaive(t *testing.T) { rapid.Check(t, checkAgainstNaive) }

func FuzzLookup(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkAgainstNaive)) }

func TestLookupCostsNoAllocation(t *testing.T) {
	table := build(t,
		Pattern{Name: "no", Host: "a.x", Kind: Template, Path: "/users/{id}/posts"},
		Pattern{Name: "yes", Host: "*.x", Kind: Template, Path: "/users/{id}/{what}"})
	params := make([]exchange.Param, 0, 4)
	refuse, asked := "no", 0
	if n := testing.AllocsPerRun(100, func() {
		if v, ok := table.Lookup("a.x", "GET", "/users/7/posts", &params, func(v string) bool { asked++; return v != refuse }); !ok || v != "yes" {
			t.Error(v, ok)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if asked == 0 {
		t.Error("accept was not asked")
	}
}
