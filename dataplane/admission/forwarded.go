package admission

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
	// trusted is set when the peer itself is a trusted proxy.
	trusted bool
}

var errForwarded = errors.New("the fields Forwarded and X-Forwarded-For name different clients")

// resolve finds the client behind trusted proxies: the rightmost address of the
// chain that is not one of them (as X-Forwarded-For grows on the right, all left
// of it is hearsay). What an untrusted peer says is not read at all.
//
// A proxy that writes one of X-Forwarded-For and Forwarded (RFC 7239) may pass on
// the other as the client sent it, so when both are there they must agree.
func (c *Conn) resolve(header *exchange.Header, s *Settings) (origin, error) {
	at := origin{client: c.Peer, chain: c.peerText()}
	if !s.Trusts(c.Peer) {
		return at, nil
	}
	at.trusted = true
	lists, elements := forwardedFor(header)
	found := false
	for _, chain := range [][]string{lists, elements} {
		if len(chain) == 0 {
			continue
		}
		client, text := walk(c.Peer, chain, s)
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
func walk(peer netip.Addr, chain []string, s *Settings) (client netip.Addr, text string) {
	client, text = peer, peer.String()
	for i := len(chain) - 1; i >= 0 && s.Trusts(client); i-- {
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
