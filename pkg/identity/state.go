package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"portcullis.dev/portcullis/pkg/secret"
)

const (
	stateFile       = "identity.pem"
	authoritiesFile = "ca.pem"
)

// State is what a member holds to prove who it is and to know the others.
type State struct {
	Key crypto.Signer
	Issued
}

// NewRequest makes a key on P-256 and a certificate request (PKCS #10, DER) for
// id. Hosts are names and addresses under which a control plane is reached; a
// node has none.
func NewRequest(id Identity, hosts ...string) (crypto.Signer, []byte, error) {
	if err := id.Check(); err != nil {
		return nil, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: id.Name}}
	template.URIs = append(template.URIs, id.uri())
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	return key, csr, nil
}

// Save writes the state to dir, which it makes (mode 0700) when there is none:
// key and certificate in identity.pem, mode 0600, and the authorities in ca.pem,
// mode 0644. A crash leaves a usable pair.
func (s State) Save(dir string) error {
	key, err := x509.MarshalPKCS8PrivateKey(s.Key)
	if err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	var own bytes.Buffer
	// Writing to a bytes.Buffer cannot fail.
	_ = pem.Encode(&own, &pem.Block{Type: "PRIVATE KEY", Bytes: key})
	own.Write(EncodePEM(s.Certificates))
	// The authorities first: new ones include the old certificate's.
	if err := secret.WriteFile(filepath.Join(dir, authoritiesFile), EncodePEM(s.Authorities), 0o644); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	// One file for key and certificate: no crash can part them.
	if err := secret.WriteFile(filepath.Join(dir, stateFile), own.Bytes(), 0o600); err != nil {
		return fmt.Errorf("save identity: %w", err)
	}
	return nil
}

// LoadState reads what Save wrote. The error is fs.ErrNotExist when dir holds no
// identity. An expired certificate is no error here.
func LoadState(dir string) (State, error) {
	own, err := secret.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return State{}, fmt.Errorf("load identity: %w", err)
	}
	authorities, err := os.ReadFile(filepath.Join(dir, authoritiesFile))
	if err != nil {
		return State{}, fmt.Errorf("load identity: %w", err)
	}
	s, err := parseState(own, authorities)
	if err != nil {
		return State{}, fmt.Errorf("load identity from %s: %w", dir, err)
	}
	return s, nil
}

func parseState(own, authorities []byte) (s State, err error) {
	block, rest := pem.Decode(own)
	if block == nil || block.Type != "PRIVATE KEY" {
		return State{}, errors.New(stateFile + " does not begin with a private key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return State{}, errors.New(stateFile + ": the private key cannot be read")
	}
	var ok bool
	if s.Key, ok = key.(crypto.Signer); !ok {
		return State{}, errors.New(stateFile + ": the private key cannot sign")
	}
	if s.Certificates, err = DecodePEM(rest); err != nil {
		return State{}, fmt.Errorf("%s: %w", stateFile, err)
	}
	if s.Authorities, err = DecodePEM(authorities); err != nil {
		return State{}, fmt.Errorf("%s: %w", authoritiesFile, err)
	}
	return s, nil
}

// EncodePEM writes certificates (DER) as PEM.
func EncodePEM(ders [][]byte) []byte {
	var b bytes.Buffer
	for _, der := range ders {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	return b.Bytes()
}

// DecodePEM reads one or more certificates and nothing else.
func DecodePEM(data []byte) ([][]byte, error) {
	var out [][]byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %s, want only certificates", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out)+1, err)
		}
		out, data = append(out, block.Bytes), rest
	}
	if len(out) == 0 {
		return nil, errors.New("holds no certificate in PEM")
	}
	if len(bytes.TrimSpace(data)) > 0 {
		return nil, errors.New("ends with something that is no certificate")
	}
	return out, nil
}
