package http1

import (
	"bytes"
	"fmt"
	"strings"

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

// parseFields reads field lines (RFC 9112, 5) from b[i:] up to the empty line,
// with which b must end. A folded line begins with a blank, which is no name.
func (h *head) parseFields(b []byte, i int, request *requestHead) error {
	for {
		if i+1 < len(b) && b[i] == '\r' && b[i+1] == '\n' {
			if i+2 != len(b) {
				return malformed("bytes after the head")
			}
			return nil
		}
		name, value, next, err := parseField(b, i)
		if err != nil {
			return err
		}
		if len(h.fields) == maxFields {
			return errManyFields
		}
		h.fields = append(h.fields, exchange.Field{Name: name, Value: value})
		if err := h.note(name, value, request); err != nil {
			return err
		}
		i = next
	}
}

// parseField reads the field line at b[i:] and returns where the next one begins.
func parseField(b []byte, i int) (name, value string, next int, err error) {
	colon := skip(b, i, inToken)
	if colon == i || colon >= len(b) || b[colon] != ':' {
		return "", "", 0, malformed("invalid header field name")
	}
	start := colon + 1
	for start < len(b) && (b[start] == ' ' || b[start] == '\t') {
		start++
	}
	end := valueEnd(b, start)
	if end+1 >= len(b) || b[end] != '\r' || b[end+1] != '\n' {
		return "", "", 0, malformed("invalid value of the field %s", string(b[i:colon]))
	}
	next = end + 2
	for end > start && (b[end-1] == ' ' || b[end-1] == '\t') {
		end--
	}
	return text(b[i:colon]), text(b[start:end]), next, nil
}

// note keeps what a field says of the connection and the framing.
func (h *head) note(name, value string, request *requestHead) error {
	switch len(name) {
	case 4:
		if request != nil && exchange.EqualFold(name, "Host") {
			request.host = value
			request.hosts++
		}
	case 6:
		if request != nil && exchange.EqualFold(name, "Expect") {
			request.expect = value
			request.expects++
		}
	case 7:
		if exchange.EqualFold(name, "Upgrade") {
			if h.upgrades++; h.upgrades > 1 {
				value = ""
			}
			h.upgrade = value
		}
	case 10:
		if exchange.EqualFold(name, "Connection") {
			h.options |= options(value)
		}
	case 14:
		if exchange.EqualFold(name, "Content-Length") {
			return h.noteLength(value)
		}
	case 17:
		if exchange.EqualFold(name, "Transfer-Encoding") {
			h.coding = value
			h.codings++
		}
	}
	return nil
}

// noteLength takes one Content-Length. Several that differ are never right; of
// several that are equal the framing decides.
func (h *head) noteLength(value string) error {
	n, ok := decimal(value)
	if !ok {
		return malformed("invalid Content-Length")
	}
	if h.lengths > 0 && n != h.contentLength {
		return malformed("several lengths")
	}
	h.contentLength = n
	h.lengths++
	return nil
}

// decimal reads 1*DIGIT, up to 2^62.
func decimal(s string) (int64, bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	n := int64(0)
	for i := 0; i < len(s); i++ {
		c := s[i] - '0'
		if c > 9 {
			return 0, false
		}
		n = n*10 + int64(c)
	}
	return n, true
}

// options reads the value of one Connection field.
func options(value string) (set uint8) {
	for value != "" {
		var option string
		option, value, _ = strings.Cut(value, ",")
		option = strings.Trim(option, " \t")
		switch {
		case exchange.EqualFold(option, "close"):
			set |= optionClose
		case exchange.EqualFold(option, "keep-alive"):
			set |= optionKeepAlive
		case exchange.EqualFold(option, "upgrade"):
			set |= optionUpgrade
		}
	}
	return set
}
