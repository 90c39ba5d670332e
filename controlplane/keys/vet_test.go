package keys

import (
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lestrrat-go/jwx/v2/jwk"
	"go.uber.org/goleak"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// private makes one private key of each kind, once: RSA takes its time.
var private = sync.OnceValue(func() map[string]crypto.Signer {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	return map[string]crypto.Signer{
		"rsa2048": must(rsa.GenerateKey(rand.Reader, 2048)), "p256": must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"p384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), "p521": must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)), "ed25519": ed,
	}
})

// fields is a JWK as its members, so that a test can spoil any of them.
type fields map[string]any

func jwkOf(key any, with fields) fields {
	data := must(json.Marshal(must(jwk.FromRaw(key))))
	out := fields{}
	if err := json.Unmarshal(data, &out); err != nil {
		panic(err)
	}
	maps.Copy(out, with)
	return out
}

func public(name string, with fields) fields { return jwkOf(private()[name].Public(), with) }

func setOf(keys ...fields) []byte { return must(json.Marshal(map[string]any{"keys": keys})) }

func all() []string { return Accepted(&configv1.Issuer{}) }

func TestVetAccepts(t *testing.T) {
	rsaAlgorithms := []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
	for name, want := range map[string][]string{"rsa2048": rsaAlgorithms, "p256": {"ES256"}, "p384": {"ES384"}, "p521": {"ES512"}, "ed25519": {"EdDSA"}} {
		for _, with := range []fields{{"kid": "k"}, {"kid": "k", "use": "sig"}, {"kid": "k", "key_ops": []string{"verify"}}, {"kid": "k", "use": "sig", "alg": want[0]}} {
			keys, err := Vet(setOf(public(name, with)), all())
			if err != nil || len(keys) != 1 {
				t.Fatalf("%s with %v: %v, %v", name, with, keys, err)
			}
			expect := want
			if with["alg"] != nil {
				expect = want[:1]
			}
			spki, err := x509.ParsePKIXPublicKey(keys[0].Spki)
			if err != nil || keys[0].Kid != "k" || !slices.Equal(keys[0].Algorithms, expect) {
				t.Errorf("%s with %v: %v, %v", name, with, keys[0], err)
			}
			if equal, ok := spki.(interface{ Equal(crypto.PublicKey) bool }); !ok || !equal.Equal(private()[name].Public()) {
				t.Errorf("%s came out as another key", name)
			}
		}
	}
	// A set may mix what is for us with what is not.
	mixed := setOf(public("p256", fields{"kid": "a"}), public("p384", fields{"kid": "b", "use": "enc"}), public("ed25519", fields{"kid": "c"}))
	if keys, err := Vet(mixed, all()); err != nil || len(keys) != 2 || keys[0].Kid != "a" || keys[1].Kid != "c" {
		t.Errorf("mixed: %v, %v", keys, err)
	}
	if keys, err := Vet(mixed, []string{"EdDSA"}); err != nil || len(keys) != 1 || keys[0].Kid != "c" {
		t.Errorf("an issuer of EdDSA alone: %v, %v", keys, err)
	}
	// One key may come without a kid.
	if keys, err := Vet(setOf(public("p256", nil)), all()); err != nil || keys[0].Kid != "" {
		t.Errorf("without kid: %v, %v", keys, err)
	}
}

func TestVetLeavesOut(t *testing.T) {
	// The standard library makes no such weak key any more: this is the modulus of
	// one, and size is all that is judged.
	weak := jwkOf(&rsa.PublicKey{N: must(rand.Prime(rand.Reader, 1024)), E: 65537}, fields{"kid": "k"})
	almost := jwkOf(&rsa.PublicKey{N: must(rand.Prime(rand.Reader, 2047)), E: 65537}, fields{"kid": "k"})
	x25519 := must(ecdh.X25519().GenerateKey(rand.Reader))
	for name, key := range map[string]fields{
		"RSA of 1024 bits": weak, "RSA of 2047 bits": almost,
		"X25519":         {"kty": "OKP", "crv": "X25519", "kid": "k", "x": encode(x25519.PublicKey().Bytes())},
		"for encryption": public("p256", fields{"kid": "k", "use": "enc"}), "unknown use": public("p256", fields{"kid": "k", "use": "tls"}),
		"to sign": public("p256", fields{"kid": "k", "key_ops": []string{"sign"}}), "to wrap": public("rsa2048", fields{"kid": "k", "key_ops": []string{"wrapKey"}}),
		"alg of another curve": public("p256", fields{"kid": "k", "alg": "ES384"}), "alg of another type": public("rsa2048", fields{"kid": "k", "alg": "ES256"}),
		"alg none": public("p256", fields{"kid": "k", "alg": "none"}), "alg HS256": public("rsa2048", fields{"kid": "k", "alg": "HS256"}),
		"alg of encryption": public("rsa2048", fields{"kid": "k", "alg": "RSA-OAEP"}),
	} {
		if keys, err := Vet(setOf(key), all()); err == nil {
			t.Errorf("%s: %v", name, keys)
		}
		// Beside a good one it is left out or refuses the set, and never comes along.
		keys, err := Vet(setOf(key, public("p384", fields{"kid": "good"})), all())
		if err == nil && (len(keys) != 1 || keys[0].Kid != "good") {
			t.Errorf("%s beside a good one: %v", name, keys)
		}
	}
	if _, err := Vet(setOf(public("p256", nil)), []string{"HS256"}); !errors.Is(err, ErrNoUsableKey) {
		t.Errorf("an issuer of HS256: %v", err)
	}
}

func TestVetRefuses(t *testing.T) {
	symmetric := fields{"kty": "oct", "kid": "k", "k": encode(make([]byte, 32))}
	many := make([]fields, maxKeys+1)
	for i := range many {
		many[i] = public("p256", fields{"kid": fmt.Sprint(i)})
	}
	good := public("p256", fields{"kid": "k"})
	offCurve := public("p256", fields{"kid": "k", "x": encode(make([]byte, 32))})
	for name, set := range map[string][]byte{
		"duplicate kid": setOf(good, public("p384", fields{"kid": "k"})), "two without kid": setOf(public("p256", nil), public("p384", nil)),
		"private EC": setOf(jwkOf(private()["p256"], fields{"kid": "k"})), "private RSA": setOf(jwkOf(private()["rsa2048"], nil)), "private Ed25519": setOf(jwkOf(private()["ed25519"], nil)),
		"private beside a good one": setOf(good, jwkOf(private()["p384"], fields{"kid": "leak"})),
		"symmetric":                 setOf(symmetric), "too many": setOf(many...), "no key": setOf(), "point off the curve": setOf(offCurve),
		"empty": {}, "null": []byte("null"), "text": []byte("hello"), "list": []byte("[]"), "html": []byte("<html></html>"), "no keys": []byte("{}"), "keys null": []byte(`{"keys":null}`),
		"keys no list": []byte(`{"keys":{}}`), "key null": []byte(`{"keys":[null]}`), "cut short": setOf(good)[:50], "unknown kty": setOf(fields{"kty": "X"}),
	} {
		if keys, err := Vet(set, all()); err == nil {
			t.Errorf("%s: %v", name, keys)
		}
	}
	// A symmetric key never verifies anything, whatever stands beside it.
	if keys, err := Vet(setOf(symmetric, public("p384", fields{"kid": "good"})), append(all(), "HS256")); err == nil && (len(keys) != 1 || keys[0].Kid != "good") {
		t.Errorf("symmetric came along: %v", keys)
	}
	for name, set := range map[string][]byte{"private": setOf(jwkOf(private()["p256"], nil)), "symmetric": setOf(symmetric)} {
		if _, err := Vet(set, all()); err != nil && (strings.Contains(err.Error(), fmt.Sprint(jwkOf(private()["p256"], nil)["d"])) || strings.Contains(err.Error(), encode(make([]byte, 32)))) {
			t.Errorf("%s: the problem shows the key: %v", name, err)
		}
	}
}

func FuzzVet(f *testing.F) {
	f.Add(setOf(public("p256", fields{"kid": "a"}), public("rsa2048", fields{"kid": "b"})))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, set []byte) {
		keys, err := Vet(set, all())
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, key := range keys {
			parsed, err := x509.ParsePKIXPublicKey(key.Spki)
			if err != nil || seen[key.Kid] || len(key.Algorithms) == 0 || len(keys) > maxKeys {
				t.Fatalf("%v: %v", key, err)
			}
			seen[key.Kid] = true
			if r, ok := parsed.(*rsa.PublicKey); ok && r.N.BitLen() < minRSABits {
				t.Fatalf("weak key %v", key)
			}
		}
	})
}
