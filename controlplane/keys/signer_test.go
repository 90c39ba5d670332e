package keys

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// verify reads a token by RFC 7515 alone, with nothing but the standard library.
func verify(t *testing.T, token string, key *configv1.Key) (header, claims map[string]any) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("%d parts", len(parts))
	}
	var raw [3][]byte
	for i, part := range parts {
		raw[i] = must(base64.RawURLEncoding.Strict().DecodeString(part))
	}
	if err := errors.Join(json.Unmarshal(raw[0], &header), json.Unmarshal(raw[1], &claims)); err != nil {
		t.Fatal(err)
	}
	pub := must(x509.ParsePKIXPublicKey(key.Spki)).(*ecdsa.PublicKey)
	sum := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if len(raw[2]) != 64 || !ecdsa.Verify(pub, sum[:], new(big.Int).SetBytes(raw[2][:32]), new(big.Int).SetBytes(raw[2][32:])) {
		t.Fatal("the signature is wrong")
	}
	return header, claims
}

func TestSignerRoundTrip(t *testing.T) {
	signer := must(NewSigner())
	again := must(ParseSigner(must(signer.Marshal())))
	key := must(again.Public())
	now := time.Unix(1_700_000_000, 0)
	token := must(signer.Sign(Claims{
		Issuer: "https://i", Subject: "alice", Client: "cli", TokenID: "j", Audiences: []string{"a", "b"}, Scopes: []string{"r", "w"},
		IssuedAt: now, ExpiresAt: now.Add(time.Hour), Extra: map[string]any{"roles": []any{"x"}, "tenant": map[string]any{"id": 1.0}},
	}))
	header, claims := verify(t, token, key)
	if header["alg"] != "ES256" || header["typ"] != "at+jwt" || header["kid"] != key.Kid || len(header) != 3 {
		t.Errorf("header %v", header)
	}
	want := `{"aud":["a","b"],"client_id":"cli","exp":1700003600,"iat":1700000000,"iss":"https://i","jti":"j","roles":["x"],"scope":"r w","sub":"alice","tenant":{"id":1}}`
	if got := string(must(json.Marshal(claims))); got != strings.ReplaceAll(want, "1700003600", "1700003600") {
		var w, g any
		_ = json.Unmarshal([]byte(want), &w)
		_ = json.Unmarshal([]byte(got), &g)
		if string(must(json.Marshal(w))) != string(must(json.Marshal(g))) {
			t.Errorf("claims %s", got)
		}
	}
	for claim := range reserved {
		if _, err := signer.Sign(Claims{Issuer: "i", IssuedAt: now, ExpiresAt: now, Extra: map[string]any{claim: "x"}}); err == nil {
			t.Errorf("the claim %s was overridden", claim)
		}
	}
	if other := must(must(NewSigner()).Public()); other.Kid == key.Kid {
		t.Error("two signers of one kid")
	}
	rsaKey := must(x509.MarshalPKCS8PrivateKey(private()["rsa2048"]))
	for name, der := range map[string][]byte{"nothing": nil, "text": []byte("key"), "RSA": rsaKey} {
		if _, err := ParseSigner(der); err == nil {
			t.Errorf("%s was read as a signing key", name)
		}
	}
}

// memory is a Vault.
type memory struct {
	mu      sync.Mutex
	keys    map[string][]byte
	creates int
	err     error
	// late, when set, is stored by another replica just before the next Create.
	late []byte
}

func (m *memory) Load(_ context.Context, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.keys[name], m.err
}

func (m *memory) Create(_ context.Context, name string, key []byte) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.creates++
	if m.keys == nil {
		m.keys = map[string][]byte{}
	}
	if m.late != nil {
		m.keys[name], m.late = m.late, nil
	}
	if m.keys[name] != nil {
		return false, m.err
	}
	m.keys[name] = key
	return true, m.err
}

func issuer(name string, spec *configv1.Issuer) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "shop", Name: name}, Spec: &configv1.Resource_Issuer{Issuer: spec}}
}

func keySetOf(t *testing.T, change *adminv1.Change, name string) *configv1.KeySet {
	t.Helper()
	for _, r := range change.Upserts {
		if set := r.GetKeySet(); set != nil && r.Metadata.Name == name && r.Metadata.Workspace == "shop" {
			return set
		}
	}
	return nil
}

func TestComplete(t *testing.T) {
	ctx, vault := t.Context(), &memory{}
	issuers := &Issuers{Client: &Client{}, Vault: vault}
	inline := issuer("inline", &configv1.Issuer{Issuer: "https://a", Jwks: string(setOf(public("p256", fields{"kid": "k"})))})
	builtIn := issuer("built", &configv1.Issuer{Issuer: "https://b", BuiltIn: true})
	fetched := issuer("fetched", &configv1.Issuer{Issuer: "https://c", JwksUri: "https://c/keys"})
	shared := issuer("shared", &configv1.Issuer{Issuer: "https://d", HmacSecret: "c2VjcmV0", Algorithms: []string{"HS256"}})
	change := &adminv1.Change{Upserts: []*configv1.Resource{inline, builtIn, fetched, shared}}

	if dry := must(issuers.Complete(ctx, change, config.Checked{}, true)); vault.creates > 0 || keySetOf(t, dry, "built") == nil {
		t.Errorf("dry: %d keys stored, %v", vault.creates, dry)
	}
	full := must(issuers.Complete(ctx, change, config.Checked{}, false))
	if len(change.Upserts) != 4 || len(full.Upserts) != 6 || len(full.Deletes) != 0 {
		t.Fatalf("completed to %v, given %d", full, len(change.Upserts))
	}
	if set := keySetOf(t, full, "inline"); len(set.GetKeys()) != 1 || set.Keys[0].Kid != "k" || set.StaleAt != nil || set.RefreshAt != nil {
		t.Errorf("inline %v", set)
	}
	if set := keySetOf(t, full, "built"); len(set.GetKeys()) != 1 || vault.creates != 1 {
		t.Errorf("built-in %v, %d keys stored", set, vault.creates)
	}
	again := must(issuers.Complete(ctx, change, config.Checked{}, false))
	if keySetOf(t, again, "built").Keys[0].Kid != keySetOf(t, full, "built").Keys[0].Kid || vault.creates != 1 {
		t.Error("the built-in issuer's key changed")
	}
	// What it signs is verified by the key set that nodes get.
	token, claims, err := issuers.Mint(ctx, config.Key{Kind: "Issuer", Workspace: "shop", Name: "built"}, builtIn.GetIssuer(), Claims{Subject: "a", Issuer: "https://forged", TokenID: "forged"}, time.Minute, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, got := verify(t, token, keySetOf(t, full, "built").Keys[0]); got["iss"] != "https://b" || got["jti"] != claims.TokenID || claims.TokenID == "forged" {
		t.Errorf("claims %v", got)
	}
}

func TestCompleteProblems(t *testing.T) {
	issuers := &Issuers{Client: &Client{}, Vault: &memory{}}
	change := &adminv1.Change{Upserts: []*configv1.Resource{
		issuer("a", &configv1.Issuer{Jwks: "{}"}), issuer("b", &configv1.Issuer{JwksUri: "http://10.0.0.1/keys"}), issuer("c", &configv1.Issuer{BuiltIn: true}),
	}}
	_, err := issuers.Complete(t.Context(), change, config.Checked{}, true)
	var problems config.Problems
	if !errors.As(err, &problems) || len(problems) != 2 || problems[0].Path != "spec.jwks" || problems[1].Path != "spec.jwksUri" || problems[1].Key.Name != "b" {
		t.Errorf("%v", err)
	}
	down := errors.New("store down")
	issuers.Vault = &memory{err: down}
	if _, err := issuers.Complete(t.Context(), &adminv1.Change{Upserts: change.Upserts[2:]}, config.Checked{}, false); !errors.Is(err, down) || errors.As(err, &problems) && len(problems) > 2 {
		t.Errorf("a store that is down: %v", err)
	}
}

// Of two replicas that make the key at once, the first one's is everybody's.
func TestCompleteLosesTheRace(t *testing.T) {
	first := must(NewSigner())
	vault := &memory{late: must(first.Marshal())}
	issuers := &Issuers{Client: &Client{}, Vault: vault}
	full := must(issuers.Complete(t.Context(), &adminv1.Change{Upserts: []*configv1.Resource{issuer("b", &configv1.Issuer{BuiltIn: true})}}, config.Checked{}, false))
	if kid := keySetOf(t, full, "b").Keys[0].Kid; kid != must(first.Public()).Kid {
		t.Errorf("kid %s, the first replica's is %s", kid, must(first.Public()).Kid)
	}
}

// A key set goes with its issuer, and with where its keys come from.
func TestCompleteDeletes(t *testing.T) {
	issuers := &Issuers{Client: &Client{}, Vault: &memory{}}
	set := func(name string) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "shop", Name: name}, Spec: &configv1.Resource_KeySet{KeySet: &configv1.KeySet{Problem: "x"}}}
	}
	resources := []*configv1.Resource{
		{Metadata: &configv1.Metadata{Name: "default"}, Spec: &configv1.Resource_Workspace{Workspace: &configv1.Workspace{}}},
		{Metadata: &configv1.Metadata{Name: "shop"}, Spec: &configv1.Resource_Workspace{Workspace: &configv1.Workspace{}}},
		issuer("moved", &configv1.Issuer{Issuer: "https://m", JwksUri: "https://m/1"}), set("moved"),
		issuer("same", &configv1.Issuer{Issuer: "https://s", JwksUri: "https://s/1"}), set("same"),
		issuer("gone", &configv1.Issuer{Issuer: "https://g", JwksUri: "https://g/1"}), set("gone"),
		issuer("never", &configv1.Issuer{Issuer: "https://n", JwksUri: "https://n/1"}),
	}
	current, err := config.Check(resources)
	if err != nil {
		t.Fatal(err)
	}
	deletes := func(names ...string) *adminv1.Change {
		c := &adminv1.Change{}
		for _, name := range names {
			c.Deletes = append(c.Deletes, config.Key{Kind: "Issuer", Workspace: "shop", Name: name}.Proto())
		}
		return c
	}
	for name, c := range map[string]struct {
		change *adminv1.Change
		want   bool
	}{
		"moved": {&adminv1.Change{Upserts: []*configv1.Resource{issuer("moved", &configv1.Issuer{Issuer: "https://m", JwksUri: "https://m/2"})}}, true},
		"same":  {&adminv1.Change{Upserts: []*configv1.Resource{issuer("same", &configv1.Issuer{Issuer: "https://s", JwksUri: "https://s/1"})}}, false},
		"gone":  {deletes("gone"), true}, "never": {deletes("never"), false},
	} {
		given := len(c.change.Deletes)
		full := must(issuers.Complete(t.Context(), c.change, current, true))
		deleted := false
		for _, key := range full.Deletes {
			deleted = deleted || key.Kind == "KeySet" && key.Name == name
		}
		if deleted != c.want || len(c.change.Deletes) != given {
			t.Errorf("%s: %v", name, full.Deletes)
		}
	}
}
