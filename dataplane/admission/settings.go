package admission

import "net/netip"

// Settings are what the live snapshot says; they may change between requests.
// The zero Settings trust no proxy and have the default limits.
type Settings struct {
	// TrustedProxies are the peers whose X-Forwarded-For, X-Forwarded-Proto,
	// Forwarded and X-Request-Id are believed.
	TrustedProxies []netip.Prefix
	// MaxHeaderBytes bounds request line and header fields; 0 means 64 KiB, more
	// than 1 MiB means 1 MiB.
	MaxHeaderBytes int
	// MaxBodyBytes bounds a request's body; 0 means 10 MiB.
	MaxBodyBytes int64
}

const (
	defaultHeaderBytes = 64 << 10
	mostHeaderBytes    = 1 << 20
	defaultBodyBytes   = 10 << 20
)

// HeaderLimit returns how many bytes a request's head may have.
func (s *Settings) HeaderLimit() int {
	if s.MaxHeaderBytes <= 0 {
		return defaultHeaderBytes
	}
	return min(s.MaxHeaderBytes, mostHeaderBytes)
}

// BodyLimit returns how many bytes a request's body may have.
func (s *Settings) BodyLimit() int64 {
	if s.MaxBodyBytes <= 0 {
		return defaultBodyBytes
	}
	return s.MaxBodyBytes
}

// Trusts tells whether what the peer says of others is believed.
func (s *Settings) Trusts(peer netip.Addr) bool {
	for _, p := range s.TrustedProxies {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}
