package keys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"
	"github.com/lestrrat-go/jwx/v2/jwt"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Signer holds the private key of a built-in issuer. It is immutable and safe
// for concurrent use.
type Signer struct {
	key *ecdsa.PrivateKey
	kid string
}

// NewSigner makes a new P-256 key.
func NewSigner() (*Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a signing key: %w", err)
	}
	return signerOf(key)
}

// ParseSigner reads what Marshal wrote.
func ParseSigner(der []byte) (*Signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("reading a signing key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("reading a signing key: expected ECDSA P-256")
	}
	return signerOf(key)
}

func signerOf(key *ecdsa.PrivateKey) (*Signer, error) {
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("naming a signing key: %w", err)
	}
	sum := sha256.Sum256(spki)
	return &Signer{key, base64.RawURLEncoding.EncodeToString(sum[:12])}, nil
}

// Marshal returns the private key as PKCS #8 DER, to be sealed before storing.
func (s *Signer) Marshal() ([]byte, error) { return x509.MarshalPKCS8PrivateKey(s.key) }

// Public returns the verifying key as a node uses it.
func (s *Signer) Public() (*configv1.Key, error) {
	spki, err := x509.MarshalPKIXPublicKey(&s.key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &configv1.Key{Kid: s.kid, Algorithms: []string{"ES256"}, Spki: spki}, nil
}

// Claims is what a minted token says. Extra holds further claims; it cannot
// override the others.
type Claims struct {
	Issuer, Subject, Client, TokenID string
	Audiences, Scopes                []string
	IssuedAt, ExpiresAt              time.Time
	Extra                            map[string]any
}

// reserved are the claims that only the named fields may set.
var reserved = map[string]bool{"iss": true, "sub": true, "aud": true, "exp": true, "iat": true, "nbf": true, "jti": true, "scope": true, "client_id": true}

// Sign returns a JWT access token (RFC 9068) with ES256.
func (s *Signer) Sign(c Claims) (string, error) {
	token := jwt.New()
	set := func(name string, value any) error {
		if err := token.Set(name, value); err != nil {
			return fmt.Errorf("claim %s: %w", name, err)
		}
		return nil
	}
	for name, value := range c.Extra {
		if reserved[name] {
			return "", fmt.Errorf("claim %s is set by its own option, not as an extra claim", name)
		}
		if err := set(name, value); err != nil {
			return "", err
		}
	}
	scope := ""
	for i, one := range c.Scopes {
		if i > 0 {
			scope += " "
		}
		scope += one
	}
	fields := []struct {
		name  string
		value any
		skip  bool
	}{
		{"iss", c.Issuer, false}, {"sub", c.Subject, c.Subject == ""}, {"client_id", c.Client, c.Client == ""},
		{"aud", c.Audiences, len(c.Audiences) == 0}, {"scope", scope, scope == ""}, {"jti", c.TokenID, false},
		{"iat", c.IssuedAt.Unix(), false}, {"exp", c.ExpiresAt.Unix(), false},
	}
	for _, f := range fields {
		if f.skip {
			continue
		}
		if err := set(f.name, f.value); err != nil {
			return "", err
		}
	}
	headers := jws.NewHeaders()
	if err := errors.Join(headers.Set("typ", "at+jwt"), headers.Set("kid", s.kid)); err != nil {
		return "", err
	}
	signed, err := jwt.Sign(token, jwt.WithKey(jwa.ES256, s.key, jws.WithProtectedHeaders(headers)))
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return string(signed), nil
}
