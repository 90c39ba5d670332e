package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

type storedCA struct {
	Authorities []storedAuthority `json:"authorities"`
}

type storedAuthority struct {
	Certificate []byte    `json:"certificate"` // DER
	Key         []byte    `json:"key"`         // PKCS #8
	SignsFrom   time.Time `json:"signs_from"`
}

// Marshal returns the CA with its private keys, for ParseCA. Seal it before it is
// stored.
func (ca *CA) Marshal() ([]byte, error) {
	var out storedCA
	for _, a := range ca.authorities {
		key, err := x509.MarshalPKCS8PrivateKey(a.key)
		if err != nil {
			return nil, fmt.Errorf("encode CA key: %w", err)
		}
		out.Authorities = append(out.Authorities, storedAuthority{a.cert.Raw, key, a.signsFrom})
	}
	return json.Marshal(out)
}

// ParseCA reads what Marshal wrote, and checks that each authority is one and
// that its key is its own.
func ParseCA(data []byte) (*CA, error) {
	var in storedCA
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil {
		return nil, fmt.Errorf("stored CA: %w", err)
	}
	if len(in.Authorities) == 0 {
		return nil, errors.New("stored CA: no authority")
	}
	ca := new(CA)
	for i, s := range in.Authorities {
		a, err := s.parse()
		if err != nil {
			return nil, fmt.Errorf("stored CA: authority %d: %w", i, err)
		}
		if i > 0 && a.signsFrom.After(ca.authorities[i-1].signsFrom) {
			return nil, errors.New("stored CA: authorities are not newest first")
		}
		ca.authorities = append(ca.authorities, a)
	}
	return ca, nil
}

func (s storedAuthority) parse() (authority, error) {
	cert, err := x509.ParseCertificate(s.Certificate)
	if err != nil {
		return authority{}, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(s.Key)
	if err != nil {
		return authority{}, errors.New("its key cannot be read")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return authority{}, errors.New("its key is not its certificate's")
	}
	if !cert.IsCA || cert.CheckSignatureFrom(cert) != nil {
		return authority{}, errors.New("its certificate is not an authority's")
	}
	return authority{cert, key, s.SignsFrom}, nil
}
