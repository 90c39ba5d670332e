package listen

import (
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ocsp"

	"portcullis.dev/portcullis/pkg/httppath"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// shown is a certificate ready for handshakes. It is immutable.
type shown struct {
	// What it was made of: as long as these are the same, so is it.
	declared *configv1.Certificate
	issued   *configv1.IssuedCertificate

	plain, stapled *tls.Certificate
	// staplesUntil is when the staple must not be sent any more.
	staplesUntil time.Time
	names        []string
}

// errNotIssued says that there is no certificate yet.
var errNotIssued = errors.New("has not been issued yet")

// show prepares what a Certificate is, given or issued.
func show(declared *configv1.Certificate, issued *configv1.IssuedCertificate) (*shown, error) {
	s := &shown{declared: declared, issued: issued}
	chain, key := declared.GetCertificate(), declared.GetPrivateKey()
	if declared.GetAcme() != nil {
		if chain, key = issued.GetCertificate(), issued.GetPrivateKey(); chain == "" {
			return nil, errNotIssued
		}
	}
	pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil {
		return nil, fmt.Errorf("certificate and privateKey: %w", err)
	}
	s.plain = &pair
	for _, name := range pair.Leaf.DNSNames {
		s.names = append(s.names, strings.ToLower(name))
	}
	if text := declared.GetOcspResponse(); text != "" && declared.GetAcme() == nil {
		if err := s.staple(text); err != nil {
			return nil, fmt.Errorf("ocspResponse: %w", err)
		}
	}
	return s, nil
}

// staple adds an OCSP response, which pkg/config has verified. One without
// nextUpdate says that newer information is always there (RFC 6960, 4.2.2.1): it
// is not worth sending.
func (s *shown) staple(text string) error {
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return err
	}
	resp, err := ocsp.ParseResponseForCert(der, s.plain.Leaf, nil)
	if err != nil {
		return err
	}
	stapled := *s.plain
	stapled.OCSPStaple = der
	s.stapled, s.staplesUntil = &stapled, resp.NextUpdate
	return nil
}

// at returns the certificate as it is shown at a time.
func (s *shown) at(now time.Time) *tls.Certificate {
	if s.stapled != nil && now.Before(s.staplesUntil) {
		return s.stapled
	}
	return s.plain
}

func (s *shown) valid(now time.Time) bool {
	return now.After(s.plain.Leaf.NotBefore) && now.Before(s.plain.Leaf.NotAfter)
}

// store finds certificates by the name that a client asks for. It is immutable and
// safe for concurrent use.
type store struct {
	all []*shown // as listed
	// exact and wildcard hold names, the latter without "*". Several certificates may
	// bear one: for clients that know other algorithms.
	exact, wildcard map[string][]*shown
}

func newStore(all []*shown) *store {
	s := &store{all: all, exact: map[string][]*shown{}, wildcard: map[string][]*shown{}}
	for _, c := range all {
		for _, name := range c.names {
			by := s.exact
			if suffix, ok := strings.CutPrefix(name, "*"); ok {
				by, name = s.wildcard, suffix
			}
			if !slices.Contains(by[name], c) {
				by[name] = append(by[name], c)
			}
		}
	}
	return s
}

// choose returns what a client is shown; nil for a name that none can have, and
// when there is nothing to show.
func (s *store) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name, ok := serverName(hello.ServerName)
	if !ok {
		return nil, nil
	}
	found := s.exact[name]
	if found == nil {
		// One label, the leftmost and whole (RFC 9525, 6.3).
		if dot := strings.IndexByte(name, '.'); dot > 0 {
			found = s.wildcard[name[dot:]]
		}
	}
	if found == nil {
		if len(s.all) == 0 {
			return nil, nil
		}
		found = s.all[:1]
	}
	now := time.Now()
	if len(found) == 1 {
		return found[0].at(now), nil
	}
	best, rank := found[0], -1
	for _, c := range found {
		// What the client cannot verify is of no use, and what has expired of little.
		r := 0
		if hello.SupportsCertificate(c.plain) == nil {
			r += 2
		}
		if c.valid(now) {
			r++
		}
		if r > rank {
			best, rank = c, r
		}
	}
	return best.at(now), nil
}

// serverName returns the name of a handshake in its canonical form; "" when it has
// none. It is a host name, or there is something in it that some would cut off and
// others would not.
func serverName(sni string) (name string, ok bool) {
	if sni == "" {
		return "", true
	}
	if strings.ContainsAny(sni, "[:") {
		return "", false
	}
	name, _, err := httppath.ParseHost(sni)
	return name, err == nil
}

// same tells whether a certificate was made of these.
func (s *shown) same(declared *configv1.Certificate, issued *configv1.IssuedCertificate) bool {
	if s.declared != declared {
		return false
	}
	return declared.GetAcme() == nil || s.issued == issued ||
		s.issued.GetCertificate() == issued.GetCertificate() && s.issued.GetPrivateKey() == issued.GetPrivateKey()
}
