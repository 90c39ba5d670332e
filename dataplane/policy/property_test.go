package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// TestCheckedCompiles: what config.Check accepts compiles, and runs without a
// panic whatever it is asked. The values are a mix of what is allowed and what
// is not, so that the line between the two is crossed often.
func TestCheckedCompiles(t *testing.T) {
	accepted := 0
	rapid.Check(t, checkedCompiles(t, &accepted))
	if accepted == 0 {
		t.Error("nothing was accepted: the property says nothing")
	}
}

// FuzzCheckedCompiles is the same, guided by coverage.
func FuzzCheckedCompiles(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkedCompiles(f, new(int)))) }

func checkedCompiles(tb testing.TB, accepted *int) func(*rapid.T) {
	base := documentsOf(tb, common)
	w := newWorld(tb, hotRoute)
	drawShared := rapid.Custom(drawPolicy).Filter(func(p *configv1.Policy) bool { return p.GetRef() == "" })
	return func(t *rapid.T) {
		drawPolicies := rapid.SliceOfN(rapid.Custom(drawPolicy), 0, 4)
		route := &configv1.Route{Policies: drawPolicies.Draw(t, "route"), Backends: []*configv1.Backend{{Upstream: "up"}}}
		route.Public = !slices.ContainsFunc(route.Policies, func(p *configv1.Policy) bool { return p.GetJwt() != nil || p.GetApiKey() != nil })
		if rapid.Bool().Draw(t, "bounded") {
			route.Revocation = &configv1.Revocation{MaxStaleness: durationpb.New(time.Second), OnStale: configv1.OnStale(rapid.Int32Range(0, 2).Draw(t, "on stale"))}
		}
		rs := append([]*configv1.Resource{
			{Metadata: &configv1.Metadata{Name: "default"}, Spec: &configv1.Resource_Gateway{Gateway: &configv1.Gateway{Policies: drawPolicies.Draw(t, "gateway")}}},
			{Metadata: &configv1.Metadata{Name: "shop"}, Spec: &configv1.Resource_Workspace{Workspace: &configv1.Workspace{Policies: drawPolicies.Draw(t, "workspace")}}},
			{Metadata: &configv1.Metadata{Workspace: "shop", Name: "route"}, Spec: &configv1.Resource_Route{Route: route}},
			{Metadata: &configv1.Metadata{Name: "shared"}, Spec: &configv1.Resource_Policy{Policy: drawShared.Draw(t, "shared")}},
		}, base...)
		checked, err := config.Check(rs)
		if err != nil {
			return
		}
		*accepted++
		w.checked = checked
		p, err := CompileRoute(w.route, route, checked.Policies(w.route), w.deps)
		if err != nil {
			t.Fatalf("accepted, but: %v", err)
		}
		for _, fields := range [][]string{nil, {"Authorization", "Bearer " + mint(nil)}, {"X-API-Key", w.key("all", "shop/erp", "", 0)}} {
			e := w.request("GET", "/", fields...)
			if d := p.Run(e); d != nil && (d.Reason.Status() == 500 || e.Why.Policy == "") {
				t.Fatalf("refused for %q by %q", d.Reason, e.Why.Policy)
			}
		}
	}
}

// drawPolicy draws a policy. Of each list of values the ones after "|" are wrong,
// and are drawn one time in thirty.
func drawPolicy(t *rapid.T) *configv1.Policy {
	one := func(label string, of ...string) string {
		bar := slices.Index(of, "|")
		if rapid.IntRange(0, 29).Draw(t, label+" wrong") == 29 {
			return rapid.SampledFrom(of[bar+1:]).Draw(t, label)
		}
		return rapid.SampledFrom(of[:bar]).Draw(t, label)
	}
	words := func(label string, least int, of ...string) []string {
		var out []string
		for range rapid.IntRange(least, 2).Draw(t, label+" size") {
			if w := one(label, of...); !slices.Contains(out, w) {
				out = append(out, w)
			}
		}
		return out
	}
	switch rapid.IntRange(0, 5).Draw(t, "kind") {
	case 0:
		return &configv1.Policy{Kind: &configv1.Policy_Jwt{Jwt: &configv1.JWT{
			Issuers: words("issuers", 1, "local", "partner", "remote", "|", "none"), Audiences: words("audiences", 1, "https://api.example", "b", "|", "")}}}
	case 1:
		return &configv1.Policy{Kind: &configv1.Policy_ApiKey{ApiKey: &configv1.APIKey{
			Header: one("header", "", "X-Key", "x-api-key", "Authorization", "authorization", "|", "Host", "a b")}}}
	case 2:
		conditions := []string{"", "true", "request.method == 'GET'", "auth.claims.x == 'y'", "size(auth.scopes) > 0", "|", "request.nothing", "1", "'"}
		return &configv1.Policy{Kind: &configv1.Policy_Authorize{Authorize: &configv1.Authorize{Rules: []*configv1.AuthorizeRule{{
			Name: one("name", "", "n", "|", "\n"), When: one("when", conditions...), Require: one("require", conditions...),
			Scopes: words("scopes", 1, "orders:read", "x", "|", "a b", "\\", ""), Roles: words("roles", 0, "admin", "b", "|", "")}}}}}
	case 3:
		l := &configv1.RateLimit{Key: one("key", "", "auth.client", "request.peer", "request.headers.x", "route", "|", "1", "now"),
			OnPartition: configv1.OnPartition(rapid.Int32Range(0, 3).Draw(t, "partition"))}
		for range rapid.IntRange(1, 2).Draw(t, "limits") {
			l.Limits = append(l.Limits, &configv1.Limit{Name: one("limit", "", "a", "b", "c", "d", "|", "A"),
				Requests: uint64(len(one("requests", "1", "22", "4444", "|", ""))) * 1000, Burst: rapid.Uint64Range(0, 3).Draw(t, "burst"),
				Window: durationpb.New(time.Duration(len(one("window", "1", "22", "|", ""))) * 100 * time.Millisecond)})
		}
		return &configv1.Policy{Kind: &configv1.Policy_RateLimit{RateLimit: l}}
	case 4:
		changes := func(label string) *configv1.HeaderChanges {
			return &configv1.HeaderChanges{Remove: words(label+" remove", 0, "X-A", "Server", "|", "Host", "x y", "Connection"),
				Set: map[string]string{one(label+" set", "X-B", "x-b", "|", "", "é", "Content-Length"): one(label+" value", "", "v", "|", "a\nb", "\x7f")}}
		}
		return &configv1.Policy{Kind: &configv1.Policy_Headers{Headers: &configv1.Headers{Request: changes("request"), Response: changes("response")}}}
	}
	return &configv1.Policy{Kind: &configv1.Policy_Ref{Ref: one("ref", "shared", "|", "none")}}
}

// FuzzAuthorization sends any Authorization header and API key: who gets in sent
// the one token or the one key that is good, and nothing else.
func FuzzAuthorization(f *testing.F) {
	w := newWorld(f, levelsConfig("", "", `{jwt: {issuers: [local], audiences: ["https://api.example"]}}, {apiKey: {}}, {apiKey: {header: Authorization}}`))
	good, key := mint(nil), w.key("good", "shop/erp", "", 0)
	for _, authorization := range []string{"", "Bearer " + good, "bearer  " + good, "ApiKey " + key, "Bearer " + key, "Bearer " + mint(map[string]any{"aud": "x"}), "Basic x", "Bearer\t" + good, " Bearer " + good} {
		for _, apiKey := range []string{"", key, key[:len(key)-1]} {
			f.Add(authorization, apiKey)
		}
	}
	f.Fuzz(func(t *testing.T, authorization, apiKey string) {
		var fields []string
		if authorization != "" {
			fields = append(fields, "Authorization", authorization)
		}
		if apiKey != "" {
			fields = append(fields, "X-API-Key", apiKey)
		}
		e := w.request("GET", "/", fields...)
		if d := w.pipeline.Run(e); d != nil {
			if e.Identity.Method != "" || d.Reason.Status() != 401 && d.Reason != CredentialDuplicate {
				t.Fatalf("refused for %s as %q", d.Reason, e.Identity.Method)
			}
			return
		}
		scheme, rest, _ := strings.Cut(authorization, " ")
		rest = strings.TrimLeft(rest, " ")
		switch {
		case authorization == "" && apiKey == key && e.Identity.Method == "api_key":
		case apiKey == "" && strings.EqualFold(scheme, "apikey") && rest == key && e.Identity.Method == "api_key":
		case apiKey == "" && strings.EqualFold(scheme, "bearer") && rest == good && e.Identity.Method == "jwt":
		default:
			t.Fatalf("let in as %q with %q and %q", e.Identity.Method, authorization, apiKey)
		}
	})
}
