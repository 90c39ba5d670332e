package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ocsp"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Bounds of certificates.
const (
	maxChain      = 16
	maxChallenges = 100
	maxOCSP       = 64 << 10
)

func (r *report) certificate(c *configv1.Certificate) {
	if r.key.Workspace != DefaultWorkspace {
		r.fail("metadata.workspace", "has no effect in workspace %q: the Gateway names Certificates of %q", r.key.Workspace, DefaultWorkspace)
	}
	given := c.GetCertificate() != "" || c.GetPrivateKey() != ""
	switch {
	case c.GetAcme() != nil && given:
		r.fail("spec", "has acme and a certificate of its own: expected one of them")
	case c.GetAcme() != nil:
		r.acme(c.GetAcme())
		if c.GetOcspResponse() != "" {
			r.fail("spec.ocspResponse", "has no effect with acme: leave it out")
		}
	case !given:
		r.fail("spec", "expected certificate and privateKey, or acme")
	default:
		if chain := r.chain(c.GetCertificate(), c.GetPrivateKey()); chain != nil {
			r.ocsp(c.GetOcspResponse(), chain)
		}
	}
}

// chain checks a certificate and its key, and nothing about the time: what was
// good when it was written stays part of the configuration, whatever the clock
// says, or a node could not start from what it last ran. See Expired.
func (r *report) chain(certificate, key string) []*x509.Certificate {
	switch {
	case key == "":
		r.fail("spec.privateKey", "is missing: expected the PEM key of certificate")
		return nil
	case certificate == "":
		r.fail("spec.certificate", "is missing: expected the PEM certificate of privateKey, leaf first")
		return nil
	}
	chain, err := certificates(certificate)
	if err != nil {
		r.fail("spec.certificate", "%v: expected PEM of a certificate and of those that certify it, leaf first", err)
		return nil
	}
	if why := badChain(chain); why != "" {
		r.fail("spec.certificate", "%s", why)
		return nil
	}
	if _, err := tls.X509KeyPair([]byte(certificate), []byte(key)); err != nil {
		// The error names no key material.
		r.fail("spec.certificate", "%v: expected a PEM certificate, leaf first, that belongs to privateKey", err)
		return nil
	}
	return chain
}

// badChain says what is wrong with what a server is to show, "" when nothing is.
func badChain(chain []*x509.Certificate) string {
	if len(chain) > maxChain {
		return fmt.Sprintf("has %d certificates: expected at most %d", len(chain), maxChain)
	}
	leaf := chain[0]
	if !strongKey(leaf.PublicKey) {
		return "has a weak or unusual key: expected RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519"
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
		return "names no host as subject alternative name, and clients look at nothing else (RFC 9525): expected one that does"
	}
	for _, name := range leaf.DNSNames {
		if strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
			return fmt.Sprintf("names the host %q: expected printable ASCII", shorten(name))
		}
	}
	if len(leaf.ExtKeyUsage) > 0 && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return "is not for servers: expected one with the extended key usage serverAuth"
	}
	for i, c := range chain[1:] {
		// A chain may fork, where an authority has two certificates.
		if !slices.ContainsFunc(chain[:i+1], func(below *x509.Certificate) bool {
			return bytes.Equal(below.RawIssuer, c.RawSubject) && below.CheckSignatureFrom(c) == nil
		}) {
			return fmt.Sprintf("certificate %d (%q) certifies none of those before it: expected the leaf first and each issuer after it", i+2, shorten(c.Subject.String()))
		}
	}
	return ""
}

func strongKey(public any) bool {
	switch k := public.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048 && k.N.BitLen() <= 8192
	case *ecdsa.PublicKey:
		return k.Curve == elliptic.P256() || k.Curve == elliptic.P384()
	case ed25519.PublicKey:
		return true
	}
	return false
}

// ocsp checks that a response is about the leaf and from who certifies it
// (RFC 6960, 4.2.2.2). Whether it is still new is asked when it is stapled.
func (r *report) ocsp(text string, chain []*x509.Certificate) {
	const at = "spec.ocspResponse"
	if text == "" {
		return
	}
	der, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(der) > maxOCSP {
		r.fail(at, "expected base64 of at most %d bytes of DER", maxOCSP)
		return
	}
	i := slices.IndexFunc(chain[1:], func(c *x509.Certificate) bool { return chain[0].CheckSignatureFrom(c) == nil })
	if i < 0 {
		r.fail(at, "cannot be verified: expected the leaf's issuer in certificate, after the leaf")
		return
	}
	switch resp, err := ocsp.ParseResponseForCert(der, chain[0], chain[i+1]); {
	case err != nil:
		r.fail(at, "is no response about this certificate from its authority: %s", shorten(err.Error()))
	case resp.Certificate != nil && !slices.Contains(resp.Certificate.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) && !resp.Certificate.Equal(chain[i+1]):
		r.fail(at, "is signed by a certificate that its authority has not appointed for it: expected the extended key usage OCSPSigning")
	case resp.Status != ocsp.Good:
		r.fail(at, "does not say that the certificate is good: expected one that does")
	}
}

func (r *report) acme(a *configv1.ACME) {
	if d := a.GetDirectory(); d != "" {
		u, err := url.Parse(d)
		if err != nil || len(d) > 2048 || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Fragment != "" || strings.HasSuffix(d, "#") {
			r.fail("spec.acme.directory", "is %q: expected https://host/path", shorten(d))
		}
	}
	if mail := a.GetEmail(); mail != "" {
		local, host, ok := strings.Cut(mail, "@")
		if !ok || local == "" || len(mail) > 254 || !isHost(strings.ToLower(host)) || strings.ContainsFunc(local, func(c rune) bool { return c <= ' ' || c >= 0x7f || strings.ContainsRune(`,;:<>()"\?&`, c) }) {
			r.fail("spec.acme.email", "is %q: expected name@host", shorten(mail))
		}
	}
	if len(a.GetHostnames()) == 0 {
		r.fail("spec.acme.hostnames", "is empty: expected the exact host names that the certificate is for")
	}
	// 100 is what authorities take in one order.
	r.words("spec.acme.hostnames", a.GetHostnames(), 100, func(s string) string {
		switch why := badHost(s); {
		case why != "":
			return why
		case strings.HasPrefix(s, "*."):
			return fmt.Sprintf("is %q: an authority gives no wildcard for the challenges that nodes answer: expected exact host names", shorten(s))
		case !strings.Contains(s, ".") || strings.Trim(s[strings.LastIndexByte(s, '.')+1:], "0123456789") == "":
			return fmt.Sprintf("is %q: expected a public host name such as shop.example.com", shorten(s))
		}
		return ""
	})
	if !a.GetTermsAgreed() {
		r.fail("spec.acme.termsAgreed", "is not true: nothing can be asked of the authority without agreeing to its terms of service")
	}
	if a.GetCa() != "" {
		if _, err := certificates(a.GetCa()); err != nil {
			r.fail("spec.acme.ca", "%v: expected PEM of certificate authorities", err)
		}
	}
}

func (r *report) issuedCertificate(i *configv1.IssuedCertificate) {
	if i.GetCertificate() != "" || i.GetPrivateKey() != "" {
		r.chain(i.GetCertificate(), i.GetPrivateKey())
	}
	r.timestamp("spec.issuedAt", i.GetIssuedAt())
	r.timestamp("spec.refreshAt", i.GetRefreshAt())
	r.timestamp("spec.suggested.start", i.GetSuggested().GetStart())
	r.timestamp("spec.suggested.end", i.GetSuggested().GetEnd())
	r.text("spec.suggested.explanationUrl", i.GetSuggested().GetExplanationUrl(), 4096)
	r.text("spec.problem", i.GetProblem(), 4096)
	if n := len(i.GetChallenges()); n > maxChallenges {
		r.fail("spec.challenges", "has %d entries: expected at most %d", n, maxChallenges)
		return
	}
	seen := map[string]bool{}
	for n, c := range i.GetChallenges() {
		at := "spec.challenges[" + strconv.Itoa(n) + "]"
		// RFC 8555, 8.1 and 8.3: both in the alphabet of base64url.
		thumbprint, ok := strings.CutPrefix(c.GetKeyAuthorization(), c.GetToken()+".")
		if !isBase64URL(c.GetToken()) || seen[c.GetToken()] {
			r.fail(at+".token", "expected 1 to 256 characters of base64url, each token once")
		} else if !ok || !isBase64URL(thumbprint) {
			r.fail(at+".keyAuthorization", "expected the token, a dot and the thumbprint of the account's key")
		}
		seen[c.GetToken()] = true
	}
}

func isBase64URL(s string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && s[i] != '-' && s[i] != '_' {
			return false
		}
	}
	return s != "" && len(s) <= 256
}
