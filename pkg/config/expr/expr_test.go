package expr

import (
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type values map[string]any

func (v values) ResolveName(name string) (any, bool) { x, ok := v[name]; return x, ok }
func (v values) Parent() Activation                  { return nil }

type header map[string]string

func (h header) Lookup(k string) (string, bool, error) {
	if k == "twice" {
		return "", false, errors.New("several values")
	}
	v, ok := h[k]
	return v, ok, nil
}

func (h header) Keys() []string {
	var keys []string
	for k := range h {
		keys = append(keys, k)
	}
	return keys
}

func sample() values {
	return values{
		RequestMethod: "GET", RequestPath: "/orders/1", RequestHost: "api.example", RequestScheme: "https",
		RequestPeer: "192.0.2.1", RequestHeaders: MapOf(header{"x-tenant": "t1", "accept": "*/*"}),
		RequestQuery: MapOf(header{"page": "2"}), RequestParams: map[string]string{"id": "1"},
		RequestTLS: map[string]string{}, AuthMethod: "jwt", AuthSubject: "alice", AuthClient: "web",
		AuthIssuer: "https://idp", AuthScopes: []string{"read", "write"}, AuthRoles: []string{"admin"},
		AuthGroups: []string{}, AuthClaims: map[string]any{"tenant": "t1", "age": 41.0, "nested": map[string]any{"a": true}},
		Route: "orders", RouteName: "orders", RouteWorkspace: "shop",
		Now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func TestBool(t *testing.T) {
	env := New()
	for src, want := range map[string]string{
		`request.method == 'GET'`:                               "true",
		`request.headers['x-tenant'] == auth.claims.tenant`:     "true",
		`request.headers['x-none'] == 'a'`:                      "no such key",
		`'x-none' in request.headers`:                           "false",
		`has(request.headers.accept)`:                           "true",
		`has(request.headers.none) && request.headers.none==''`: "false",
		`request.headers.twice == ''`:                           "several values",
		`'twice' in request.headers`:                            "several values",
		`request.headers.exists(k, k == 'accept')`:              "true",
		`size(request.headers) == 2`:                            "true",
		`request.query.page == '2'`:                             "true",
		`request.params.id == '1'`:                              "true",
		`has(request.tls.version)`:                              "false",
		`has(auth.claims.tenant)`:                               "true",
		`has(auth.claims.other)`:                                "false",
		`auth.claims.nested.a`:                                  "true",
		`auth.claims.tenant`:                                    "expected bool",
		`auth.claims.age > 40.0`:                                "true",
		`auth.claims.age > 40`:                                  "true",
		`'read' in auth.scopes && 'admin' in auth.roles`:        "true",
		`auth.groups.exists(g, g in auth.roles)`:                "false",
		`route == 'orders' && route.name == route`:              "true",
		`route.workspace == 'shop'`:                             "true",
		`now > timestamp('2026-01-01T00:00:00Z')`:               "true",
		`now.getHours() == 3`:                                   "true",
		`request.path.matches('^/orders/[0-9]+$')`:              "true",
		`request.peer.startsWith('192.0.2.')`:                   "true",
	} {
		p, err := env.Compile(src, Bool)
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		got, err := p.Bool(sample())
		switch {
		case want == "true" || want == "false":
			if err != nil || got != (want == "true") {
				t.Errorf("%s = %v, %v; want %s", src, got, err, want)
			}
		case err == nil || got || !strings.Contains(err.Error(), want):
			t.Errorf("%s = %v, %v; want error with %q", src, got, err, want)
		}
	}
}

func TestString(t *testing.T) {
	env := New()
	for src, want := range map[string]string{
		`auth.client`:                                    "web",
		`auth.client + '/' + request.method`:             "web/GET",
		`auth.client != '' ? auth.client : request.peer`: "web",
		`auth.claims.tenant`:                             "t1",
		`request.headers['x-tenant']`:                    "t1",
		`route`:                                          "orders",
	} {
		p, err := env.Compile(src, String)
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		if got, err := p.String(sample()); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", src, got, err, want)
		}
	}
	p, _ := env.Compile("auth.claims.age", String)
	if got, err := p.String(sample()); err == nil || got != "" {
		t.Errorf("a number as string = %q, %v; want an error", got, err)
	}
}

func TestVariable(t *testing.T) {
	env := New()
	for src, want := range map[string]string{
		"auth.client": "auth.client", "route": "route", "route.workspace": "route.workspace",
		"auth.claims.tenant": "", "request.headers.x": "", "auth.client + ''": "", "'x'": "",
	} {
		p, err := env.Compile(src, String)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := p.Variable(); got != want || ok != (want != "") {
			t.Errorf("%s: Variable = %q, %v", src, got, ok)
		}
	}
}

func TestRefused(t *testing.T) {
	env := New()
	nested := strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100)
	for _, c := range []struct{ src, want string }{
		{``, "is empty"},
		{`request.method = 'GET'`, "at 1:16"},
		{"true &&\n  requst.method == 'GET'", "at 2:9: unknown name \"requst.method\""},
		{`request.nothing == 'GET'`, "unknown name"},
		{`request.method`, "is of type string: expected bool"},
		{`request.method == 1`, "no matching overload"},
		{`request.headers['X-Tenant'] == 'a'`, `expected "x-tenant"`},
		{`has(request.headers.Accept)`, `expected "accept"`},
		{`request.path.matches('(')`, "invalid matches argument"},
		{`request.path.matches('(a{1000}){1000}')`, "matches"},
		{`auth.roles.all(a, auth.roles.all(b, auth.roles.all(c, a == b && b == c)))`, "nesting"},
		{`auth.claims.all(a, request.headers.all(b, request.query[b] == auth.claims[a]))`, ""},
		{nested, "recursion"},
		{strings.Repeat("a", MaxSize+1), "bytes long"},
		{`now > timestamp('yesterday')`, "timestamp"},
	} {
		_, err := env.Compile(c.src, Bool)
		if c.want == "" {
			continue
		}
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60s: %v; want %q", c.src, err, c.want)
		}
	}
}

func TestCostIsBounded(t *testing.T) {
	env := New()
	_, err := env.Compile(`auth.roles.exists(a, auth.groups.exists(b, request.path.matches(a + b)))`, Bool)
	if err == nil || !strings.Contains(err.Error(), "may cost") {
		t.Errorf("got %v", err)
	}
}

func TestHints(t *testing.T) {
	env := New()
	for src, want := range map[string]string{
		`request.headers['x-tenant'] == auth.claims.tenant`:                   `'x-tenant' in request.headers|has(auth.claims.tenant)`,
		`'x-tenant' in request.headers && request.headers['x-tenant'] == 'a'`: ``,
		`has(auth.claims.a) && auth.claims['a'] == 'x'`:                       ``,
		`request.method == 'GET'`:                                             ``,
	} {
		p, err := env.Compile(src, Bool)
		if err != nil {
			t.Fatal(err)
		}
		var wants []string
		if want != "" {
			wants = strings.Split(want, "|")
		}
		if len(p.Hints()) != len(wants) {
			t.Errorf("%s: hints %q", src, p.Hints())
			continue
		}
		for i, w := range wants {
			if !strings.Contains(p.Hints()[i], w) {
				t.Errorf("%s: hint %q; want %q", src, p.Hints()[i], w)
			}
		}
	}
}

func TestMemoGivesTheSame(t *testing.T) {
	env := New()
	a, _ := env.Compile("request.method == 'GET'", Bool)
	b, _ := env.Compile("request.method == 'GET'", Bool)
	if a != b {
		t.Error("compiled twice")
	}
	if _, err := env.Compile("request.method", Bool); err == nil {
		t.Error("the wanted type is part of the memo's key")
	}
	if _, err := env.Compile("request.method", String); err != nil {
		t.Error(err)
	}
}

func BenchmarkBool(b *testing.B) {
	p, err := New().Compile(`request.headers['x-tenant'] == auth.claims.tenant`, Bool)
	if err != nil {
		b.Fatal(err)
	}
	var a Activation = sample()
	b.ReportAllocs()
	for b.Loop() {
		if ok, err := p.Bool(a); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

func FuzzCompile(f *testing.F) {
	env := New()
	f.Add(`request.headers['x-tenant'] == auth.claims.tenant`)
	f.Add(`auth.roles.exists(r, r.matches('^a+$'))`)
	f.Fuzz(func(t *testing.T, src string) {
		p, err := env.Compile(src, Bool)
		if (p == nil) == (err == nil) {
			t.Fatalf("%q: %v, %v", src, p, err)
		}
		if err == nil {
			p.Bool(sample()) // must not panic, whatever it answers
		}
	})
}
