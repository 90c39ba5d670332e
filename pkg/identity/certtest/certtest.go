// Package certtest makes certificates for tests: authorities, what they sign, and
// what they say about it afterwards. It is for tests only and knows nothing of
// what is tested.
package certtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Authority signs certificates.
type Authority struct {
	Pair
	// Chain is PEM of the intermediate authorities that what it issues needs.
	Chain string
}

// Pair is a certificate and its key.
type Pair struct {
	Cert *x509.Certificate
	Key  crypto.Signer
	// CertPEM is the chain, leaf first; KeyPEM is PKCS #8.
	CertPEM, KeyPEM string
}

// Spec is what to issue. The zero Spec is for nobody, P-256, valid for a day.
type Spec struct {
	// Name is the common name.
	Name string
	// Hosts are host names and addresses.
	Hosts []string
	Key   crypto.Signer
	// NotBefore and NotAfter; zero: an hour ago and in a day.
	NotBefore, NotAfter time.Time
	// Usage; nil: servers and clients.
	Usage []x509.ExtKeyUsage
	// Authority makes it one.
	Authority bool
}

// New makes a root authority.
func New(t testing.TB, name string) *Authority {
	t.Helper()
	return &Authority{Pair: sign(t, Spec{Name: name, Authority: true}, nil)}
}

// Intermediate makes an authority below a.
func (a *Authority) Intermediate(t testing.TB, name string) *Authority {
	t.Helper()
	pair := a.Issue(t, Spec{Name: name, Authority: true})
	return &Authority{Pair: pair, Chain: pair.CertPEM}
}

// Issue signs a certificate.
func (a *Authority) Issue(t testing.TB, s Spec) Pair {
	t.Helper()
	pair := sign(t, s, a)
	pair.CertPEM += a.Chain
	return pair
}

// Pool holds the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return pool
}

// Staple is an OCSP response of the authority, DER.
func (a *Authority) Staple(t testing.TB, leaf *x509.Certificate, status int, from, until time.Time) []byte {
	t.Helper()
	der, err := ocsp.CreateResponse(a.Cert, a.Cert, ocsp.Response{
		Status: status, SerialNumber: leaf.SerialNumber, ThisUpdate: from, NextUpdate: until, RevokedAt: from,
	}, a.Key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TLS is the pair for crypto/tls.
func (p Pair) TLS(t testing.TB) tls.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair([]byte(p.CertPEM), []byte(p.KeyPEM))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Pin is base64 of SHA-256 of the SubjectPublicKeyInfo (RFC 7469, 2.4).
func (p Pair) Pin() string {
	sum := sha256.Sum256(p.Cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// sign signs with the authority, or with the key itself for nil.
func sign(t testing.TB, s Spec, by *Authority) Pair {
	t.Helper()
	var err error
	if s.Key == nil {
		if s.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		t.Fatal(err)
	}
	if s.NotBefore.IsZero() {
		s.NotBefore = time.Now().Add(-time.Hour)
	}
	if s.NotAfter.IsZero() {
		s.NotAfter = time.Now().Add(24 * time.Hour)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: s.Name},
		NotBefore: s.NotBefore, NotAfter: s.NotAfter, ExtKeyUsage: s.Usage, BasicConstraintsValid: true, IsCA: s.Authority,
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	switch {
	case s.Authority:
		tmpl.KeyUsage |= x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	case s.Usage == nil:
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	for _, h := range s.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	parent, key := tmpl, s.Key
	if by != nil {
		parent, key = by.Cert, by.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, s.Key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		t.Fatal(err)
	}
	return Pair{
		Cert: cert, Key: s.Key,
		CertPEM: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		KeyPEM:  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})),
	}
}
