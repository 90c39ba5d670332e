package config

import (
	"math"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Bounds of RequestLimits.
const (
	minHeaderBytes = 1 << 10
	maxHeaderBytes = 1 << 20
	maxBodyBytes   = 1 << 40
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
}
