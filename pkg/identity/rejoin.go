package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// RejoinPrefix tells a rejoin proof from a join token where either may stand.
const RejoinPrefix = "pcr_"

// ErrRejoin says that a proof is none, or for another request.
var ErrRejoin = errors.New("rejoin proof is not valid")

// Rejoin proves, to a control plane that could not be reached until the member's
// certificate had run out, who the member is: it signs the new certificate
// request with the old key. It stands where a join token stands. Whoever repeats
// it gains a certificate for a key that only the member has.
func (s State) Rejoin(csr []byte) (string, error) {
	if len(s.Certificates) == 0 || s.Key == nil {
		return "", errors.New("no identity to rejoin with")
	}
	message := rejoinMessage(csr)
	var opts crypto.SignerOpts = crypto.Hash(0)
	if _, ok := s.Key.(*ecdsa.PrivateKey); ok {
		sum := sha256.Sum256(message)
		message, opts = sum[:], crypto.SHA256
	}
	signature, err := s.Key.Sign(rand.Reader, message, opts)
	if err != nil {
		return "", fmt.Errorf("rejoin: %w", err)
	}
	leaf := s.Certificates[0]
	b := binary.BigEndian.AppendUint16(nil, uint16(len(leaf)))
	b = append(append(b, leaf...), signature...)
	return RejoinPrefix + base64.RawURLEncoding.EncodeToString(b), nil
}

// VerifyRejoin returns who made a proof for csr. The certificate may have run out
// at most grace ago. Whether that member is still wanted is the caller's to say.
func (ca *CA) VerifyRejoin(proof string, csr []byte, grace time.Duration, now time.Time) (Identity, error) {
	rest, ok := strings.CutPrefix(proof, RejoinPrefix)
	if !ok || len(rest) > 8<<10 {
		return Identity{}, ErrRejoin
	}
	b, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil || len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
		return Identity{}, ErrRejoin
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	leaf, err := x509.ParseCertificate(b[2:n])
	if err != nil {
		return Identity{}, ErrRejoin
	}
	roots, err := poolOf(ca.Authorities())
	if err != nil {
		return Identity{}, err
	}
	at := now
	if at.After(leaf.NotAfter) {
		if at.Sub(leaf.NotAfter) > grace {
			return Identity{}, fmt.Errorf("%w at %s, more than %s ago", ErrExpired, leaf.NotAfter.Format(time.RFC3339), grace)
		}
		at = leaf.NotAfter
	}
	if err := verify([]*x509.Certificate{leaf}, roots, x509.ExtKeyUsageClientAuth, at); err != nil {
		return Identity{}, ErrRejoin
	}
	if !signedBy(leaf.PublicKey, rejoinMessage(csr), b[n:]) {
		return Identity{}, ErrRejoin
	}
	return identityOf(leaf.URIs)
}

func rejoinMessage(csr []byte) []byte {
	return append([]byte("portcullis rejoin v1\x00"), csr...)
}

func signedBy(public crypto.PublicKey, message, signature []byte) bool {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(message)
		return ecdsa.VerifyASN1(k, sum[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, message, signature)
	}
	return false
}
