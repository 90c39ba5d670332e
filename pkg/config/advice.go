package config

import (
	"crypto/x509"
	"fmt"
	"strconv"
	"time"

	"portcullis.dev/portcullis/pkg/config/expr"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Advise returns what the documents say that is allowed and probably not meant:
// expressions that fail on a missing header or claim, and certificates that have
// expired at now or will within 30 days. It is no part of Check because what is
// checked must not depend on the clock: a node that starts from what it last knew
// would refuse to serve.
func Advise(rs []*configv1.Resource, now time.Time) []*Problem {
	a := adviser{now: now, env: expr.New()}
	for _, r := range rs {
		a.key = KeyOf(r)
		a.expressions(r)
		a.certificates(r)
	}
	_ = a.found.sorted() // sorts in place
	return a.found
}

// adviser looks at one document after the other.
type adviser struct {
	now   time.Time
	env   *expr.Env
	key   Key
	found Problems
}

func (a *adviser) add(path, reason string) {
	a.found = append(a.found, &Problem{Key: a.key, Path: path, Reason: reason})
}

func (a *adviser) expressions(r *configv1.Resource) {
	hints := func(path, src string, want expr.Type) {
		if src == "" {
			return
		}
		if p, err := a.env.Compile(src, want); err == nil {
			for _, h := range p.Hints() {
				a.add(path, h)
			}
		}
	}
	policies, path := policiesOf(r)
	for i, p := range policies {
		for j, rule := range p.GetAuthorize().GetRules() {
			at := path(i) + ".authorize.rules[" + strconv.Itoa(j) + "]"
			hints(at+".when", rule.GetWhen(), expr.Bool)
			if rule.GetWhen() == "" { // else what is read may be tested in when
				hints(at+".require", rule.GetRequire(), expr.Bool)
			}
		}
		hints(path(i)+".rateLimit.key", p.GetRateLimit().GetKey(), expr.String)
	}
}

func (a *adviser) certificates(r *configv1.Resource) {
	for _, f := range pems(r) {
		certs, err := certificates(f.pem)
		if err != nil {
			continue
		}
		for _, cert := range certs {
			switch left := cert.NotAfter.Sub(a.now); {
			case left <= 0:
				a.add(f.path, expired(cert))
			case left < 30*24*time.Hour:
				a.add(f.path, fmt.Sprintf("certificate %q expires on %s", shorten(cert.Subject.String()), cert.NotAfter.Format(time.DateOnly)))
			}
		}
	}
}

func expired(c *x509.Certificate) string {
	return fmt.Sprintf("certificate %q has expired on %s", shorten(c.Subject.String()), c.NotAfter.Format(time.DateOnly))
}

// pems are the document's PEM texts and where they stand.
func pems(r *configv1.Resource) (out []struct{ path, pem string }) {
	add := func(path, pem string) {
		if pem != "" {
			out = append(out, struct{ path, pem string }{path, pem})
		}
	}
	up := r.GetUpstream().GetTls()
	add("spec.tls.ca", up.GetCa())
	add("spec.tls.certificate", up.GetCertificate())
	add("spec.certificate", r.GetCertificate().GetCertificate())
	add("spec.acme.ca", r.GetCertificate().GetAcme().GetCa())
	for i, l := range r.GetGateway().GetListeners() {
		add("spec.listeners["+strconv.Itoa(i)+"].tls.clientCertificates.ca", l.GetTls().GetClientCertificates().GetCa())
	}
	return out
}

// Expired refuses a change that writes a Certificate which has expired at now: who
// writes it is there to hear of it. What c holds already is not looked at, or the
// day on which a certificate expires would stop every later change. The error is
// Problems.
func Expired(c Checked, d Delta, now time.Time) error {
	var out Problems
	for _, r := range d.Upserts {
		chain, err := certificates(r.GetCertificate().GetCertificate())
		if err != nil || now.Before(chain[0].NotAfter) {
			continue // no certificate, one that Check refuses, or a good one
		}
		key := KeyOf(r)
		if have, ok := c.Get(key); ok && have.GetCertificate().GetCertificate() == r.GetCertificate().GetCertificate() {
			continue
		}
		out = append(out, &Problem{Key: key, Path: "spec.certificate", Reason: expired(chain[0]) + ": expected one that is valid"})
	}
	return out.sorted()
}
