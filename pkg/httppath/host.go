package httppath

import (
	"net/netip"
	"strconv"
	"strings"
)

// ParseHost splits the value of a Host field (RFC 9110, 7.2) into its canonical
// host (lower case, no trailing dot, IPv6 in brackets and shortest form) and its
// port, "" when it names none. User information, zones, percent-encodings and
// bytes outside of ASCII are refused: a client sends international names in
// their ASCII form. A canonical host costs no allocation.
func ParseHost(authority string) (host, port string, err error) {
	if strings.HasPrefix(authority, "[") {
		end := strings.IndexByte(authority, ']')
		if end < 0 {
			return "", "", malformed("unclosed bracket in the host")
		}
		addr, err := netip.ParseAddr(authority[1:end])
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", "", malformed("invalid IPv6 address in the host")
		}
		if port, err = parsePort(authority[end+1:]); err != nil {
			return "", "", err
		}
		return "[" + addr.String() + "]", port, nil
	}
	host = authority
	if i := strings.IndexByte(authority, ':'); i >= 0 {
		host = authority[:i]
		if port, err = parsePort(authority[i:]); err != nil {
			return "", "", err
		}
	}
	host = strings.TrimSuffix(host, ".")
	if err := checkName(host); err != nil {
		return "", "", err
	}
	return lowerASCII(host), port, nil
}

// parsePort reads "" or ":port".
func parsePort(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	n, err := strconv.ParseUint(s[1:], 10, 16)
	if s[0] != ':' || err != nil || n == 0 || s[1] == '0' || s[1] == '+' {
		return "", malformed("invalid port in the host")
	}
	return s[1:], nil
}

// checkName admits host names as DNS carries them (RFC 1123, 2.1), and the
// underscore, which private names use.
func checkName(host string) error {
	if host == "" || len(host) > 253 {
		return malformed("empty or overlong host")
	}
	label := 0
	for i := 0; i < len(host); i++ {
		c := host[i]
		switch {
		case c == '.':
			if label == 0 {
				return malformed("empty label in the host")
			}
			label = 0
			continue
		case c == '-', c == '_', '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		default:
			return malformed("byte %#02x in the host", c)
		}
		if label++; label > 63 {
			return malformed("overlong label in the host")
		}
	}
	if label == 0 {
		return malformed("empty label in the host")
	}
	return nil
}

// lowerASCII is strings.ToLower without Unicode, whose folding maps the Kelvin
// sign to k.
func lowerASCII(s string) string {
	for i := 0; i < len(s); i++ {
		if 'A' <= s[i] && s[i] <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] |= 0x20
				}
			}
			return string(b)
		}
	}
	return s
}
