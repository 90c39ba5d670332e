package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	issuerURL = "https://issuer.peers.test"
	audience  = "https://api.peers.test"
	scope     = "orders:read"
	keyID     = "peers"
	// manyTokens is how many callers the scenarios with many tokens have.
	manyTokens = 10_000
)

// tokens are RS256 access tokens (RFC 9068) of one issuer, and its key in the
// forms that peers take.
type tokens struct {
	signed []string
	// forged is the first with another signature: whoever lets it in does not
	// verify, and is not measured.
	forged      string
	jwks        string
	jwksFile    string
	publicFile  string
	certificate string
	key         string
	// both is certificate and key in one file.
	both string
}

// newTokens makes a key, so many tokens, and a certificate for the scenarios with
// TLS, and writes what peers read from files into dir.
func newTokens(dir string, count int) (*tokens, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	t := &tokens{
		signed: make([]string, count), jwksFile: filepath.Join(dir, "jwks.json"), publicFile: filepath.Join(dir, "issuer.pem"),
		certificate: filepath.Join(dir, "server.pem"), key: filepath.Join(dir, "server.key"),
		both: filepath.Join(dir, "both.pem"),
	}
	var signing errgroup.Group
	signing.SetLimit(8)
	for i := range t.signed {
		signing.Go(func() (err error) {
			t.signed[i], err = sign(key, i)
			return err
		})
	}
	if err := signing.Wait(); err != nil {
		return nil, err
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	if t.forged, err = sign(other, 0); err != nil {
		return nil, err
	}
	exponent := big.NewInt(int64(key.E)).Bytes()
	t.jwks = fmt.Sprintf(`{"keys":[{"kty":"RSA","use":"sig","alg":"RS256","kid":%q,"n":%q,"e":%q}]}`, keyID,
		base64.RawURLEncoding.EncodeToString(key.N.Bytes()), base64.RawURLEncoding.EncodeToString(exponent))
	if err := os.WriteFile(t.jwksFile, []byte(t.jwks), 0o600); err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := writePEM(t.publicFile, "PUBLIC KEY", public); err != nil {
		return nil, err
	}
	return t, t.writeCertificate()
}

// sign returns the token of caller number i, valid for an hour.
func sign(key *rsa.PrivateKey, i int) (string, error) {
	now := time.Now()
	payload, err := json.Marshal(map[string]any{
		"iss": issuerURL, "aud": audience, "sub": fmt.Sprintf("caller-%d", i), "client_id": fmt.Sprintf("client-%d", i),
		"scope": scope, "jti": fmt.Sprintf("peers-%d-%d", now.UnixNano(), i), "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	if err != nil {
		return "", err
	}
	header := fmt.Sprintf(`{"alg":"RS256","typ":"at+jwt","kid":%q}`, keyID)
	input := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	digest := sha256.Sum256([]byte(input))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
	return input + "." + base64.RawURLEncoding.EncodeToString(signature), err
}

// writeCertificate makes a self-signed certificate: load generators do not verify.
func (t *tokens) writeCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peers.test"}, DNSNames: []string{"peers.test"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(t.certificate, "CERTIFICATE", certificate); err != nil {
		return err
	}
	if err := writePEM(t.key, "PRIVATE KEY", private); err != nil {
		return err
	}
	both := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	return os.WriteFile(t.both, append(both, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), 0o600)
}

func writePEM(name, kind string, der []byte) error {
	return os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
