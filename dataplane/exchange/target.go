package exchange

import (
	"errors"
	"fmt"
	"strings"

	"portcullis.dev/portcullis/pkg/httppath"
)

// ErrMalformed is wrapped by every error about a request that cannot be
// understood in exactly one way.
var ErrMalformed = httppath.ErrMalformed

// ErrTooLarge is wrapped by the error of a body that exceeds its limit.
var ErrTooLarge = errors.New("request too large")

// MaxQueryParameters is how many parameters a query may hold. Frameworks stop
// parsing somewhere, each elsewhere; beyond it policy and upstream would not
// agree on what was sent. 1000 is the lowest limit in wide use (PHP).
const MaxQueryParameters = 1000

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

// CanonicalPath is httppath.CanonicalPath: the one spelling of a path that
// policies match and upstreams receive.
func CanonicalPath(path string) (string, error) { return httppath.CanonicalPath(path) }

// ParseHost is httppath.ParseHost: the canonical host of a Host field, and its
// port.
func ParseHost(authority string) (host, port string, err error) { return httppath.ParseHost(authority) }

// Unescape decodes the percent-encodings of s once and leaves invalid ones. It
// allocates only when there is one.
func Unescape(s string) string { return httppath.Unescape(s) }

// ParseTarget splits a request target (RFC 9112, 3.2) into its canonical path
// (see CanonicalPath) and its raw query. Accepted are the origin form, the
// absolute form when its authority is the same host and port as authority, which
// is the Host field, and "*" for OPTIONS. The authority form is refused: nothing
// here tunnels.
func ParseTarget(method, target, authority string) (path, query string, err error) {
	if target == "*" {
		if method != "OPTIONS" {
			return "", "", malformed("asterisk form with %s", method)
		}
		return "*", "", nil
	}
	if target != "" && target[0] != '/' {
		if target, err = originForm(target, authority); err != nil {
			return "", "", err
		}
	}
	path = target
	if i := strings.IndexByte(target, '?'); i >= 0 {
		path, query = target[:i], target[i+1:]
	}
	if err := checkQuery(query); err != nil {
		return "", "", err
	}
	path, err = CanonicalPath(path)
	return path, query, err
}

// originForm turns the absolute form into the origin form.
func originForm(target, authority string) (string, error) {
	scheme, rest, ok := strings.Cut(target, "://")
	port := ""
	switch {
	case !ok:
		return "", malformed("target is neither a path nor an absolute URI")
	case EqualFold(scheme, "http"):
		port = "80"
	case EqualFold(scheme, "https"):
		port = "443"
	default:
		return "", malformed("scheme is neither http nor https")
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	named, namedPort, err := ParseHost(rest[:end])
	if err != nil {
		return "", err
	}
	host, hostPort, err := ParseHost(authority)
	if err != nil {
		return "", err
	}
	if namedPort == "" {
		namedPort = port
	}
	if hostPort == "" {
		hostPort = port
	}
	if named != host || namedPort != hostPort {
		return "", malformed("target and Host name different authorities")
	}
	if rest = rest[end:]; rest == "" || rest[0] == '?' {
		rest = "/" + rest
	}
	return rest, nil
}

// checkQuery admits printable ASCII without '#', whole percent-encodings, and
// no more parameters than everyone parses.
func checkQuery(query string) error {
	parameters := 1
	for i := 0; i < len(query); i++ {
		switch c := query[i]; {
		case c <= ' ', c >= 0x7f, c == '#':
			return malformed("byte %#02x in the query", c)
		case c == '%':
			if _, ok := httppath.Unhex(query, i+1); !ok {
				return malformed("invalid percent-encoding in the query")
			}
		case c == '&':
			if parameters++; parameters > MaxQueryParameters {
				return malformed("more than %d query parameters", MaxQueryParameters)
			}
		}
	}
	return nil
}
