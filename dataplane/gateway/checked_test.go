package gateway

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// TestCheckedPathsApply: a route that config.Check accepts is taken by the table,
// and some request has each of its paths. One that is accepted and cannot be
// compiled would stop every later revision, on every node.
func TestCheckedPathsApply(t *testing.T) {
	accepted, refused := 0, 0
	rapid.Check(t, checkedPaths(t, &accepted, &refused))
	t.Logf("%d accepted, %d refused", accepted, refused)
	if accepted == 0 || refused == 0 {
		t.Error("the draw is one-sided")
	}
}

// FuzzCheckedPaths is the same, guided by coverage.
func FuzzCheckedPaths(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) { rapid.MakeFuzz(checkedPaths(t, new(int), new(int)))(t, data) })
}

func checkedPaths(tb testing.TB, accepted, refused *int) func(*rapid.T) {
	base := newRig(tb)
	base.apply(upstreamAt("up", "http://127.0.0.1:1"))
	return func(t *rapid.T) {
		spec := &configv1.Route{Public: true, Backends: []*configv1.Backend{{Upstream: "up"}}, Hostnames: drawHosts(t)}
		for range rapid.IntRange(1, 2).Draw(t, "matches") {
			spec.Matches = append(spec.Matches, drawMatch(t))
		}
		d := config.Delta{Upserts: []*configv1.Resource{{Metadata: &configv1.Metadata{Name: "r"}, Spec: &configv1.Resource_Route{Route: spec}}}}
		if _, _, err := base.checked.Apply(d); err != nil {
			*refused++
			return
		}
		*accepted++
		if err := base.try(d); err != nil {
			t.Fatalf("accepted by Check, refused by Apply: %v", err)
		}
		for i := range spec.Matches {
			p := spec.Matches[i].GetPath()
			path := p.GetExact() + p.GetPrefix() + strings.NewReplacer("{", "", "}", "").Replace(p.GetTemplate())
			if got, _, err := exchange.ParseTarget("GET", path, "h"); err != nil || path != got {
				t.Fatalf("no request has the path %q: it is %q, %v", path, got, err)
			}
		}
		if err := base.try(config.Delta{Deletes: []config.Key{{Kind: config.KindRoute, Workspace: "default", Name: "r"}}}); err != nil {
			t.Fatal(err)
		}
	}
}

func drawHosts(t *rapid.T) []string {
	piece := rapid.SampledFrom([]string{"a", "xn--a", "-", "_", ".", "*.", "1", "A", "example", "[::1]", "é"})
	host := rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(piece, 1, 5).Draw(t, "host"), "") })
	if rapid.IntRange(0, 3).Draw(t, "odd hosts") > 0 {
		return rapid.SampledFrom([][]string{nil, {"a.example"}, {"*.example", "127.0.0.1"}}).Draw(t, "plain hosts")
	}
	return rapid.SliceOfN(host, 1, 2).Draw(t, "hosts")
}

func drawMatch(t *rapid.T) *configv1.Match {
	m := &configv1.Match{}
	piece := rapid.SampledFrom([]string{
		"/", "/", "/", "a", "b", ".", "~", ";", ":", "@", "=", "*", "[", "^", " ", "%", "25", "41", "%25", "%2e", "%2F", "%3B", "%3A", "%3a", "%20",
		"%0A", "%7F", "%FF", "%C2", "%85", "%C3%A9", "%5B", "%5C", "%21", "%", "é",
	})
	path := "/" + rapid.SampledFrom([]string{"", "a", "a/b"}).Draw(t, "plain") + strings.Join(rapid.SliceOfN(piece, 0, 3).Draw(t, "path"), "")
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		m.Path = &configv1.PathMatch{Kind: &configv1.PathMatch_Exact{Exact: path}}
	case 1:
		m.Path = &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: path}}
	default:
		for i := range rapid.IntRange(1, 20).Draw(t, "captures") {
			path += "/{x" + string(rune('a'+i)) + "}"
		}
		m.Path = &configv1.PathMatch{Kind: &configv1.PathMatch_Template{Template: path}}
	}
	name := rapid.SampledFrom([]string{"X-A", "X_A", "a b", "Upgrade", "é"})
	regex := rapid.SampledFrom([]string{"a", "a)(?:b", "[", "(?i)a", `\z`, "a{1000}", "(?=a)", `\Qa`, `a\`, "(?#x)", "|"})
	if rapid.IntRange(0, 3).Draw(t, "tests") == 0 {
		m.Headers = append(m.Headers, &configv1.ValueMatch{Name: name.Draw(t, "header"), Kind: &configv1.ValueMatch_Regex{Regex: regex.Draw(t, "regex")}})
		m.Query = append(m.Query, &configv1.ValueMatch{Name: name.Draw(t, "parameter"), Kind: &configv1.ValueMatch_Regex{Regex: regex.Draw(t, "regex")}})
	}
	return m
}
