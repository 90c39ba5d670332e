package nethttp

import (
	"errors"
	"net/netip"
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// origin is where a request came from, as far as it can be believed.
type origin struct {
	client netip.Addr
	// scheme is "" when nobody who is trusted said it.
	scheme string
	// chain is the client and the trusted proxies it came through, for the
	// upstream's X-Forwarded-For.
	chain string
}

var errForwarded = errors.New("the fields Forwarded and X-Forwarded-For name different clients")

// resolve finds the client behind trusted proxies: the rightmost address of the
// chain that is not one of them (as X-Forwarded-For grows on the right, all left
// of it is hearsay). What an untrusted peer says is not read at all.
//
// A proxy that writes one of X-Forwarded-For and Forwarded (RFC 7239) may pass on
// the other as the client sent it, so when both are there they must agree.
func resolve(peer netip.Addr, header *exchange.Header, trusted func(netip.Addr) bool) (origin, error) {
	at := origin{client: peer, chain: peer.String()}
	if !trusted(peer) {
		return at, nil
	}
	lists, elements := forwardedFor(header)
	found := false
	for _, chain := range [][]string{lists, elements} {
		if len(chain) == 0 {
			continue
		}
		client, text := walk(peer, chain, trusted)
		if found && client != at.client {
			return at, errForwarded
		}
		if !found {
			at.client, at.chain, found = client, text, true
		}
	}
	at.scheme = forwardedProto(header)
	return at, nil
}

// walk goes through a chain from the right until it meets an address that is
// not trusted, or no address.
func walk(peer netip.Addr, chain []string, trusted func(netip.Addr) bool) (client netip.Addr, text string) {
	client, text = peer, peer.String()
	for i := len(chain) - 1; i >= 0 && trusted(client); i-- {
		addr, ok := parseNode(chain[i])
		if !ok {
			break
		}
		client, text = addr, addr.String()+", "+text
	}
	return client, text
}

// maxHops bounds the proxies that are believed in a row.
const maxHops = 32

// forwardedFor returns the addresses of X-Forwarded-For and those of Forwarded,
// the last maxHops of each.
func forwardedFor(header *exchange.Header) (lists, elements []string) {
	for value := range header.Values("X-Forwarded-For") {
		for item := range strings.SplitSeq(value, ",") {
			lists = append(lists, strings.Trim(item, " \t"))
		}
	}
	for value := range header.Values("Forwarded") {
		for element := range strings.SplitSeq(value, ",") {
			elements = append(elements, parameter(element, "for"))
		}
	}
	return lists[max(0, len(lists)-maxHops):], elements[max(0, len(elements)-maxHops):]
}

// parameter returns a parameter of a Forwarded element, unquoted. Addresses and
// schemes hold no separator, so that none within quotes needs care: what is
// cut apart there is no address.
func parameter(element, name string) string {
	for pair := range strings.SplitSeq(element, ";") {
		key, value, _ := strings.Cut(strings.Trim(pair, " \t"), "=")
		if exchange.EqualFold(key, name) {
			return strings.Trim(value, `"`)
		}
	}
	return ""
}

// parseNode reads an address with or without port; IPv6 in brackets or bare.
func parseNode(s string) (netip.Addr, bool) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		s, _, _ = strings.Cut(inner, "]")
	} else if strings.Count(s, ":") == 1 {
		s, _, _ = strings.Cut(s, ":")
	}
	addr, err := netip.ParseAddr(s)
	return addr.Unmap().WithZone(""), err == nil
}

// forwardedProto returns the scheme that the nearest proxy names, "" when it
// names none or not exactly one.
func forwardedProto(header *exchange.Header) string {
	value := header.Get("X-Forwarded-Proto")
	if header.Count("X-Forwarded-Proto") == 0 {
		for v := range header.Values("Forwarded") {
			value = parameter(v[strings.LastIndexByte(v, ',')+1:], "proto")
		}
	} else if header.Count("X-Forwarded-Proto") > 1 {
		return ""
	}
	switch {
	case exchange.EqualFold(value, "https"):
		return "https"
	case exchange.EqualFold(value, "http"):
		return "http"
	}
	return ""
}

// foreign tells whether a field must not reach policies and upstream as the
// client sent it: names that alias others, the family that says where a request
// came from, what the gateway itself tells upstreams of the caller, those by which
// some servers let a request name another target or method than the one that is
// judged, and Proxy, which CGI hands on as HTTP_PROXY (CVE-2016-5385).
func foreign(name string) bool {
	if !exchange.SafeName(name) {
		return true
	}
	for _, prefix := range [...]string{"X-Forwarded", "X-Portcullis-"} {
		if len(name) >= len(prefix) && exchange.EqualFold(name[:len(prefix)], prefix) {
			return true
		}
	}
	for _, other := range [...]string{
		"Host", "Expect", "Forwarded", "X-Request-Id", "X-Real-Ip", "X-Client-Ip", "Client-Ip", "Proxy", "True-Client-Ip", "X-Cluster-Client-Ip",
		"X-Original-Url", "X-Rewrite-Url", "X-Original-Uri", "X-Original-Method", "X-Original-Host", "X-Host",
		"X-Http-Method-Override", "X-Http-Method", "X-Method-Override",
	} {
		if exchange.EqualFold(name, other) {
			return true
		}
	}
	return false
}
