package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// What a client says of itself under our names never passes; what was proved
// does, harmless and whole.
func TestIdentityHeaders(t *testing.T) {
	r := newRig(t)
	up := newOrigin(t, r, ok)
	r.apply(refusals + issuer("default", "local", "https://local.example", secret) + upstreamAt("up", up.URL) + upstreamAt("down", up.URL) +
		doc("Route", "default", "public", "{public: true, matches: [{path: {prefix: /public}}], backends: [{upstream: up}]}"))
	forged := []string{"X-Portcullis-Subject", "root", "x-portcullis-scopes", "admin", "X-PORTCULLIS-ANYTHING", "1", "X-Portcullis-", "2", "X-Tenant", "a"}
	ours := func(h http.Header) []string {
		var out []string
		for name, values := range h {
			if strings.HasPrefix(name, "X-Portcullis-") {
				out = append(out, name[len("X-Portcullis-"):]+"="+strings.Join(values, "|"))
			}
		}
		slices.Sort(out)
		return out
	}
	for _, c := range []struct {
		path   string
		claims map[string]any
		want   string
	}{
		{"x/public", nil, "[]"},
		{"x/jwt", map[string]any{}, "[Auth-Method=jwt Client=web Issuer=https://local.example Scopes=orders:read Subject=alice]"},
		{"x/jwt", map[string]any{"client_id": nil}, "[Auth-Method=jwt Issuer=https://local.example Scopes=orders:read Subject=alice]"},
		// The verifier lets no control character in: TestFieldValues has those.
		{"x/jwt", map[string]any{"roles": []string{"a,b", "c"}, "groups": []string{"\u00fc", " x ", "50%"}},
			"[Auth-Method=jwt Client=web Groups=%C3%BC,%20x%20,50%25 Issuer=https://local.example Roles=a%2Cb,c Scopes=orders:read Subject=alice]"},
		{"x/jwt", map[string]any{"sub": "ali\u212Ae b"}, "[Auth-Method=jwt Client=web Issuer=https://local.example Scopes=orders:read Subject=ali%E2%84%AAe b]"},
	} {
		e := request("GET", c.path, forged...)
		if c.claims != nil {
			e.Request.Header.Add("Authorization", "Bearer "+mint(secret, c.claims))
		}
		if got := r.do(e); got.status != 200 {
			t.Fatalf("%d %s", got.status, got.body)
		}
		h := up.last()
		if got := fmt.Sprint(ours(h)); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		if h.Get("X-Tenant") != "a" || h.Get("X-Admin") != "" {
			t.Errorf("%v", h)
		}
	}
}

// Every list of values comes out of its header as it went in, and no value can
// end the field.
func TestFieldValues(t *testing.T) {
	text := rapid.OneOf(rapid.StringOfN(rapid.SampledFrom([]rune(" ,%aü\r\n\x00\t;=\x7f")), 1, 6, -1), rapid.StringN(1, 8, -1))
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(text, 1, 4).Draw(t, "values")
		separator := rapid.SampledFrom([]string{" ", ","}).Draw(t, "separator")
		var h exchange.Header
		var m memory
		m.addList(&h, "X", values, separator[0])
		field := h.Get("X")
		if strings.TrimSpace(field) != field || strings.ContainsFunc(field, func(c rune) bool { return c < ' ' || c > '~' }) {
			t.Fatalf("%q cannot stand in a header", field)
		}
		var back []string
		for part := range strings.SplitSeq(field, separator) {
			value, err := url.PathUnescape(part)
			if err != nil {
				t.Fatal(err)
			}
			back = append(back, value)
		}
		if !slices.Equal(back, values) {
			t.Fatalf("%q became %q through %q", values, back, field)
		}
	})
}
