package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"maps"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const sharedSecret = "0123456789abcdef0123456789abcdef"

// signers holds one private key for each kind of key, made once.
var signers = sync.OnceValue(func() map[string]crypto.Signer {
	must := func(k crypto.Signer, err error) crypto.Signer {
		if err != nil {
			panic(err)
		}
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	return map[string]crypto.Signer{
		"rsa":   must(rsa.GenerateKey(rand.Reader, 2048)),
		"p256":  must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
		"p384":  must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"p521":  must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
		"ed":    must(ed, err),
		"other": must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)),
	}
})

func spki(name string) []byte {
	der, err := x509.MarshalPKIXPublicKey(signers()[name].Public())
	if err != nil {
		panic(err)
	}
	return der
}

// keySet has one key of each kind, its kid being the kind.
func keySet() *configv1.KeySet {
	return &configv1.KeySet{Keys: []*configv1.Key{
		{Kid: "rsa", Algorithms: []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, Spki: spki("rsa")},
		{Kid: "p256", Algorithms: []string{"ES256"}, Spki: spki("p256")},
		{Kid: "p384", Algorithms: []string{"ES384"}, Spki: spki("p384")},
		{Kid: "p521", Algorithms: []string{"ES512"}, Spki: spki("p521")},
		{Kid: "ed", Algorithms: []string{"EdDSA"}, Spki: spki("ed")},
	}}
}

type m = map[string]any

func claims(changes m) m {
	c := m{
		"iss": "https://issuer.example", "sub": "alice", "aud": "https://api.example", "jti": "t-1",
		"iat": noon.Unix() - 60, "exp": noon.Unix() + 600, "client_id": "shop-web", "scope": "orders:read orders:write",
	}
	return merge(c, changes)
}

func headerMap(changes m) m {
	return merge(m{"alg": "ES256", "typ": "at+jwt", "kid": "p256"}, changes)
}

// merge applies the changes; a nil any removes, an explicit null is jsonNull.
func merge(base, changes m) m {
	out := maps.Clone(base)
	for k, v := range changes {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = v
		}
	}
	return out
}

var jsonNull = json.RawMessage("null")

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func jsonOf(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// mint signs with the key for the header's alg.
func mint(h, c m) string { return mintRaw(jsonOf(h), jsonOf(c), h["alg"].(string)) }

func mintRaw(h, c []byte, alg string) string {
	signed := b64(h) + "." + b64(c)
	return signed + "." + b64(signature(signed, alg, ""))
}

// signature signs as the algorithm says, with the key of that kind or with
// another one.
func signature(signed, alg, with string) []byte {
	a := algorithm(alg)
	kinds := map[algorithm]string{
		rs256: "rsa", rs384: "rsa", rs512: "rsa", ps256: "rsa", ps384: "rsa", ps512: "rsa",
		es256: "p256", es384: "p384", es512: "p521", edDSA: "ed",
	}
	if with == "" {
		with = kinds[a]
	}
	switch k := signers()[with].(type) {
	case *rsa.PrivateKey:
		var opts crypto.SignerOpts = a.hash()
		if alg[0] == 'P' {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: a.hash()}
		}
		s, err := k.Sign(rand.Reader, a.sum([]byte(signed)), opts)
		if err != nil {
			panic(err)
		}
		return s
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, a.sum([]byte(signed)))
		if err != nil {
			panic(err)
		}
		size := (k.Curve.Params().BitSize + 7) / 8
		out := make([]byte, 2*size)
		r.FillBytes(out[:size])
		s.FillBytes(out[size:])
		return out
	case ed25519.PrivateKey:
		return ed25519.Sign(k, []byte(signed))
	}
	if a == hs256 {
		return hmacOf(signed, []byte(sharedSecret))
	}
	return nil
}

func hmacOf(signed string, key []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(signed))
	return mac.Sum(nil)
}

func issuerSpec() *configv1.Issuer {
	return &configv1.Issuer{Issuer: "https://issuer.example", JwksUri: "https://issuer.example/jwks"}
}

func compile(t testing.TB, spec *configv1.Issuer, set *configv1.KeySet, cache *Cache) *Issuer {
	t.Helper()
	i, err := Compile("default/issuer", spec, set, cache)
	if err != nil {
		t.Fatal(err)
	}
	return i
}
