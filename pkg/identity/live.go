package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// Live is a member's identity in use. Set replaces it under open listeners and
// dialers: every handshake takes the newest. Safe for concurrent use.
type Live struct{ cur atomic.Pointer[holding] }

// holding is a State made ready for handshakes; immutable.
type holding struct {
	state State
	id    Identity
	cert  tls.Certificate
	roots *x509.CertPool
}

// NewLive makes a Live of a state.
func NewLive(s State) (*Live, error) {
	l := new(Live)
	if err := l.Set(s); err != nil {
		return nil, err
	}
	return l, nil
}

// Set puts a state into use. One whose parts do not belong together, or that is
// another member's, is refused and the old one stays.
func (l *Live) Set(s State) error {
	h, err := l.check(s)
	if err == nil {
		l.cur.Store(h)
	}
	return err
}

func (l *Live) check(s State) (*holding, error) {
	h, err := hold(s)
	if err != nil {
		return nil, err
	}
	if old := l.cur.Load(); old != nil && old.id != h.id {
		return nil, fmt.Errorf("certificate is for %s, not %s", h.id, old.id)
	}
	return h, nil
}

// State returns the state in use.
func (l *Live) State() State { return l.cur.Load().state }

// Identity returns who the member is.
func (l *Live) Identity() Identity { return l.cur.Load().id }

// Validity returns from when until when the certificate in use holds.
func (l *Live) Validity() (from, until time.Time) {
	leaf := l.cur.Load().cert.Leaf
	return leaf.NotBefore, leaf.NotAfter
}

func hold(s State) (*holding, error) {
	if len(s.Certificates) == 0 || s.Key == nil {
		return nil, errors.New("identity has no certificate or no key")
	}
	leaf, err := x509.ParseCertificate(s.Certificates[0])
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	id, err := identityOf(leaf.URIs)
	if err != nil {
		return nil, err
	}
	public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(s.Key.Public()) {
		return nil, errors.New("identity: the key is not the certificate's")
	}
	roots, err := poolOf(s.Authorities)
	if err != nil {
		return nil, fmt.Errorf("identity: authorities: %w", err)
	}
	// As of its own last moment: whether it holds now, handshakes find out.
	if err := verify([]*x509.Certificate{leaf}, roots, x509.ExtKeyUsageClientAuth, leaf.NotAfter); err != nil {
		return nil, fmt.Errorf("identity: the certificate is not its authorities': %w", err)
	}
	return &holding{
		state: s,
		id:    id,
		cert:  tls.Certificate{Certificate: s.Certificates, PrivateKey: s.Key, Leaf: leaf},
		roots: roots,
	}, nil
}

func poolOf(ders [][]byte) (*x509.CertPool, error) {
	if len(ders) == 0 {
		return nil, errors.New("none")
	}
	pool := x509.NewCertPool()
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if !cert.IsCA {
			return nil, fmt.Errorf("%s is no authority", cert.Subject)
		}
		pool.AddCert(cert)
	}
	return pool, nil
}

// verify checks a peer's chain against roots at a time.
func verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, at time.Time) error {
	if len(chain) == 0 {
		return ErrNoPeer
	}
	// No intermediates: authorities sign members themselves.
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
		CurrentTime:   at,
	})
	return err
}
