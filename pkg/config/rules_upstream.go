package config

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const maxEndpoints = 1000

func (r *report) upstream(u *configv1.Upstream) {
	endpoints := u.GetEndpoints()
	if len(endpoints) == 0 || len(endpoints) > maxEndpoints {
		r.fail("spec.endpoints", "has %d entries: expected 1 to %d", len(endpoints), maxEndpoints)
		return
	}
	seen := make(map[string]int, len(endpoints))
	https := false
	for i, e := range endpoints {
		at := "spec.endpoints[" + strconv.Itoa(i) + "]"
		if why := badEndpoint(e); why != "" {
			r.fail(at+".url", "%s", why)
		} else if first, ok := seen[e.GetUrl()]; ok {
			r.fail(at+".url", "%q repeats endpoints[%d]: expected each once", e.GetUrl(), first)
		}
		seen[e.GetUrl()] = i
		https = https || strings.HasPrefix(e.GetUrl(), "https:")
		r.weight(at+".weight", e.Weight)
		r.labels(at+".labels", e.GetLabels())
	}
	if t := u.GetTls(); t != nil {
		if !https {
			r.fail("spec.tls", "has no effect: expected an endpoint with https://")
		}
		r.upstreamTLS(t)
	}
	if u.GetShared() && r.key.Workspace != DefaultWorkspace {
		r.fail("spec.shared", "has no effect in workspace %q: only those of %q are shared", r.key.Workspace, DefaultWorkspace)
	}
	r.upstreamBalance(u)
	r.upstreamResilience(u)
	r.duration("spec.timeouts.connect", u.GetTimeouts().GetConnect(), time.Millisecond, time.Minute)
	r.duration("spec.timeouts.idle", u.GetTimeouts().GetIdle(), time.Second, time.Hour)
}

func (r *report) upstreamTLS(t *configv1.UpstreamTLS) {
	if t.GetCa() != "" {
		if _, err := certificates(t.GetCa()); err != nil {
			r.fail("spec.tls.ca", "%v: expected PEM of certificate authorities", err)
		}
	}
	if name := t.GetServerName(); name != "" && !isHost(name) {
		if _, err := netip.ParseAddr(name); err != nil {
			r.fail("spec.tls.serverName", "is %q: expected a lower-case host name", shorten(name))
		}
	}
	r.words("spec.tls.pins", t.GetPins(), 32, func(pin string) string {
		if der, err := base64.StdEncoding.Strict().DecodeString(pin); err != nil || len(der) != sha256.Size || strings.ContainsAny(pin, "\r\n") {
			return "expected base64 of the SHA-256 of a SubjectPublicKeyInfo (RFC 7469, 2.4)"
		}
		return ""
	})
	switch certificate, key := t.GetCertificate(), t.GetPrivateKey(); {
	case certificate == "" && key == "":
	case key == "":
		r.fail("spec.tls.privateKey", "is missing: expected the PEM key of certificate")
	case certificate == "":
		r.fail("spec.tls.certificate", "is missing: expected the PEM certificate of privateKey")
	default:
		if _, err := tls.X509KeyPair([]byte(certificate), []byte(key)); err != nil {
			// The error names no key material.
			r.fail("spec.tls.certificate", "%v: expected a PEM certificate that belongs to privateKey", err)
		}
	}
}

// certificates parses a PEM bundle that holds nothing but certificates.
func certificates(bundle string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	rest := []byte(bundle)
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %s", strings.ToLower(shorten(block.Type)))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d cannot be read", len(out)+1)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("holds no certificate")
	}
	if len(strings.TrimSpace(string(rest))) > 0 {
		return nil, fmt.Errorf("has text after the last certificate")
	}
	return out, nil
}
