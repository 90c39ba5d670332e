package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"
)

const (
	// DefaultLifetime is how long a member's certificate holds.
	DefaultLifetime = 24 * time.Hour
	// MaxLifetime bounds what Issue gives.
	MaxLifetime = 90 * 24 * time.Hour
	// ClockSkew is how far behind a member's clock may be.
	ClockSkew = 5 * time.Minute

	authorityLifetime = 10 * 365 * 24 * time.Hour
	// A certificate request has a few hundred bytes; a larger one is not parsed.
	maxRequest = 16 << 10
)

// CA is a cluster's certificate authority: one key that signs, and while it is
// being replaced a second one that is trusted already or still. A CA is
// immutable and safe for concurrent use. Marshal gives its private keys, which
// the caller seals.
type CA struct{ authorities []authority } // newest first

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// Before this the authority is trusted but signs nothing.
	signsFrom time.Time
}

// Issued is what a member gets for its request: DER, the member's certificate
// first and then the authority that signed it; and all authorities to trust.
type Issued struct {
	Certificates [][]byte
	Authorities  [][]byte
}

// NewCA makes a CA with one new ECDSA P-256 key.
func NewCA(now time.Time) (*CA, error) {
	a, err := newAuthority(now, now)
	if err != nil {
		return nil, err
	}
	return &CA{[]authority{a}}, nil
}

func newAuthority(now, signsFrom time.Time) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, fmt.Errorf("make CA key: %w", err)
	}
	serial := newSerial()
	template := &x509.Certificate{
		SerialNumber: serial,
		// Unique, so that chains never have two authorities to choose from by name.
		Subject:               pkix.Name{CommonName: "Portcullis CA " + hex.EncodeToString(serial.Bytes()[:4])},
		NotBefore:             now.Add(-ClockSkew),
		NotAfter:              now.Add(authorityLifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return authority{}, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return authority{}, fmt.Errorf("make CA certificate: %w", err)
	}
	return authority{cert, key, signsFrom.UTC().Truncate(time.Second)}, nil
}

// newSerial draws 126 random bits below a set one: positive, and of fixed length.
func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:])
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}

// Rotate returns a CA with a new authority that is trusted at once and signs
// after overlap (0: DefaultLifetime). Members learn of it when they renew, which
// all have done by then if overlap is at least their lifetime. Authorities whose
// last certificates have run out are dropped. A rotation before the last one has
// come into force is refused.
func (ca *CA) Rotate(now time.Time, overlap time.Duration) (*CA, error) {
	if overlap <= 0 {
		overlap = DefaultLifetime
	}
	if at := ca.authorities[0].signsFrom; at.After(now) {
		return nil, fmt.Errorf("the last rotation takes effect at %s; wait for it", at.Format(time.RFC3339))
	}
	next, err := newAuthority(now, now.Add(overlap))
	if err != nil {
		return nil, err
	}
	out := []authority{next, ca.authorities[0]}
	for i, old := range ca.authorities[1:] {
		// Its successor has signed since then; nothing of its own outlives MaxLifetime.
		if successor := ca.authorities[i].signsFrom; now.Before(successor.Add(MaxLifetime)) && now.Before(old.cert.NotAfter) {
			out = append(out, old)
		}
	}
	// A join token carries the pins of all.
	if len(out) > maxPins {
		return nil, fmt.Errorf("%d authorities would be trusted at once, more than %d: rotate less often", len(out), maxPins)
	}
	return &CA{out}, nil
}

func (ca *CA) signer(now time.Time) *authority {
	for i := range ca.authorities {
		if !ca.authorities[i].signsFrom.After(now) {
			return &ca.authorities[i]
		}
	}
	// The clock stands before the CA was made; its oldest key is the least wrong.
	return &ca.authorities[len(ca.authorities)-1]
}

// Authorities returns the certificates to trust, DER, newest first.
func (ca *CA) Authorities() [][]byte {
	out := make([][]byte, len(ca.authorities))
	for i, a := range ca.authorities {
		out[i] = a.cert.Raw
	}
	return out
}

// Pins returns the SHA-256 of each authority's public key (SubjectPublicKeyInfo):
// what a join token carries so that a machine knows the cluster it joins.
func (ca *CA) Pins() [][sha256.Size]byte {
	out := make([][sha256.Size]byte, len(ca.authorities))
	for i, a := range ca.authorities {
		out[i] = pinOf(a.cert)
	}
	return out
}

func pinOf(c *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// Issue signs a certificate for id. Of the request (PKCS #10, DER) it takes the
// public key and, for a control plane, the host names and addresses; who the
// member is the caller has found out and says. Lifetime 0 means DefaultLifetime.
func (ca *CA) Issue(csr []byte, id Identity, lifetime time.Duration, now time.Time) (Issued, error) {
	req, err := parseRequest(csr)
	if err != nil {
		return Issued{}, err
	}
	if err := id.Check(); err != nil {
		return Issued{}, err
	}
	if lifetime == 0 {
		lifetime = DefaultLifetime
	}
	if lifetime < 0 || lifetime > MaxLifetime {
		return Issued{}, fmt.Errorf("certificate lifetime %s is not within 0 to %s", lifetime, MaxLifetime)
	}
	by := ca.signer(now)
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: id.Name},
		NotBefore:    now.Add(-ClockSkew),
		NotAfter:     now.Add(lifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  id.Role.usages(),
	}
	template.URIs = append(template.URIs, id.uri())
	if template.NotAfter.After(by.cert.NotAfter) {
		template.NotAfter = by.cert.NotAfter
	}
	if id.Role == Controlplane {
		template.DNSNames, template.IPAddresses = req.DNSNames, req.IPAddresses
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, req.PublicKey, by.key)
	if err != nil {
		return Issued{}, fmt.Errorf("sign certificate: %w", err)
	}
	return Issued{Certificates: [][]byte{der, by.cert.Raw}, Authorities: ca.Authorities()}, nil
}

// RequestedIdentity returns who a certificate request says it is for: a wish, to
// be granted or not.
func RequestedIdentity(csr []byte) (Identity, error) {
	req, err := parseRequest(csr)
	if err != nil {
		return Identity{}, err
	}
	return identityOf(req.URIs)
}

func parseRequest(csr []byte) (*x509.CertificateRequest, error) {
	if len(csr) > maxRequest {
		return nil, fmt.Errorf("certificate request has %d bytes, more than %d", len(csr), maxRequest)
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	// Proves that the asker holds the private key.
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	switch k := req.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return req, nil
		}
	case ed25519.PublicKey:
		return req, nil
	}
	return nil, errors.New("certificate request: want a key on P-256, P-384 or Ed25519")
}
