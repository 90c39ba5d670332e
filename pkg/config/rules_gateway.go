package config

import (
	"math"
	"strconv"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Bounds of RequestLimits.
const (
	minHeaderBytes = 1 << 10
	maxHeaderBytes = 1 << 20
	maxBodyBytes   = 1 << 40
)

// Bounds of listeners. The authorities of all clients are named in each handshake
// of TLS 1.2, in at most 64 KiB.
const (
	maxListeners    = 64
	maxCertificates = 1000
	maxClientCAs    = 256
)

func (r *report) gateway(g *configv1.Gateway) {
	r.words("spec.trustedProxies", g.GetTrustedProxies(), 1000, badPrefix)
	r.policies("spec.policies", g.GetPolicies())
	if n := g.GetLimits().GetMaxHeaderBytes(); n != 0 && (n < minHeaderBytes || n > maxHeaderBytes) {
		r.fail("spec.limits.maxHeaderBytes", "is %d: expected %d to %d", n, minHeaderBytes, maxHeaderBytes)
	}
	if n := g.GetLimits().GetMaxBodyBytes(); n > maxBodyBytes {
		r.fail("spec.limits.maxBodyBytes", "is %d: expected at most %d", n, uint64(maxBodyBytes))
	}
	if ratio := g.GetTracing().GetRatio(); math.IsNaN(ratio) || ratio < 0 || ratio > 1 {
		r.fail("spec.tracing.ratio", "is %v: expected 0 to 1", ratio)
	}
	r.listeners(g.GetListeners())
}

func (r *report) listeners(listeners []*configv1.Listener) {
	if len(listeners) > maxListeners {
		r.fail("spec.listeners", "has %d entries: expected at most %d", len(listeners), maxListeners)
		return
	}
	seen := make(map[string]int, len(listeners))
	for i, l := range listeners {
		at := "spec.listeners[" + strconv.Itoa(i) + "]"
		if why := badName(l.GetName()); why != "" {
			r.fail(at+".name", "%s", why)
		} else if first, ok := seen[l.GetName()]; ok {
			r.fail(at+".name", "%q repeats listeners[%d]: expected each once", l.GetName(), first)
		} else {
			seen[l.GetName()] = i
		}
		t := l.GetTls()
		if t == nil {
			if l.GetHttp3() {
				r.fail(at+".http3", "needs tls: expected tls.certificates")
			}
			continue
		}
		if len(t.GetCertificates()) == 0 {
			r.fail(at+".tls.certificates", "is empty: expected the names of Certificates")
		}
		r.words(at+".tls.certificates", t.GetCertificates(), maxCertificates, badName)
		if clients := t.GetClientCertificates(); clients != nil {
			r.clientAuthorities(at+".tls.clientCertificates.ca", clients.GetCa())
		}
	}
}

// clientAuthorities checks who may vouch for clients. Nobody would mean whoever
// the system trusts.
func (r *report) clientAuthorities(at, bundle string) {
	if bundle == "" {
		r.fail(at, "is missing: expected PEM of the authorities that may vouch for clients")
		return
	}
	authorities, err := certificates(bundle)
	switch {
	case err != nil:
		r.fail(at, "%v: expected PEM of certificate authorities", err)
	case len(authorities) > maxClientCAs:
		r.fail(at, "has %d certificates: expected at most %d", len(authorities), maxClientCAs)
	}
	for _, c := range authorities {
		if !c.IsCA {
			r.fail(at, "%q is no certificate authority", shorten(c.Subject.String()))
		}
	}
}
