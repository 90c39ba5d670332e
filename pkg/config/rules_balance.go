package config

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"portcullis.dev/portcullis/pkg/httppath"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	maxHashKeys   = 8
	maxLoadFactor = 100
	maxZone       = 63
	// maxCookieAge is what browsers keep a cookie for at most.
	maxCookieAge = 400 * 24 * time.Hour
)

// upstreamBalance checks where an Upstream's endpoints come from and how one of
// them is chosen.
func (r *report) upstreamBalance(u *configv1.Upstream) {
	resolved, zoned := false, false
	for i, e := range u.GetEndpoints() {
		at := "spec.endpoints[" + strconv.Itoa(i) + "]"
		resolved = resolved || e.GetResolve() != configv1.Resolve_RESOLVE_UNSPECIFIED
		if z := e.GetZone(); z != "" {
			zoned = true
			if len(z) > maxZone || !printable(z) {
				r.fail(at+".zone", "is %q: expected at most %d bytes of printable text", shorten(z), maxZone)
			}
		}
	}
	if d := u.GetDns(); d != nil {
		if !resolved {
			r.fail("spec.dns", "has no effect: expected an endpoint with resolve")
		}
		r.duration("spec.dns.refresh", d.GetRefresh(), time.Second, time.Hour)
		if s := d.GetServer(); s != "" {
			if at, err := netip.ParseAddrPort(s); err != nil || at.Port() == 0 {
				r.fail("spec.dns.server", "is %q: expected address:port of a DNS server, such as 10.0.0.2:53", shorten(s))
			}
		}
	}
	if b := u.GetBalance(); b != nil {
		r.balance("spec.balance", b, zoned)
	}
}

// badEndpoint says what is wrong with an endpoint's URL.
func badEndpoint(e *configv1.Endpoint) string {
	switch e.GetResolve() {
	case configv1.Resolve_RESOLVE_SERVICE:
		return badService(e.GetUrl())
	case configv1.Resolve_RESOLVE_ADDRESSES:
		if why := badOrigin(e.GetUrl()); why != "" {
			return why
		}
		if u, err := url.Parse(e.GetUrl()); err != nil || isAddress(u.Hostname()) {
			return fmt.Sprintf("is %q: expected a host name, since there is nothing to resolve in an address", shorten(e.GetUrl()))
		}
		return ""
	}
	return badOrigin(e.GetUrl())
}

// badService says what is wrong with the URL of an endpoint that SRV records
// name: their names may begin with '_' (RFC 2782), and they bring the ports.
func badService(s string) string {
	const expected = "expected http://name or https://name of SRV records, such as http://_http._tcp.orders.example"
	scheme, name, _ := strings.Cut(s, "://")
	if scheme != "http" && scheme != "https" || len(s) > 512 {
		return fmt.Sprintf("is %q: %s", shorten(s), expected)
	}
	if at := strings.LastIndexByte(name, ':'); at >= 0 && isPort(name[at+1:]) {
		return fmt.Sprintf("is %q: expected no port, since SRV records bring their own", shorten(s))
	}
	plain := strings.Split(name, ".")
	for i := range plain {
		plain[i] = strings.TrimPrefix(plain[i], "_")
	}
	if !isHost(strings.Join(plain, ".")) || isAddress(name) || len(name) > 253 {
		return fmt.Sprintf("is %q: %s", shorten(s), expected)
	}
	return ""
}

func isAddress(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

func (r *report) balance(path string, b *configv1.Balance, zoned bool) {
	algorithm := b.GetAlgorithm()
	hashed := algorithm == configv1.Algorithm_ALGORITHM_RING_HASH || algorithm == configv1.Algorithm_ALGORITHM_BOUNDED_LOAD
	if len(b.GetHash()) > 0 && !hashed {
		r.fail(path+".hash", "has no effect: expected algorithm to be %q or %q", "ring_hash", "bounded_load")
	}
	r.hashKeys(path+".hash", b.GetHash())
	if f := b.LoadFactor; f != nil {
		if algorithm != configv1.Algorithm_ALGORITHM_BOUNDED_LOAD {
			r.fail(path+".loadFactor", "has no effect: expected algorithm to be %q", "bounded_load")
		} else if !(*f >= 1 && *f <= maxLoadFactor) {
			r.fail(path+".loadFactor", "is %v: expected 1 to %d", *f, maxLoadFactor)
		}
	}
	r.duration(path+".slowStart", b.GetSlowStart(), 100*time.Millisecond, time.Hour)
	switch {
	case !b.GetZoneAware():
	case hashed:
		r.fail(path+".zoneAware", "contradicts the algorithm: a key would be on another endpoint in each zone")
	case !zoned:
		r.fail(path+".zoneAware", "has no effect: expected endpoints with zone")
	}
	if a := b.GetAffinity(); a != nil {
		if a.GetCookie() != "" {
			r.cookieName(path+".affinity.cookie", a.GetCookie())
		}
		r.duration(path+".affinity.maxAge", a.GetMaxAge(), time.Second, maxCookieAge)
	}
}

func (r *report) hashKeys(path string, keys []*configv1.HashKey) {
	if len(keys) > maxHashKeys {
		r.fail(path, "has %d entries: expected at most %d", len(keys), maxHashKeys)
		return
	}
	address := -1
	for i, k := range keys {
		at := path + "[" + strconv.Itoa(i) + "]"
		if address >= 0 {
			r.fail(at, "is never looked at: every request has an address, [%d]", address)
			return
		}
		switch kind := k.GetKind().(type) {
		case *configv1.HashKey_Header:
			r.hashHeader(at+".header", kind.Header)
		case *configv1.HashKey_Cookie:
			r.cookieName(at+".cookie", kind.Cookie)
		case *configv1.HashKey_Address:
			if !kind.Address {
				r.fail(at+".address", "is false: expected true, or nothing")
			}
			address = i
		case *configv1.HashKey_Claim:
			if c := kind.Claim; c == "" || len(c) > 256 || !printable(c) {
				r.fail(at+".claim", "is %q: expected the name of a claim, 1 to 256 bytes", shorten(c))
			}
		default:
			r.fail(at, `is empty: expected "header", "cookie", "address" or "claim"`)
		}
	}
}

func (r *report) hashHeader(path, name string) {
	if why := badHeaderName(name); why != "" {
		r.fail(path, "%s", why)
	} else if !httppath.SafeName(name) || oneOfHeaders(name, hopByHop()) || strings.EqualFold(name, "host") {
		r.fail(path, "is %q, which is no field of a request as the upstream gets it: expected another", name)
	}
}

func (r *report) cookieName(path, name string) {
	if !isToken(name) || len(name) > 256 {
		r.fail(path, "is %q: expected the name of a cookie (RFC 6265, 4.1.1)", shorten(name))
	}
}

// sameBackend tells whether two backends are the same endpoints by the same name.
func sameBackend(a, b *configv1.Backend) bool {
	return a.GetUpstream() == b.GetUpstream() && maps.Equal(a.GetSubset(), b.GetSubset())
}

// subsets holds a route's backends to what their Upstreams have: labels that no
// endpoint bears would be a backend that never answers.
func (r *report) subsets(c Checked, t *configv1.Route) {
	for i, b := range t.GetBackends() {
		if len(b.GetSubset()) == 0 {
			continue
		}
		found, ok := c.Resolve(KindUpstream, r.key.Workspace, b.GetUpstream())
		if !ok {
			continue // said where it stands
		}
		if !slices.ContainsFunc(found.GetUpstream().GetEndpoints(), func(e *configv1.Endpoint) bool {
			return (e.Weight == nil || e.GetWeight() > 0) && hasLabels(e.GetLabels(), b.GetSubset())
		}) {
			r.fail("spec.backends["+strconv.Itoa(i)+"].subset", "selects no endpoint of Upstream %q: expected labels that one with a weight bears", b.GetUpstream())
		}
	}
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}
