package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Listener says how a socket speaks TLS to clients from anywhere.
type Listener struct {
	// Certificate chooses what a client is shown; required. With neither certificate
	// nor error the handshake ends with the alert unrecognized_name. It is called by
	// many goroutines.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// Protocols are those of ALPN, the preferred one first.
	Protocols []string
	// ClientCA is PEM of who may vouch for clients; empty: clients are not asked.
	ClientCA string
	// ClientsOptional lets in clients without a certificate; one that is shown must
	// verify all the same.
	ClientsOptional bool
	// MinVersion is tls.VersionTLS12, also when 0, or tls.VersionTLS13.
	MinVersion uint16
	// TicketKeys seal session tickets: the first does, all of them open. None: keys
	// of this configuration alone, which rotate by themselves. They may be replaced
	// while it is in use, with SetSessionTicketKeys.
	TicketKeys [][32]byte
}

// suites are the cipher suites of TLS 1.2 with forward secrecy and authenticated
// encryption (RFC 9325, 4.2). Those of TLS 1.3 all are.
func suites() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}

// Server returns the listener's configuration. Key exchanges are crypto/tls's own,
// X25519MLKEM768 first.
//
// A ticket is good where clients are verified in the same way: it holds the
// verdict on a client's certificate, and its keys are shared by listeners and
// nodes that may trust others.
func (l Listener) Server() (*tls.Config, error) {
	if l.Certificate == nil {
		return nil, errors.New("a listener with TLS needs certificates")
	}
	c := &tls.Config{
		MinVersion:     max(l.MinVersion, tls.VersionTLS12),
		CipherSuites:   suites(),
		GetCertificate: l.Certificate,
		NextProtos:     l.Protocols,
		Renegotiation:  tls.RenegotiateNever,
	}
	if l.ClientCA != "" {
		ders, err := DecodePEM([]byte(l.ClientCA))
		if err != nil {
			return nil, fmt.Errorf("client authorities: %w", err)
		}
		if c.ClientCAs, err = poolOf(ders); err != nil {
			return nil, fmt.Errorf("client authorities: %w", err)
		}
		c.ClientAuth = tls.RequireAndVerifyClientCert
		if l.ClientsOptional {
			c.ClientAuth = tls.VerifyClientCertIfGiven
		}
		c.VerifyConnection = stillVerified
	}
	trust := l.trust()
	c.WrapSession = func(cs tls.ConnectionState, session *tls.SessionState) ([]byte, error) {
		session.Extra = append(session.Extra, trust)
		return c.EncryptTicket(cs, session)
	}
	c.UnwrapSession = func(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		session, err := c.DecryptTicket(ticket, cs)
		if session == nil || err != nil || !slices.ContainsFunc(session.Extra, func(e []byte) bool { return bytes.Equal(e, trust) }) {
			return nil, err // neither: a full handshake
		}
		return session, nil
	}
	if len(l.TicketKeys) > 0 {
		c.SetSessionTicketKeys(l.TicketKeys)
	}
	return c, nil
}

// trust names how clients are verified.
func (l Listener) trust() []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "%t %s", l.ClientsOptional, l.ClientCA))
	return append([]byte("portcullis trust "), sum[:]...)
}

// stillVerified refuses a client none of whose chains is valid now. crypto/tls
// looks at it in full handshakes and before it resumes; this holds whatever a
// release of it does about the latter.
func stillVerified(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return nil
	}
	now := time.Now()
	if !slices.ContainsFunc(cs.VerifiedChains, func(chain []*x509.Certificate) bool {
		return !slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return now.Before(c.NotBefore) || now.After(c.NotAfter) })
	}) {
		return errors.New("the client's certificate is not valid any more")
	}
	return nil
}

// ErrPin says that no certificate in an upstream's verified chain has a key that
// is pinned.
var ErrPin = errors.New("no certificate in the chain has a pinned key")

// pinned returns a verification of what crypto/tls has verified already: of any
// chain, some certificate's key is pinned (RFC 7469, 2.6). Pins are base64 of
// SHA-256 of the SubjectPublicKeyInfo (2.4).
func pinned(pins []string) (func(tls.ConnectionState) error, error) {
	known := map[[sha256.Size]byte]bool{}
	for _, pin := range pins {
		sum, err := base64.StdEncoding.Strict().DecodeString(pin)
		if err != nil || len(sum) != sha256.Size {
			return nil, errors.New("pins: expected base64 of a SHA-256")
		}
		known[[sha256.Size]byte(sum)] = true
	}
	return func(cs tls.ConnectionState) error {
		for _, chain := range cs.VerifiedChains {
			for _, c := range chain {
				if known[sha256.Sum256(c.RawSubjectPublicKeyInfo)] {
					return nil
				}
			}
		}
		return ErrPin
	}, nil
}
