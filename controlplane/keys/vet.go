// Package keys obtains the keys that verify tokens: it fetches issuers' JWK
// sets, vets them, and writes them into the config as KeySet resources; it also
// holds the private keys of built-in issuers and signs with them. It is the only
// place that knows jwx. It never sees what a client sent.
package keys

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"

	"github.com/lestrrat-go/jwx/v2/jwk"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	// maxKeys bounds a set: a node looks a key up by kid, and no issuer has cause
	// to publish more.
	maxKeys = 64
	// minRSABits is the least RSA modulus accepted (RFC 7518, 3.3).
	minRSABits = 2048
)

// ErrNoUsableKey means that a JWK set is well-formed but holds no key that may
// verify a token.
var ErrNoUsableKey = errors.New("no usable signing key: expected RSA of 2048 bits or more, P-256, P-384, P-521 or Ed25519, for signatures, with a kid unless it is the only one")

// Vet reads a JWK set (RFC 7517) and returns the keys that may verify tokens of
// an issuer that accepts the algorithms. Keys for encryption, symmetric keys,
// weak keys and keys whose own alg contradicts their type are left out; two keys
// of one kid refuse the set, since which of them verifies would be chance.
func Vet(set []byte, accepted []string) ([]*configv1.Key, error) {
	parsed, err := jwk.Parse(set)
	if err != nil {
		return nil, fmt.Errorf("not a JWK set: %w", err)
	}
	if parsed.Len() > maxKeys {
		return nil, fmt.Errorf("JWK set has %d keys, at most %d are accepted", parsed.Len(), maxKeys)
	}
	var keys []*configv1.Key
	for i := range parsed.Len() {
		key, _ := parsed.Key(i)
		vetted, err := vetKey(key, accepted)
		if err != nil {
			return nil, err
		}
		if vetted == nil {
			continue
		}
		if slices.ContainsFunc(keys, func(k *configv1.Key) bool { return k.Kid == vetted.Kid }) {
			return nil, fmt.Errorf("two keys have the kid %q", vetted.Kid)
		}
		keys = append(keys, vetted)
	}
	if len(keys) == 0 {
		return nil, ErrNoUsableKey
	}
	return keys, nil
}

// vetKey returns nil for a key that is not for us.
func vetKey(key jwk.Key, accepted []string) (*configv1.Key, error) {
	if use := key.KeyUsage(); use != "" && use != "sig" {
		return nil, nil
	}
	if ops := key.KeyOps(); len(ops) > 0 && !slices.Contains(ops, jwk.KeyOpVerify) {
		return nil, nil
	}
	// A published private key is a leak; its public half may have been abused.
	if private, err := jwk.IsPrivateKey(key); err == nil && private {
		return nil, fmt.Errorf("the key %q is a private key: publish only public keys, and replace this one", key.KeyID())
	}
	public, err := jwk.PublicRawKeyOf(key)
	if err != nil {
		return nil, nil
	}
	algorithms := algorithmsOf(public)
	if alg := key.Algorithm().String(); alg != "" {
		algorithms = slices.DeleteFunc(algorithms, func(a string) bool { return a != alg })
	}
	algorithms = slices.DeleteFunc(algorithms, func(a string) bool { return !slices.Contains(accepted, a) })
	if len(algorithms) == 0 {
		return nil, nil
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, nil
	}
	return &configv1.Key{Kid: key.KeyID(), Algorithms: algorithms, Spki: spki}, nil
}

// algorithmsOf lists the JWS algorithms (RFC 7518, RFC 8037) of a public key, a
// curve being bound to its own; none when the key is too weak or of another type.
func algorithmsOf(public any) []string {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() >= minRSABits {
			return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
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

// Accepted returns the algorithms that an issuer accepts for asymmetric keys:
// those it names, or every one we verify.
func Accepted(issuer *configv1.Issuer) []string {
	if len(issuer.Algorithms) > 0 {
		return issuer.Algorithms
	}
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}
