package token

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

// FuzzVerify mutates tokens and asks an oracle that shares no code with the
// verifier: an accepted token has the header and the claims of one that was
// signed, byte for byte, and so the algorithm that its key is for. Only the
// signature may differ, since ECDSA has two for each message.
func FuzzVerify(f *testing.F) {
	signed := map[string]string{} // header.claims -> algorithm
	for alg, kid := range map[string]string{"RS256": "rsa", "PS384": "rsa", "ES256": "p256", "ES512": "p521", "EdDSA": "ed"} {
		for _, change := range []m{nil, {"roles": []string{"admin"}, "x": m{"y": []int{1}}}} {
			token := mint(headerMap(m{"alg": alg, "kid": kid}), claims(change))
			signed[token[:strings.LastIndexByte(token, '.')]] = alg
			f.Add(token)
			parts := strings.Split(token, ".")
			for _, other := range []string{"none", "HS256", "RS256", "ES256"} {
				h := b64(jsonOf(headerMap(m{"alg": other, "kid": kid})))
				f.Add(h + "." + parts[1] + "." + parts[2])
				f.Add(h + "." + parts[1] + ".")
				f.Add(h + "." + parts[1] + "." + b64(hmacOf(h+"."+parts[1], spki("rsa"))))
			}
			f.Add(`{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`)
		}
	}
	cached := NewVerifier(compile(f, issuerSpec(), keySet(), NewCache(CacheConfig{Entries: 64})))
	plain := NewVerifier(compile(f, issuerSpec(), keySet(), nil))
	f.Fuzz(func(t *testing.T, token string) {
		_, _, want := plain.Verify(token, noon)
		got, _, refusal := cached.Verify(token, noon)
		if refusal != want || (got == nil) != (refusal != nil) {
			t.Fatalf("with a cache %v, without %v", refusal, want)
		}
		if refusal != nil {
			return
		}
		alg, ok := signed[token[:strings.LastIndexByte(token, '.')]]
		if !ok {
			t.Fatalf("accepted what nobody signed: %q", token)
		}
		raw, _ := base64.RawURLEncoding.DecodeString(token[:strings.IndexByte(token, '.')])
		var h struct{ Alg string }
		if err := json.Unmarshal(raw, &h); err != nil || h.Alg != alg {
			t.Fatalf("accepted %q for a key of %s", h.Alg, alg)
		}
	})
}
