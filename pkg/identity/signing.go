package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrSignature says that no known key signed a version.
var ErrSignature = errors.New("version is signed by no key of this cluster")

// SigningKey signs versions: Ed25519 (RFC 8032). Safe for concurrent use.
type SigningKey struct{ private ed25519.PrivateKey }

// NewSigningKey draws a key.
func NewSigningKey() (SigningKey, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return SigningKey{}, fmt.Errorf("make signing key: %w", err)
	}
	return SigningKey{private}, nil
}

// ParseSigningKey reads what Marshal wrote.
func ParseSigningKey(pkcs8 []byte) (SigningKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return SigningKey{}, errors.New("signing key cannot be read")
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return SigningKey{}, errors.New("signing key is not Ed25519")
	}
	return SigningKey{private}, nil
}

// Marshal returns the private key, PKCS #8 DER. Seal it before it is stored.
func (k SigningKey) Marshal() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(k.private) }

// Public returns the public key, PKIX DER.
func (k SigningKey) Public() ([]byte, error) { return x509.MarshalPKIXPublicKey(k.private.Public()) }

// Format hides the key under every verb.
func (SigningKey) Format(f fmt.State, _ rune) { fmt.Fprint(f, "(secret)") }

// SignVersion signs a version and the digest of its state.
func (k SigningKey) SignVersion(epoch uint64, revision int64, digest []byte) []byte {
	return ed25519.Sign(k.private, versionMessage(epoch, revision, digest))
}

// VerifyKeys are the public keys that may have signed a version.
type VerifyKeys []ed25519.PublicKey

// ParseVerifyKeys reads public keys in PKIX DER; there must be at least one.
func ParseVerifyKeys(ders [][]byte) (VerifyKeys, error) {
	if len(ders) == 0 {
		return nil, errors.New("no key that signs versions")
	}
	keys := make(VerifyKeys, len(ders))
	for i, der := range ders {
		key, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("version key %d: %w", i, err)
		}
		public, ok := key.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("version key %d is not Ed25519", i)
		}
		keys[i] = public
	}
	return keys, nil
}

// VerifyVersion checks a signature of SignVersion; the error is ErrSignature.
func (ks VerifyKeys) VerifyVersion(epoch uint64, revision int64, digest, signature []byte) error {
	message := versionMessage(epoch, revision, digest)
	for _, k := range ks {
		if ed25519.Verify(k, message, signature) {
			return nil
		}
	}
	return ErrSignature
}

// Fixed-width fields before the only variable one: no two versions share a
// message, and no message of another purpose begins like this.
func versionMessage(epoch uint64, revision int64, digest []byte) []byte {
	b := append(make([]byte, 0, 64+len(digest)), "portcullis version v1\x00"...)
	b = binary.BigEndian.AppendUint64(b, epoch)
	b = binary.BigEndian.AppendUint64(b, uint64(revision))
	return append(b, digest...)
}
