package config

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Bounds of issuers and their keys.
const (
	maxJWKS      = 256 << 10
	maxKeys      = 100
	maxClockSkew = time.Minute
	maxLifetime  = 90 * 24 * time.Hour
	minSecret    = 32
)

// Algorithms returns the JWS algorithms that an Issuer may accept with public
// keys, in order of preference (RFC 7518, 3.1; RFC 8037).
func Algorithms() []string {
	return []string{"EdDSA", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "RS256", "RS384", "RS512"}
}

func (r *report) issuer(i *configv1.Issuer) {
	if iss := i.GetIssuer(); iss == "" || len(iss) > 512 || strings.ContainsFunc(iss, func(c rune) bool { return c <= ' ' || c == 0x7f }) || !printable(iss) {
		r.fail("spec.issuer", "is %q: expected the exact iss claim, 1 to 512 characters without space", shorten(iss))
	}
	r.keySource(i)
	allowed := Algorithms()
	if i.GetHmacSecret() != "" {
		allowed = []string{"HS256"}
	}
	r.words("spec.algorithms", i.GetAlgorithms(), 16, func(a string) string {
		if slices.Contains(allowed, a) {
			return ""
		}
		if a == "HS256" {
			return `is "HS256": expected it only together with hmacSecret`
		}
		return fmt.Sprintf("is %q: expected %s", shorten(a), quoteList(allowed))
	})
	r.words("spec.types", i.GetTypes(), 8, func(t string) string {
		if !isToken(strings.ReplaceAll(t, "/", "")) || len(t) > 64 || strings.EqualFold(t, "dpop+jwt") || strings.EqualFold(t, "logout+jwt") {
			return fmt.Sprintf("is %q: expected a typ of access tokens such as at+jwt or JWT", shorten(t))
		}
		return ""
	})
	r.duration("spec.clockSkew", i.GetClockSkew(), 0, maxClockSkew)
	r.duration("spec.maxLifetime", i.GetMaxLifetime(), time.Second, maxLifetime)
	c := i.GetClaims()
	for _, f := range []struct{ path, name string }{
		{"scopes", c.GetScopes()}, {"roles", c.GetRoles()}, {"groups", c.GetGroups()}, {"client", c.GetClient()},
	} {
		if f.name != "" && (len(f.name) > 256 || !printable(f.name) || slices.Contains(strings.Split(f.name, "."), "")) {
			r.fail("spec.claims."+f.path, "is %q: expected the name of a claim, dots between names of objects", shorten(f.name))
		}
	}
}

func (r *report) keySource(i *configv1.Issuer) {
	var given []string
	for _, s := range []struct {
		name string
		set  bool
	}{
		{"jwksUri", i.GetJwksUri() != ""}, {"jwks", i.GetJwks() != ""},
		{"hmacSecret", i.GetHmacSecret() != ""}, {"builtIn", i.GetBuiltIn()},
	} {
		if s.set {
			given = append(given, s.name)
		}
	}
	if len(given) != 1 {
		found := "none"
		if len(given) > 1 {
			found = strings.Join(given, " and ")
		}
		r.fail("spec", "expected exactly one of jwksUri, jwks, hmacSecret and builtIn, found %s", found)
	}
	if i.GetJwksUri() != "" {
		if why := badJWKSURI(i.GetJwksUri()); why != "" {
			r.fail("spec.jwksUri", "%s", why)
		}
	}
	if i.GetJwks() != "" {
		if why := badJWKS(i.GetJwks()); why != "" {
			r.fail("spec.jwks", "%s", why)
		}
	}
	if s := i.GetHmacSecret(); s != "" {
		// The reason never repeats the secret.
		secret, err := base64.StdEncoding.Strict().DecodeString(s)
		if err != nil || strings.ContainsAny(s, "\r\n") {
			r.fail("spec.hmacSecret", "is not base64: expected base64 of at least %d bytes", minSecret)
		} else if len(secret) < minSecret || len(secret) > 1024 {
			r.fail("spec.hmacSecret", "is %d bytes long: expected %d to 1024", len(secret), minSecret)
		}
	}
}

func badJWKSURI(s string) string {
	const expected = "expected https://host/path"
	u, err := url.Parse(s)
	switch {
	case err != nil || len(s) > 2048 || u.Hostname() == "" || u.Opaque != "":
		return fmt.Sprintf("is %q: %s", shorten(s), expected)
	case u.User != nil:
		return "has user information: " + expected
	case u.Fragment != "" || strings.HasSuffix(s, "#"):
		return "has a fragment: " + expected
	case u.Scheme == "https":
		return ""
	case u.Scheme == "http" && isLoopback(u.Hostname()):
		return "" // refused later unless --allow-loopback-jwks
	}
	return fmt.Sprintf("is %q: %s; http only on loopback, with --allow-loopback-jwks", shorten(s), expected)
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// badJWKS looks for what an operator gets wrong; keys are vetted where they are
// parsed, in the control plane.
func badJWKS(s string) string {
	if len(s) > maxJWKS {
		return fmt.Sprintf("is %d bytes long: expected at most %d", len(s), maxJWKS)
	}
	var set struct {
		Keys []map[string]any `json:"keys"`
	}
	if err := json.Unmarshal([]byte(s), &set); err != nil {
		return "is not a JWK set: expected a JSON object with keys"
	}
	if len(set.Keys) == 0 || len(set.Keys) > maxKeys {
		return fmt.Sprintf("has %d keys: expected 1 to %d", len(set.Keys), maxKeys)
	}
	for i, k := range set.Keys {
		switch kty, _ := k["kty"].(string); kty {
		case "RSA", "EC", "OKP":
		case "oct":
			return fmt.Sprintf("keys[%d] is symmetric: expected public keys; for HS256 use hmacSecret", i)
		default:
			return fmt.Sprintf("keys[%d].kty is %q: expected \"RSA\", \"EC\" or \"OKP\"", i, shorten(kty))
		}
		for _, private := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
			if _, ok := k[private]; ok {
				return fmt.Sprintf("keys[%d] is a private key: expected public keys only", i)
			}
		}
	}
	return ""
}

func (r *report) keySet(s *configv1.KeySet) {
	if len(s.GetKeys()) > maxKeys {
		r.fail("spec.keys", "has %d entries: expected at most %d", len(s.GetKeys()), maxKeys)
		return
	}
	r.timestamp("spec.fetchedAt", s.GetFetchedAt())
	r.timestamp("spec.staleAt", s.GetStaleAt())
	r.text("spec.problem", s.GetProblem(), 4096)
	seen := map[string]int{}
	for i, k := range s.GetKeys() {
		at := "spec.keys[" + strconv.Itoa(i) + "]"
		r.text(at+".kid", k.GetKid(), 512)
		if first, ok := seen[k.GetKid()]; ok {
			r.fail(at+".kid", "%q repeats keys[%d]: expected each once", shorten(k.GetKid()), first)
		}
		seen[k.GetKid()] = i
		r.publicKey(at, k)
	}
}

func (r *report) publicKey(path string, k *configv1.Key) {
	public, err := x509.ParsePKIXPublicKey(k.GetSpki())
	if err != nil {
		r.fail(path+".spki", "cannot be read: expected SubjectPublicKeyInfo, DER")
		return
	}
	fits := algorithmsOf(public)
	if fits == nil {
		r.fail(path+".spki", "expected RSA of 2048 to 8192 bits, P-256, P-384, P-521 or Ed25519")
		return
	}
	if len(k.GetAlgorithms()) == 0 {
		r.fail(path+".algorithms", "is empty: expected %s", quoteList(fits))
	}
	r.words(path+".algorithms", k.GetAlgorithms(), 16, func(a string) string {
		if !slices.Contains(fits, a) {
			return fmt.Sprintf("is %q: expected %s for this key", shorten(a), quoteList(fits))
		}
		return ""
	})
}

// algorithmsOf returns the JWS algorithms that a public key may verify: an EC
// key's curve decides its algorithm (RFC 7518, 3.4).
func algorithmsOf(public any) []string {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= 2048 && n <= 8192 {
			return []string{"PS256", "PS384", "PS512", "RS256", "RS384", "RS512"}
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return []string{"ES256"}
		case elliptic.P384():
			return []string{"ES384"}
		case elliptic.P521():
			return []string{"ES512"}
		}
	case ed25519.PublicKey:
		return []string{"EdDSA"}
	}
	return nil
}
