package httppath

import "strings"

const upperHex = "0123456789ABCDEF"

func appendEncoded(b []byte, c byte) []byte {
	return append(b, '%', upperHex[c>>4], upperHex[c&15])
}

// Unhex decodes the two hexadecimal digits of s at i.
func Unhex(s string, i int) (byte, bool) {
	if i+1 >= len(s) {
		return 0, false
	}
	hi, ok1 := hexDigit(s[i])
	lo, ok2 := hexDigit(s[i+1])
	return hi<<4 | lo, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// Unescape decodes the percent-encodings of s once and leaves invalid ones. It
// allocates only when there is one.
func Unescape(s string) string { return unescape(s, false) }

// UnescapeForm is Unescape for application/x-www-form-urlencoded, where '+' is a
// space.
func UnescapeForm(s string) string { return unescape(s, true) }

func unescape(s string, plus bool) string {
	special := "%"
	if plus {
		special = "%+"
	}
	i := strings.IndexAny(s, special)
	if i < 0 {
		return s
	}
	b := make([]byte, i, len(s))
	copy(b, s)
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case c == '%':
			if d, ok := Unhex(s, i+1); ok {
				b = append(b, d)
				i += 2
				continue
			}
			b = append(b, c)
		case c == '+' && plus:
			b = append(b, ' ')
		default:
			b = append(b, c)
		}
	}
	return string(b)
}
