package config

import (
	"fmt"
	"strconv"
	"time"

	"portcullis.dev/portcullis/pkg/config/expr"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Advise returns what is allowed and probably not meant: expressions that fail
// on a missing header or claim, and certificates that have expired at now or will
// within 30 days. It is no part of Check because what is checked must not depend
// on the clock: a node that starts from what it last knew would refuse to serve.
func Advise(c Checked, r *configv1.Resource, now time.Time) []*Problem {
	var out Problems
	env := expressions(c)
	key := KeyOf(r)
	add := func(path, reason string) { out = append(out, &Problem{Key: key, Path: path, Reason: reason}) }
	hints := func(path, src string, want expr.Type) {
		if src == "" {
			return
		}
		if p, err := env.Compile(src, want); err == nil {
			for _, h := range p.Hints() {
				add(path, h)
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
	t := r.GetUpstream().GetTls()
	for _, f := range []struct{ path, pem string }{{"spec.tls.ca", t.GetCa()}, {"spec.tls.certificate", t.GetCertificate()}} {
		certs, err := certificates(f.pem)
		if err != nil {
			continue
		}
		for _, cert := range certs {
			switch left := cert.NotAfter.Sub(now); {
			case left <= 0:
				add(f.path, fmt.Sprintf("certificate %q has expired on %s", shorten(cert.Subject.String()), cert.NotAfter.Format(time.DateOnly)))
			case left < 30*24*time.Hour:
				add(f.path, fmt.Sprintf("certificate %q expires on %s", shorten(cert.Subject.String()), cert.NotAfter.Format(time.DateOnly)))
			}
		}
	}
	_ = out.sorted() // sorts in place
	return out
}
