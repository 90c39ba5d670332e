package balance

import (
	"encoding/json"
	"net/netip"
	"testing"

	"portcullis.dev/portcullis/dataplane/exchange"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func header(name string) *configv1.HashKey {
	return &configv1.HashKey{Kind: &configv1.HashKey_Header{Header: name}}
}

func cookie(name string) *configv1.HashKey {
	return &configv1.HashKey{Kind: &configv1.HashKey_Cookie{Cookie: name}}
}

func claim(name string) *configv1.HashKey {
	return &configv1.HashKey{Kind: &configv1.HashKey_Claim{Claim: name}}
}

func asked(fields ...exchange.Field) *exchange.Exchange {
	e := &exchange.Exchange{}
	e.Request.Header = exchange.HeaderOf(fields...)
	e.Request.Peer = netip.MustParseAddr("192.0.2.1")
	e.Identity.Claims = map[string]any{
		"sub": "a", "n": 7.0, "big": json.Number("9007199254740993"), "yes": true, "no": false, "list": []any{"x"}, "https://x.example/id": "u",
		"org": map[string]any{"id": "o", "a.b": "dotted", "unit": map[string]any{"n": "7"}},
	}
	return e
}

func TestTheFirstKeyThatTheRequestHas(t *testing.T) {
	e := asked(exchange.Field{Name: "X-Tenant", Value: "t"}, exchange.Field{Name: "Cookie", Value: `a=1; sid="s"`})
	hash := func(specs ...*configv1.HashKey) uint64 { return CompileKeys(specs).Hash(e) }
	address := hash()
	for name, c := range map[string]struct {
		keys, same []*configv1.HashKey
	}{
		"header":          {[]*configv1.HashKey{header("x-tenant"), cookie("a")}, []*configv1.HashKey{header("X-Tenant")}},
		"absent header":   {[]*configv1.HashKey{header("x-none"), cookie("sid")}, []*configv1.HashKey{cookie("sid")}},
		"absent cookie":   {[]*configv1.HashKey{cookie("b"), claim("sub")}, []*configv1.HashKey{claim("sub")}},
		"path of a claim": {[]*configv1.HashKey{claim("org.none"), claim("org.unit.n")}, []*configv1.HashKey{claim("org.unit.n")}},
		"claim with dots": {[]*configv1.HashKey{claim("https://x.example/id")}, []*configv1.HashKey{claim("https://x.example/id"), claim("sub")}},
		"list":            {[]*configv1.HashKey{claim("list"), claim("org"), claim("big")}, []*configv1.HashKey{claim("big")}},
	} {
		if got := hash(c.keys...); got != hash(c.same...) || got == address {
			t.Errorf("%s: %x", name, got)
		}
	}
	if hash(header("x-none"), cookie("b"), claim("list")) != address {
		t.Error("nothing is there: the address")
	}
	if hash(&configv1.HashKey{Kind: &configv1.HashKey_Address{Address: true}}, header("X-Tenant")) != address {
		t.Error("the address comes first")
	}
	distinct := map[uint64]string{address: "address"}
	for _, name := range []string{"sub", "n", "big", "yes", "no", "org.id", "org.a.b", "org.unit.n"} {
		got := hash(claim(name))
		if other, twice := distinct[got]; twice {
			t.Errorf("%s and %s have one hash", name, other)
		}
		distinct[got] = name
	}
	all := CompileKeys([]*configv1.HashKey{header("x-none"), cookie("none"), claim("org.none"), claim("n")})
	if n := testing.AllocsPerRun(100, func() { all.Hash(e) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCookies(t *testing.T) {
	for _, c := range []struct {
		field, name, value string
		ok                 bool
	}{
		{"a=1", "a", "1", true},
		{"a=1; b=2;c=3", "b", "2", true},
		{"a=1; b=2;c=3", "c", "3", true},
		{"a=1; a=2", "a", "1", true},
		{"a=x=y", "a", "x=y", true},
		{`a=""`, "a", "", true},
		{`a="`, "a", `"`, true},
		{"A=1", "a", "", false},
		{"a", "a", "", false},
		{";;=", "a", "", false},
		{"", "a", "", false},
	} {
		h := exchange.HeaderOf(exchange.Field{Name: "cookie", Value: c.field})
		if value, ok := Cookie(&h, c.name); value != c.value || ok != c.ok {
			t.Errorf("%q: %q, %t", c.field, value, ok)
		}
	}
	two := exchange.HeaderOf(exchange.Field{Name: "Cookie", Value: "b=1"}, exchange.Field{Name: "Cookie", Value: "a=2"})
	if value, ok := Cookie(&two, "a"); !ok || value != "2" {
		t.Error("HTTP/2 may split cookies (RFC 9113, 8.2.3)")
	}
}
