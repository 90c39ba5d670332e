package http2

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// maxFields bounds the fields of a head; cookie crumbs count as one.
const maxFields = 200

// fieldOverhead is what RFC 9113, 6.5.2, counts for each field beside its text.
const fieldOverhead = 32

// head takes the fields of one header block as the decoder yields them, and vets
// each by RFC 9113, 8.2 and 8.3. It keeps the first flaw and reads on, since the
// decoder's state depends on the whole block. It belongs to the reader.
type head struct {
	to      *exchange.Header // nil: the block is decoded for the decoder's sake only
	limit   int
	trailer bool

	method, scheme, path, authority string
	given                           uint8 // pseudo-header fields seen
	regular                         bool  // a regular field was seen
	host                            string
	hosts                           int
	length                          int64 // of Content-Length, -1 without
	expect                          string
	expects                         int
	cookie                          string
	crumbs                          []byte // all cookie crumbs, when there are several
	fields, size                    int
	flaw                            error
	tooLarge                        bool
}

const (
	pseudoMethod = 1 << iota
	pseudoScheme
	pseudoPath
	pseudoAuthority
)

// begin prepares for a block.
func (h *head) begin(to *exchange.Header, limit int, trailer bool) {
	*h = head{to: to, limit: limit, trailer: trailer, length: -1, crumbs: h.crumbs[:0]}
}

func (h *head) bad(format string, args ...any) {
	if h.flaw == nil {
		h.flaw = fmt.Errorf("%w: "+format, append([]any{exchange.ErrMalformed}, args...)...)
	}
}

// field takes one field.
func (h *head) field(f hpack.HeaderField) {
	if h.to == nil || h.tooLarge {
		return
	}
	if h.size += len(f.Name) + len(f.Value) + fieldOverhead; h.size > h.limit {
		h.tooLarge = true
		return
	}
	if len(f.Name) > 0 && f.Name[0] == ':' {
		h.pseudo(f.Name, f.Value)
		return
	}
	h.regular = true
	if !validName(f.Name) {
		h.bad("invalid header field name %q", clip(f.Name))
		return
	}
	if !validValue(f.Value) {
		h.bad("invalid value of the field %s", f.Name)
		return
	}
	if h.special(f.Name, f.Value) {
		return
	}
	if h.fields++; h.fields > maxFields {
		h.tooLarge = true
		return
	}
	h.to.Add(f.Name, f.Value)
}

// pseudo takes a pseudo-header field: each at most once, none but those of a
// request, before all others (8.3).
func (h *head) pseudo(name, value string) {
	var which uint8
	var to *string
	switch name {
	case ":method":
		which, to = pseudoMethod, &h.method
	case ":scheme":
		which, to = pseudoScheme, &h.scheme
	case ":path":
		which, to = pseudoPath, &h.path
	case ":authority":
		which, to = pseudoAuthority, &h.authority
	default:
		h.bad("unknown pseudo-header field %q", clip(name))
		return
	}
	switch {
	case h.trailer:
		h.bad("pseudo-header field in a trailer")
	case h.regular:
		h.bad("pseudo-header field behind another field")
	case h.given&which != 0:
		h.bad("%s twice", name)
	case !validValue(value):
		h.bad("invalid %s", name)
	}
	h.given |= which
	*to = value
}

// special takes the fields that mean something here, and tells whether that is
// all they are for.
func (h *head) special(name, value string) bool {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		h.bad("connection-specific field %s", name)
	case "te":
		if value != "trailers" {
			h.bad("te other than trailers")
		}
	case "host":
		h.host = value
		h.hosts++
		return true
	case "content-length":
		n, err := strconv.ParseUint(value, 10, 62)
		if err != nil || h.length >= 0 || value[0] == '+' || h.trailer {
			h.bad("invalid content-length")
			return true
		}
		h.length = int64(n)
	case "expect":
		h.expect = value
		h.expects++
	case "cookie":
		if h.trailer {
			return false
		}
		switch {
		case h.cookie == "" && len(h.crumbs) == 0:
			h.cookie = value
		case len(h.crumbs) == 0:
			h.crumbs = append(append(append(h.crumbs, h.cookie...), "; "...), value...)
		default:
			h.crumbs = append(append(h.crumbs, "; "...), value...)
		}
		return true
	}
	return false
}

// end adds what was gathered: crumbs of cookies are one field for everybody
// behind (8.2.3).
func (h *head) end() {
	if h.to == nil {
		return
	}
	if len(h.crumbs) > 0 {
		h.to.Add("cookie", string(h.crumbs))
	} else if h.cookie != "" {
		h.to.Add("cookie", h.cookie)
	}
}

var (
	errMethod    = fmt.Errorf("%w: invalid method", exchange.ErrMalformed)
	errScheme    = fmt.Errorf("%w: scheme is neither http nor https", exchange.ErrMalformed)
	errMissing   = fmt.Errorf("%w: a pseudo-header field is missing", exchange.ErrMalformed)
	errAuthority = fmt.Errorf("%w: no authority", exchange.ErrMalformed)
	errDisagree  = fmt.Errorf("%w: :authority and host name different authorities", exchange.ErrMalformed)
	errSeveral   = fmt.Errorf("%w: more than one host field", exchange.ErrMalformed)
	errPath      = fmt.Errorf("%w: path does not begin with a slash", exchange.ErrMalformed)
	errLength    = fmt.Errorf("%w: the body's length is not its content-length", exchange.ErrMalformed)
)

// request fills in the request, as far as it can be understood, and returns why
// it is refused, or nil. ended tells that no body follows.
func (h *head) request(r *exchange.Request, ended bool) *admission.Refusal {
	r.Proto = "HTTP/2.0"
	if validMethod(h.method) {
		r.Method = h.method
	}
	if h.tooLarge {
		return &admission.Refusal{Status: 431, Reason: admission.ReasonTooLarge, Detail: fmt.Errorf("head beyond %d bytes or %d fields", h.limit, maxFields)}
	}
	if err := h.check(r, ended); err != nil {
		return &admission.Refusal{Status: 400, Reason: admission.ReasonMalformed, Detail: err}
	}
	if r.Method == "TRACE" {
		// It would show the client what is added toward the upstream.
		return &admission.Refusal{Status: 501, Reason: admission.ReasonMalformed, Detail: errors.New("method TRACE")}
	}
	if h.expects > 1 || h.expects == 1 && !exchange.EqualFold(h.expect, "100-continue") {
		return &admission.Refusal{Status: 417, Reason: admission.ReasonMalformed, Detail: errors.New("expectation other than 100-continue")}
	}
	return nil
}

func (h *head) check(r *exchange.Request, ended bool) (err error) {
	switch {
	case h.flaw != nil:
		return h.flaw
	case r.Method == "":
		return errMethod
	case r.Method == "CONNECT":
		return fmt.Errorf("%w: method CONNECT", exchange.ErrMalformed)
	case h.given&(pseudoScheme|pseudoPath) != pseudoScheme|pseudoPath:
		return errMissing
	case !exchange.EqualFold(h.scheme, "http") && !exchange.EqualFold(h.scheme, "https"):
		return errScheme
	case ended && h.length > 0:
		return errLength
	}
	if err := h.origin(r); err != nil {
		return err
	}
	r.Target = h.path
	if h.path == "" || h.path[0] != '/' && h.path != "*" {
		return errPath
	}
	r.Path, r.Query, err = exchange.ParseTarget(r.Method, h.path, r.Authority)
	return err
}

// origin finds whom the request is for. :authority and Host, when both are
// there, must agree (8.3.1): policies and upstream must not read different ones.
func (h *head) origin(r *exchange.Request) error {
	if h.hosts > 1 {
		return errSeveral
	}
	authority := h.authority
	if h.given&pseudoAuthority == 0 {
		authority = h.host
	}
	if authority == "" {
		return errAuthority
	}
	host, port, err := exchange.ParseHost(authority)
	if err != nil {
		return err
	}
	if h.hosts == 1 && h.host != authority {
		also, alsoPort, err := exchange.ParseHost(h.host)
		if err != nil {
			return err
		}
		if also != host || alsoPort != port {
			return errDisagree
		}
	}
	r.Host, r.Authority = host, host
	switch {
	case port == "":
	case len(authority) == len(host)+1+len(port) && strings.HasPrefix(authority, host):
		r.Authority = authority
	default:
		r.Authority = host + ":" + port
	}
	return nil
}

// validMethod admits upper-case letters and '-'. Methods are case-sensitive, but
// not to every server: "get" is refused, not guessed.
func validMethod(method string) bool {
	for i := range len(method) {
		if c := method[i]; (c < 'A' || c > 'Z') && c != '-' {
			return false
		}
	}
	return method != "" && len(method) <= 32
}

// validName admits tokens (RFC 9110, 5.6.2) in lower case (RFC 9113, 8.2.1).
func validName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if 'a' <= c && c <= 'z' || c == '-' || '0' <= c && c <= '9' {
			continue
		}
		if strings.IndexByte("!#$%&'*+.^_`|~", c) < 0 {
			return false
		}
	}
	return name != ""
}

// validValue admits what RFC 9110, 5.5, does: no control characters but tabs, no
// blank at either end.
func validValue(value string) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	if last := len(value) - 1; last >= 0 {
		return !blank(value[0]) && !blank(value[last])
	}
	return true
}

func blank(c byte) bool { return c == ' ' || c == '\t' }

// clip shortens what a client sent for a message.
func clip(s string) string { return s[:min(len(s), 64)] }
