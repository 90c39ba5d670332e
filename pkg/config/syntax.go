package config

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"unicode"

	"portcullis.dev/portcullis/pkg/httppath"
)

// badName says what is wrong with a resource's name, "" when nothing is.
func badName(s string) string {
	const expected = "expected 1 to 63 lower-case letters, digits, '-' and '.', first and last a letter or digit"
	if s == "" {
		return "is missing: " + expected
	}
	ok := len(s) <= 63 && isLowerAlnum(s[0]) && isLowerAlnum(s[len(s)-1])
	for i := range len(s) {
		ok = ok && (isLowerAlnum(s[i]) || s[i] == '-' || s[i] == '.')
	}
	if !ok {
		return fmt.Sprintf("is %q: %s", shorten(s), expected)
	}
	return ""
}

func isLowerAlnum(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' }

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool {
		return unicode.IsControl(c) && c != '\n' && c != '\t' || c == unicode.ReplacementChar
	})
}

// badHost says what is wrong with a host name that requests are matched against.
func badHost(s string) string {
	const expected = "expected a host name such as api.example.com, or *.example.com"
	name := strings.TrimPrefix(s, "*.")
	switch {
	case s == "*":
		return "\"*\" is no host: leave hostnames out to match every host"
	case strings.ToLower(s) != s:
		return fmt.Sprintf("is %q: expected lower case, %q", shorten(s), shorten(strings.ToLower(s)))
	case strings.Contains(s, ":"):
		return fmt.Sprintf("is %q: expected a host name without port", shorten(s))
	case strings.HasSuffix(s, "."):
		return fmt.Sprintf("is %q: expected no trailing dot", shorten(s))
	case !isHost(name):
		return fmt.Sprintf("is %q: %s", shorten(s), expected)
	}
	if host, _, err := httppath.ParseHost(name); err != nil || host != name {
		return fmt.Sprintf("is %q, which no request has: %s", shorten(s), expected)
	}
	return ""
}

// isHost reports whether s is a host name of lower-case labels (RFC 1123, 2.1).
func isHost(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if !isLowerAlnum(label[i]) && label[i] != '-' {
				return false
			}
		}
	}
	return true
}

// isToken reports whether s is a token (RFC 9110, 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		if !isAlnum(s[i]) && strings.IndexByte("!#$%&'*+-.^_`|~", s[i]) < 0 {
			return false
		}
	}
	return s != ""
}

// badHeaderName says what is wrong with a header's name.
func badHeaderName(s string) string {
	if !isToken(s) || len(s) > 128 {
		return fmt.Sprintf("is %q: expected the name of a header", shorten(s))
	}
	return ""
}

// badHeaderValue says what is wrong with a header's value (RFC 9110, 5.5).
func badHeaderValue(s string) string {
	if len(s) > 4096 {
		return fmt.Sprintf("is %d bytes long: expected at most 4096", len(s))
	}
	if strings.Trim(s, " \t") != s {
		return "expected no space at either end"
	}
	for i := range len(s) {
		if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7f {
			return "has control characters: expected the value of a header"
		}
	}
	return ""
}

// sameHeader compares names as servers behind a gateway may: without regard to
// case, and with '_' as '-' (CGI, WSGI and Rack do so).
func sameHeader(a, b string) bool {
	return strings.EqualFold(strings.ReplaceAll(a, "_", "-"), strings.ReplaceAll(b, "_", "-"))
}

func oneOfHeaders(name string, list []string) bool {
	return slices.ContainsFunc(list, func(h string) bool { return sameHeader(h, name) })
}

// hopByHop headers belong to a connection (RFC 9110, 7.6.1), framing headers to
// the message as sent: changing them splits messages.
func hopByHop() []string {
	return []string{
		"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"TE", "Trailer", "Transfer-Encoding", "Upgrade", "Content-Length", "HTTP2-Settings",
	}
}

// gatewayOwned headers are written by the gateway toward the upstream, which
// believes them.
func gatewayOwned(name string) bool {
	return oneOfHeaders(name, []string{"Forwarded", "X-Real-IP", "X-Request-Id", "Traceparent", "Tracestate"}) ||
		hasHeaderPrefix(name, "X-Forwarded-") || hasHeaderPrefix(name, IdentityHeaderPrefix)
}

// IdentityHeaderPrefix starts the name of every header that tells an upstream who
// the caller is. The client's own are removed; no policy may set them.
const IdentityHeaderPrefix = "X-Portcullis-"

func hasHeaderPrefix(name, prefix string) bool {
	return len(name) >= len(prefix) && sameHeader(name[:len(prefix)], prefix)
}

// badScope says what is wrong with a scope (RFC 6749, 3.3).
func badScope(s string) string {
	ok := s != "" && len(s) <= 256
	for i := range len(s) {
		ok = ok && s[i] > ' ' && s[i] < 0x7f && s[i] != '"' && s[i] != '\\'
	}
	if !ok {
		return fmt.Sprintf("is %q: expected a scope of 1 to 256 printable characters without space, '\"' and '\\'", shorten(s))
	}
	return ""
}

// badWord says what is wrong with a role, group or audience.
func badWord(s string) string {
	if s == "" || len(s) > 512 || !printable(s) || strings.TrimSpace(s) != s {
		return fmt.Sprintf("is %q: expected 1 to 512 printable characters, no space at either end", shorten(s))
	}
	return ""
}

// badPrefix says what is wrong with an address range.
func badPrefix(s string) string {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return fmt.Sprintf("is %q: expected an address range such as 10.0.0.0/8 or 192.0.2.1/32", shorten(s))
	case p != p.Masked():
		return fmt.Sprintf("is %q: expected %q", s, p.Masked())
	case p.Addr().Is4In6():
		return fmt.Sprintf("is %q: expected the IPv4 form", s)
	case p.Bits() == 0:
		return fmt.Sprintf("is %q, which would believe every client: expected the ranges of your proxies", s)
	}
	return ""
}

// badOrigin says what is wrong with http://host:port.
func badOrigin(s string) string {
	const expected = "expected http://host:port or https://host:port"
	u, err := url.Parse(s)
	if err != nil || len(s) > 512 {
		return fmt.Sprintf("is %q: %s", shorten(s), expected)
	}
	host := u.Hostname()
	_, ipErr := netip.ParseAddr(host)
	switch {
	case u.Scheme != "http" && u.Scheme != "https", u.Opaque != "", host == "":
		return fmt.Sprintf("is %q: %s", shorten(s), expected)
	case u.User != nil:
		return "has user information: " + expected
	case u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.HasSuffix(s, "#"):
		return fmt.Sprintf("is %q: %s, without path, query and fragment", shorten(s), expected)
	case ipErr != nil && !isHost(host):
		return fmt.Sprintf("is %q: %q is no lower-case host name or address: %s", shorten(s), shorten(host), expected)
	case strings.HasSuffix(u.Host, ":") || u.Port() != "" && !isPort(u.Port()):
		return fmt.Sprintf("is %q: expected a port from 1 to 65535", shorten(s))
	}
	return ""
}

func isPort(s string) bool {
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' || n > 65535 {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n >= 1 && n <= 65535 && s[0] != '0'
}
