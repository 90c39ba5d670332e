// Package httppath owns the one spelling of a request's path, host and field
// names: the front end brings requests to it, and what is configured is held to
// it, so that nothing declared is what no request has. It knows neither requests nor
// configuration.
package httppath

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrMalformed is wrapped by every error about what cannot be understood in
// exactly one way.
var ErrMalformed = errors.New("malformed request")

// MaxParams is how many segments one template of a path may capture.
const MaxParams = 16

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// Classes of bytes in a path as received.
const (
	refused   = iota
	plain     // stands for itself
	slash     // ends a segment
	percent   // begins an encoded byte
	encodable // browsers leave it raw although RFC 3986 does not allow it: encoded
)

// pathClass sorts a raw byte. A raw ';' is refused: servlet containers cut path
// parameters before they match and others do not, so policy and upstream would
// see different paths. Encoded, it is data to both.
func pathClass(c byte) int {
	switch {
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		return plain
	}
	switch c {
	case '-', '.', '_', '~', '!', '$', '&', '\'', '(', ')', '*', '+', ',', '=', ':', '@':
		return plain
	case '/':
		return slash
	case '%':
		return percent
	case '[', ']', '|', '^':
		return encodable
	}
	return refused
}

// Unreserved tells whether a byte means the same encoded and not (RFC 3986, 2.3).
func Unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// CanonicalPath gives the one spelling of a path that policies match and
// upstreams receive (RFC 3986, 6.2.2): unreserved characters are decoded, and so
// are those that a segment may hold raw (3.3: sub-delims without ';', ':' and '@'),
// which servers do not tell from their encoded form; other encodings have
// upper-case digits. It does not repair: a path that some server
// might read as another path is refused, among them dot segments in any
// spelling, empty segments, encoded slashes, backslashes, control characters,
// doubly encoded bytes, path parameters, and bytes that are not UTF-8. The
// result is its own canonical form. A path that already is costs no allocation.
func CanonicalPath(path string) (string, error) {
	if path == "" || path[0] != '/' {
		return "", malformed("path does not begin with a slash")
	}
	canonical, err := decodePath(path)
	if err != nil {
		return "", err
	}
	if err := checkSegments(canonical); err != nil {
		return "", err
	}
	return canonical, nil
}

func decodePath(path string) (string, error) {
	i := 0
	for i < len(path) {
		if k := pathClass(path[i]); k != plain && k != slash {
			break
		}
		i++
	}
	if i == len(path) {
		return path, nil
	}
	b := make([]byte, i, len(path)+8)
	copy(b, path)
	for ; i < len(path); i++ {
		c := path[i]
		switch pathClass(c) {
		case plain, slash:
			b = append(b, c)
		case encodable:
			b = appendEncoded(b, c)
		case percent:
			d, ok := Unhex(path, i+1)
			if !ok {
				return "", malformed("invalid percent-encoding in the path")
			}
			i += 2
			switch {
			case pathClass(d) == plain:
				b = append(b, d)
			case d == '/', d == '\\':
				return "", malformed("encoded slash or backslash in the path")
			case d < ' ', d == 0x7f:
				return "", malformed("encoded control character in the path")
			default:
				b = appendEncoded(b, d)
			}
		default:
			return "", malformed("byte %#02x in the path", c)
		}
	}
	if string(b) == path {
		return path, checkDecoded(path)
	}
	canonical := string(b)
	return canonical, checkDecoded(canonical)
}

// checkDecoded looks at what a server sees that decodes the canonical path once.
func checkDecoded(canonical string) error {
	for i := 0; i+4 < len(canonical); i++ {
		if canonical[i:i+3] == "%25" {
			if _, ok := Unhex(canonical, i+3); ok {
				return malformed("doubly encoded byte in the path")
			}
		}
	}
	decoded := Unescape(canonical)
	for i := 0; i < len(decoded); {
		r, size := utf8.DecodeRuneInString(decoded[i:])
		if r == utf8.RuneError && size == 1 {
			return malformed("the path is not UTF-8")
		}
		if unicode.IsControl(r) {
			return malformed("encoded control character in the path")
		}
		i += size
	}
	return nil
}

// checkSegments refuses what a server might resolve: "//", ".", "..", and dots
// before an encoded path parameter.
func checkSegments(path string) error {
	for rest := path[1:]; ; {
		segment, after, more := strings.Cut(rest, "/")
		if segment == "" && more {
			return malformed("empty segment in the path")
		}
		if strings.HasPrefix(segment, ".") {
			dots := segment
			if i := strings.Index(segment, "%3B"); i >= 0 {
				dots = segment[:i]
			}
			if dots == "." || dots == ".." {
				return malformed("dot segment in the path")
			}
		}
		if !more {
			return nil
		}
		rest = after
	}
}
