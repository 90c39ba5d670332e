package http1

import (
	"bytes"
	"fmt"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// maxFields is how many header fields one message may have; beyond it, what a
// recipient keeps differs from one to the other.
const maxFields = 200

// maxMethod bounds a method; the longest registered one has 17 letters.
const maxMethod = 32

var (
	errNoEnd      = malformed("bare line feed")
	errManyFields = fmt.Errorf("%w: more than %d header fields", exchange.ErrTooLarge, maxFields)
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{exchange.ErrMalformed}, args...)...)
}

// Connection options that mean something here (RFC 9110, 7.6.1).
const (
	optionClose = 1 << iota
	optionKeepAlive
	optionUpgrade
)

// head is what requests and responses have in common. Its strings lie in the
// bytes that were parsed, and hold as long as these do.
type head struct {
	// minor is that of HTTP/1.minor: 0 or 1.
	minor byte
	// fields are all fields in the order received, names as received.
	fields []exchange.Field
	// options are those listed by Connection.
	options uint8
	// length of the body in bytes; -1 when chunked; for a response also
	// untilClose, when it ends with the connection.
	length int64
	// upgrade is the value of the one Upgrade field, "" for none or several.
	upgrade string

	lengths, codings, upgrades int
	coding                     string
	contentLength              int64
}

// untilClose is the length of a response's body that only the end of the
// connection delimits (RFC 9112, 6.3, 8).
const untilClose = -2

// requestHead is one request head. The zero value is ready; parseRequest reuses
// its memory.
type requestHead struct {
	head
	method, target string
	// host is the value of the one Host field, not parsed.
	host  string
	hosts int
	// expect is the value of the one Expect field, "" for none; expects counts them.
	expect  string
	expects int
}

// responseHead is one response head. The zero value is ready; parseResponse
// reuses its memory.
type responseHead struct {
	head
	status int
}

// headEnd returns the length of the head at the beginning of b, its empty line
// included, or -1. The first known bytes hold no end. A line feed without a
// carriage return is refused at once, before the peer waits for an answer in
// vain.
func headEnd(b []byte, known int) (int, error) {
	for i := known; ; i++ {
		k := bytes.IndexByte(b[i:], '\n')
		if k < 0 {
			return -1, nil
		}
		i += k
		if i == 0 || b[i-1] != '\r' {
			return 0, errNoEnd
		}
		if i == 1 || i >= 3 && b[i-2] == '\n' {
			return i + 1, nil
		}
	}
}

// parseRequest reads a request head, which is all of b, its empty line included,
// by the letter of RFC 9112. What another parser might read differently is
// refused with an error that wraps exchange.ErrMalformed; more than maxFields
// fields with one that wraps exchange.ErrTooLarge. On an error, r holds what was
// read before.
func parseRequest(b []byte, r *requestHead) error {
	*r = requestHead{head: head{fields: r.fields[:0]}}
	// request-line = method SP request-target SP HTTP-version (RFC 9112, 3)
	i := skip(b, 0, inMethod)
	if i == 0 || i > maxMethod || i >= len(b) || b[i] != ' ' {
		return malformed("invalid method")
	}
	method := text(b[:i])
	start := i + 1
	i = skip(b, start, inTarget)
	if i == start || i >= len(b) || b[i] != ' ' {
		return malformed("invalid request target")
	}
	target := text(b[start:i])
	minor, ok := version(b[i+1:])
	if !ok || len(b) < i+1+len("HTTP/1.1\r\n") || b[i+9] != '\r' || b[i+10] != '\n' {
		return malformed("neither HTTP/1.1 nor HTTP/1.0")
	}
	r.method, r.target, r.minor = method, target, minor
	if err := r.parseFields(b, i+11, r); err != nil {
		return err
	}
	if r.hosts != 1 {
		return malformed("not exactly one Host field")
	}
	return r.frameRequest()
}

// parseResponse reads a response head as parseRequest does a request's. method is
// that of the request: the answer to HEAD has no body.
func parseResponse(b []byte, method string, r *responseHead) error {
	*r = responseHead{head: head{fields: r.fields[:0]}}
	// status-line = HTTP-version SP status-code SP [ reason-phrase ] (RFC 9112, 4).
	// Many leave out the last blank where there is no phrase.
	minor, ok := version(b)
	if !ok || len(b) < len("HTTP/1.1 200\r\n") || b[8] != ' ' {
		return malformed("neither HTTP/1.1 nor HTTP/1.0")
	}
	for _, c := range b[9:12] {
		if c < '0' || c > '9' {
			return malformed("invalid status")
		}
		r.status = r.status*10 + int(c-'0')
	}
	if r.status < 100 || r.status > 599 {
		return malformed("status %d", r.status)
	}
	i := 12
	if b[i] == ' ' {
		i = valueEnd(b, i)
	}
	if i+1 >= len(b) || b[i] != '\r' || b[i+1] != '\n' {
		return malformed("invalid reason phrase")
	}
	r.minor = minor
	if err := r.parseFields(b, i+2, nil); err != nil {
		return err
	}
	return r.frameResponse(method)
}

// version reads "HTTP/1.0" or "HTTP/1.1".
func version(b []byte) (minor byte, ok bool) {
	if len(b) < 8 || string(b[:7]) != "HTTP/1." || b[7]|1 != '1' {
		return 0, false
	}
	return b[7] - '0', true
}
