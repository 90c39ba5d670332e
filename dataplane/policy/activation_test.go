package policy

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config/expr"
)

func TestActivation(t *testing.T) {
	e := &exchange.Exchange{Received: noon, Route: exchange.RouteInfo{Workspace: "shop", Name: "orders"}, Params: []exchange.Param{{Name: "id", Value: "7"}}}
	e.Request = exchange.Request{Method: "GET", Path: "/o/7", Query: "a=1&b=%41+&c=1&c=2&d", Host: "h", Scheme: "https", Peer: netip.MustParseAddr("::ffff:192.0.2.1"),
		TLS:    &exchange.PeerTLS{Version: tls.VersionTLS13, ServerName: "h", ALPN: "h2", Verified: []*x509.Certificate{{Subject: pkix.Name{CommonName: "c"}}}},
		Header: exchange.HeaderOf(exchange.Field{Name: "X-A", Value: "1"}, exchange.Field{Name: "x-two", Value: "1"}, exchange.Field{Name: "X-Two", Value: "2"})}
	e.Identity = exchange.Identity{Method: "jwt", Subject: "s", Client: "c", Issuer: "i", Scopes: []string{"r"}, Roles: []string{"x"}, Groups: []string{"g"},
		Claims: map[string]any{"n": json.Number("9007199254740993"), "huge": json.Number("99999999999999999999"), "f": json.Number("0.12345678901234567"), "deep": map[string]any{"l": []any{json.Number("-9007199254740993"), "x"}}, "nil": nil}}
	env := expr.New()
	for src, want := range map[string]string{
		`request.method + request.path + request.host + request.scheme == 'GET/o/7hhttps'`: "true",
		`request.peer == '192.0.2.1'`:                                               "true",
		`request.headers['x-a'] == '1' && 'x-b' in request.headers == false`:        "true",
		`'x-two' in request.headers`:                                                "several",
		`request.headers.exists(k, k == 'x-two') && size(request.headers) == 2`:     "true",
		`request.query.a == '1' && request.query.b == 'A ' && has(request.query.d)`: "true",
		`request.query.c == '1'`:                                                    "several",
		`has(request.query.x)`:                                                      "false",
		`size(request.query) == 4`:                                                  "true",
		`request.params.id == '7' && size(request.params) == 1`:                     "true",
		`request.params.none == ''`:                                                 "no such key",
		`request.tls.version == '1.3' && request.tls.alpn == 'h2' && request.tls.server_name == 'h' && request.tls.client_subject == 'CN=c' && size(request.tls.client_sha256) == 64`: "true",
		`auth.method + auth.subject + auth.client + auth.issuer == 'jwtsci'`:         "true",
		`'r' in auth.scopes && 'x' in auth.roles && 'g' in auth.groups`:              "true",
		`auth.claims.n == 9007199254740993 && auth.claims.n != 9007199254740992`:     "true",
		`auth.claims.huge == 99999999999999999999.0`:                                 "out of range",
		`auth.claims.f > 0.123 && auth.claims.f < 0.124`:                             "true",
		`auth.claims.deep.l[0] == -9007199254740993 && auth.claims.deep.l[1] == 'x'`: "true",
		`auth.claims.nil == null && has(auth.claims.nil)`:                            "true",
		`auth.claims.none == 1`: "no such key",
		`route == 'orders' && route.name == route && route.workspace == 'shop'`: "true",
		`now == timestamp('2026-03-01T12:00:00Z')`:                              "true",
	} {
		p, err := env.Compile(src, expr.Bool)
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		got, err := p.Bool((*activation)(e))
		switch {
		case want == "true" || want == "false":
			if err != nil || got != (want == "true") {
				t.Errorf("%s: %v %v", src, got, err)
			}
		case err == nil || !strings.Contains(err.Error(), want):
			t.Errorf("%s: %v %v, want %q", src, got, err, want)
		}
	}
	if _, known := (*activation)(e).ResolveName("request"); known {
		t.Error("resolved what does not exist")
	}
	// An anonymous plain request has every name, with nothing in it.
	e = &exchange.Exchange{}
	p, err := env.Compile(`size(auth.claims) + size(auth.scopes) + size(request.tls) + size(request.headers) + size(request.query) == 0 && auth.method == ''`, expr.Bool)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := p.Bool((*activation)(e)); err != nil || !got {
		t.Error(got, err)
	}
}

// TestExpressionsReadBoundedInput: an expression that goes through all of a query
// takes it apart once, and fails on more than its cost was estimated on.
func TestExpressionsReadBoundedInput(t *testing.T) {
	p, err := expr.New().Compile(`request.query.all(k, request.query[k] == 'A') && request.headers.all(k, request.headers[k] == 'A')`, expr.Bool)
	if err != nil {
		t.Fatal(err)
	}
	e := &exchange.Exchange{}
	fill := func(parameters, headers int) {
		e.Reset()
		for i := range parameters {
			e.Request.Query += fmt.Sprintf("&%%61%d=%%41", i)
		}
		for i := range headers {
			e.Request.Header.Add(fmt.Sprintf("X-%d", i), "A")
		}
	}
	for _, c := range []struct {
		parameters, headers int
		want                string
	}{{128, 128, ""}, {129, 0, "more than 128"}, {0, 129, "more than 128"}, {0, 0, ""}} {
		fill(c.parameters, c.headers)
		if ok, err := p.Bool((*activation)(e)); ok != (c.want == "") || err != nil && (c.want == "" || expressionNote(err) != errTooMany.Error()) {
			t.Errorf("%d parameters, %d headers: %v, %v", c.parameters, c.headers, ok, err)
		}
	}
	// Each parameter costs one decoded name and value, not one for each other.
	p, err = expr.New().Compile(`request.query.all(k, request.query[k] == 'A')`, expr.Bool)
	if err != nil {
		t.Fatal(err)
	}
	allocs := func(n int) float64 {
		fill(n, 0)
		query := e.Request.Query
		return testing.AllocsPerRun(5, func() {
			e.Reset()
			e.Request.Query = query
			if ok, err := p.Bool((*activation)(e)); !ok {
				t.Fatal(err)
			}
		})
	}
	if few, many := allocs(16), allocs(128); many > 10*few {
		t.Errorf("%v allocations for 16 parameters, %v for 128", few, many)
	}
}
