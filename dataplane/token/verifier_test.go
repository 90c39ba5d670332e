package token

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestVerifyAcceptsEachAlgorithm(t *testing.T) {
	spec := issuerSpec()
	spec.HmacSecret = base64.StdEncoding.EncodeToString([]byte(sharedSecret))
	i := compile(t, spec, keySet(), NewCache(CacheConfig{}))
	v := NewVerifier(i)
	for alg, kid := range map[string]string{
		"RS256": "rsa", "RS384": "rsa", "RS512": "rsa", "PS256": "rsa", "PS384": "rsa", "PS512": "rsa",
		"ES256": "p256", "ES384": "p384", "ES512": "p521", "EdDSA": "ed", "HS256": "",
	} {
		token := mint(headerMap(m{"alg": alg, "kid": kid}), claims(m{"alg": alg}))
		for range 2 { // the second time from the cache
			got, from, refusal := v.Verify(token, noon)
			if refusal != nil {
				t.Fatalf("%s: %v", alg, refusal)
			}
			if from != i || got.Claims["alg"] != alg {
				t.Errorf("%s: got %v from %v", alg, got.Claims, from.Name())
			}
		}
	}
}

func TestVerifyReadsClaims(t *testing.T) {
	thumbprint := make([]byte, 32)
	v := NewVerifier(compile(t, issuerSpec(), keySet(), nil))
	got, _, refusal := v.Verify(mint(headerMap(nil), claims(m{
		"aud": []string{"a", "b"}, "roles": []string{"admin"}, "groups": "staff members", "sid": "s-1", "nbf": float64(noon.Unix()) - 0.5,
		"cnf": m{"x5t#S256": b64(thumbprint)}, "email": "a@x@corp.com", "big": json.RawMessage("9007199254740993"),
		"deep": m{"n": json.RawMessage("-0.1")},
	})), noon)
	if refusal != nil {
		t.Fatal(refusal)
	}
	want := &Token{
		Issuer: "https://issuer.example", Subject: "alice", ID: "t-1", Session: "s-1", Client: "shop-web",
		Audience: []string{"a", "b"}, Scopes: []string{"orders:read", "orders:write"}, Roles: []string{"admin"},
		Groups: []string{"staff members"}, IssuedAt: noon.Unix() - 60, NotBefore: noon.Unix(), Expires: noon.Unix() + 600,
		Thumbprint: thumbprint, Claims: got.Claims,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got.Claims["big"] != json.Number("9007199254740993") || got.Claims["deep"].(m)["n"] != -0.1 || got.Claims["email"] != "a@x@corp.com" {
		t.Errorf("claims: %v", got.Claims)
	}
	if !got.ForAny([]string{"x", "b"}) || got.ForAny([]string{"x"}) || got.ForAny(nil) {
		t.Error("ForAny")
	}
}

func TestClaimNames(t *testing.T) {
	spec := issuerSpec()
	spec.Claims = &configv1.ClaimNames{Scopes: "perms", Roles: "realm_access.roles", Groups: "https://x.example/groups", Client: "app.id"}
	v := NewVerifier(compile(t, spec, keySet(), nil))
	got, _, refusal := v.Verify(mint(headerMap(nil), claims(m{
		"perms": []string{"a", "b"}, "realm_access": m{"roles": []string{"r"}}, "roles": "not-this",
		"https://x.example/groups": []string{"g"}, "app": m{"id": "c"}, "client_id": "not-this",
	})), noon)
	if refusal != nil {
		t.Fatal(refusal)
	}
	if d := cmp.Diff([]any{[]string{"a", "b"}, []string{"r"}, []string{"g"}, "c"}, []any{got.Scopes, got.Roles, got.Groups, got.Client}); d != "" {
		t.Error(d)
	}
	// A declared name has no fallback, and what is not there grants nothing.
	got, _, refusal = v.Verify(mint(headerMap(nil), claims(m{"realm_access": "x", "roles": "admin"})), noon)
	if refusal != nil || len(got.Scopes)+len(got.Roles)+len(got.Groups) != 0 || got.Client != "" {
		t.Errorf("%v %v", got, refusal)
	}
	spec.Claims = nil
	v = NewVerifier(compile(t, spec, keySet(), nil))
	got, _, refusal = v.Verify(mint(headerMap(nil), claims(m{"scope": nil, "scp": []string{"x"}, "client_id": nil, "azp": "z"})), noon)
	if refusal != nil || got.Scopes[0] != "x" || got.Client != "z" {
		t.Errorf("%v %v", got, refusal)
	}
}

func TestVerifyAlgorithmsOfTheIssuer(t *testing.T) {
	spec := issuerSpec()
	spec.Algorithms = []string{"ES384"}
	v := NewVerifier(compile(t, spec, keySet(), nil))
	if _, _, refusal := v.Verify(mint(headerMap(nil), claims(nil)), noon); refusal != ErrAlgorithm {
		t.Error(refusal)
	}
	if _, _, refusal := v.Verify(mint(headerMap(m{"alg": "ES384", "kid": "p384"}), claims(nil)), noon); refusal != nil {
		t.Error(refusal)
	}
}

func TestVerifyKidLeftOut(t *testing.T) {
	v := NewVerifier(compile(t, issuerSpec(), keySet(), nil))
	bare := mint(headerMap(m{"kid": nil}), claims(nil))
	if _, _, refusal := v.Verify(bare, noon); refusal != nil {
		t.Error("one key for the algorithm:", refusal)
	}
	two := keySet()
	two.Keys = append(two.Keys, &configv1.Key{Kid: "more", Algorithms: []string{"ES256"}, Spki: spki("other")})
	v = NewVerifier(compile(t, issuerSpec(), two, nil))
	if _, _, refusal := v.Verify(bare, noon); refusal != ErrUnknownKey {
		t.Error("two keys for the algorithm:", refusal)
	}
}

func TestVerifyKeysUnavailable(t *testing.T) {
	token := mint(headerMap(nil), claims(nil))
	stale := keySet()
	stale.StaleAt = timestamppb.New(noon)
	for name, set := range map[string]*configv1.KeySet{"none": nil, "empty": {Problem: "down"}, "stale": stale} {
		i := compile(t, issuerSpec(), set, nil)
		_, from, refusal := NewVerifier(i).Verify(token, noon)
		if refusal != ErrKeysUnavailable || from != i {
			t.Errorf("%s: %v", name, refusal)
		}
	}
	if _, _, refusal := NewVerifier(compile(t, issuerSpec(), stale, nil)).Verify(token, noon.Add(-time.Second)); refusal != nil {
		t.Error("before it is stale:", refusal)
	}
}

func TestVerifySkewAndLifetime(t *testing.T) {
	spec := issuerSpec()
	spec.ClockSkew = durationpb.New(0)
	spec.MaxLifetime = durationpb.New(660 * time.Second)
	v := NewVerifier(compile(t, spec, keySet(), nil))
	token := mint(headerMap(nil), claims(nil))
	for at, want := range map[int64]*Refusal{-61: ErrNotYetValid, -60: nil, 599: nil, 600: ErrExpired} {
		if _, _, refusal := v.Verify(token, noon.Add(time.Duration(at)*time.Second)); refusal != want {
			t.Errorf("at %d: %v, want %v", at, refusal, want)
		}
	}
	if _, _, refusal := v.Verify(mint(headerMap(nil), claims(m{"exp": noon.Unix() + 601})), noon); refusal != ErrLifetime {
		t.Error(refusal)
	}
}

func TestVerifyOneOfSeveralIssuers(t *testing.T) {
	other := issuerSpec()
	other.Issuer = "https://other.example"
	same := &configv1.KeySet{Keys: []*configv1.Key{{Kid: "p256", Algorithms: []string{"ES256"}, Spki: spki("other")}}}
	a, b := compile(t, issuerSpec(), keySet(), nil), compile(t, other, same, nil)
	v := NewVerifier(a, b)
	if _, from, refusal := v.Verify(mint(headerMap(nil), claims(nil)), noon); refusal != nil || from != a {
		t.Error(refusal)
	}
	// The same kid at another issuer is another key.
	if _, from, refusal := v.Verify(mint(headerMap(nil), claims(m{"iss": other.Issuer})), noon); refusal != ErrSignature || from != b {
		t.Error(refusal)
	}
}

func TestCompileRefuses(t *testing.T) {
	b := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	key := func(kid, alg string) *configv1.KeySet {
		return &configv1.KeySet{Keys: []*configv1.Key{{Kid: kid, Algorithms: []string{alg}, Spki: spki(kid)}}}
	}
	for name, c := range map[string]struct {
		spec *configv1.Issuer
		set  *configv1.KeySet
		want string
	}{
		"no issuer":        {&configv1.Issuer{}, nil, "issuer: empty"},
		"short secret":     {&configv1.Issuer{Issuer: "x", HmacSecret: b(31)}, nil, "31 bytes"},
		"secret no base64": {&configv1.Issuer{Issuer: "x", HmacSecret: "%"}, nil, "not base64"},
		"HS256 alone":      {&configv1.Issuer{Issuer: "x", Algorithms: []string{"HS256"}}, nil, "without hmacSecret"},
		"none":             {&configv1.Issuer{Issuer: "x", Algorithms: []string{"none"}}, nil, "not one of them"},
		"skew":             {&configv1.Issuer{Issuer: "x", ClockSkew: durationpb.New(61 * time.Second)}, nil, "clockSkew"},
		"lifetime":         {&configv1.Issuer{Issuer: "x", MaxLifetime: durationpb.New(0)}, nil, "maxLifetime"},
		"curve":            {issuerSpec(), key("p256", "ES384"), "cannot verify ES384"},
		"kind":             {issuerSpec(), key("rsa", "ES256"), "cannot verify ES256"},
		"symmetric":        {issuerSpec(), key("rsa", "HS256"), "cannot verify HS256"},
		"no algorithm":     {issuerSpec(), &configv1.KeySet{Keys: []*configv1.Key{{Spki: spki("rsa")}}}, "none"},
		"no key":           {issuerSpec(), &configv1.KeySet{Keys: []*configv1.Key{{Algorithms: []string{"ES256"}, Spki: []byte("x")}}}, "spki"},
	} {
		if _, err := Compile("default/x", c.spec, c.set, nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
