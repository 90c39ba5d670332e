package nethttp

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// maxFields is how many header fields one request may have; beyond it, what a
// server keeps differs from server to server.
const maxFields = 200

// Reasons of the refusals that the front end asks for.
const (
	reasonMalformed = "request_malformed"
	reasonTooLarge  = "request_too_large"
	reasonInternal  = "internal_error"
)

// refusal is why a request does not reach the handler.
type refusal struct {
	status int
	reason string
	detail error
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %v", r.reason, r.detail) }

func bad(format string, args ...any) *refusal {
	return &refusal{http.StatusBadRequest, reasonMalformed, fmt.Errorf(format, args...)}
}

// head is one request head as it came, vetted.
type head struct {
	method, target, proto string
	fields                []exchange.Field
	host, authority       string
	path, query           string
	// upgrade is "" or "websocket".
	upgrade string
	// length of the body; -1 when it is chunked.
	length   int64
	received time.Time
	// early is set when more bytes came with the head than head and body hold.
	early bool
	// refused, when set, is all that is certain about the request.
	refused *refusal
}

// parseHead reads a request head, its empty line included, by the letter of
// RFC 9112: what another parser might read differently is refused. It fills what
// it can also when it refuses.
func parseHead(text string) *head {
	h := &head{}
	if err := h.parse(text); err != nil {
		h.refused = err
	}
	return h
}

func (h *head) parse(text string) *refusal {
	line, rest, ok := strings.Cut(text, "\r\n")
	if !ok {
		return bad("no line end")
	}
	if err := h.requestLine(line); err != nil {
		return err
	}
	h.fields = make([]exchange.Field, 0, min(strings.Count(rest, "\n"), maxFields))
	for {
		line, rest, ok = strings.Cut(rest, "\r\n")
		if !ok {
			return bad("the head does not end")
		}
		if line == "" {
			break
		}
		name, value, err := parseField(line)
		if err != nil {
			return err
		}
		if len(h.fields) == maxFields {
			return &refusal{http.StatusRequestHeaderFieldsTooLarge, reasonTooLarge, fmt.Errorf("more than %d header fields", maxFields)}
		}
		h.fields = append(h.fields, exchange.Field{Name: name, Value: value})
	}
	if rest != "" {
		return bad("bytes after the head")
	}
	return h.check()
}

// headEnd returns the length of the head at the beginning of b, or -1. The first
// known bytes hold no end. A line feed without a carriage return is refused at
// once, before the client waits for an answer in vain.
func headEnd(b []byte, known int) (int, *refusal) {
	for i := known; ; i++ {
		k := bytes.IndexByte(b[i:], '\n')
		if k < 0 {
			return -1, nil
		}
		i += k
		if i == 0 || b[i-1] != '\r' {
			return 0, bad("bare line feed")
		}
		if i == 1 || i >= 3 && b[i-2] == '\n' {
			return i + 1, nil
		}
	}
}

// requestLine reads "METHOD target HTTP/1.x", single spaces between (RFC 9112, 3).
func (h *head) requestLine(line string) *refusal {
	method, rest, _ := strings.Cut(line, " ")
	target, proto, ok := strings.Cut(rest, " ")
	if !ok || !validMethod(method) {
		return bad("invalid request line")
	}
	for i := 0; i < len(target); i++ {
		if target[i] <= ' ' || target[i] >= 0x7f {
			return bad("byte %#02x in the target", target[i])
		}
	}
	if proto != "HTTP/1.1" && proto != "HTTP/1.0" {
		return bad("neither HTTP/1.1 nor HTTP/1.0")
	}
	h.method, h.target, h.proto = method, target, proto
	return nil
}

// validMethod admits upper-case letters and '-' (VERSION-CONTROL). Methods are
// case-sensitive, but not to every server: "get" is refused, not guessed.
func validMethod(method string) bool {
	for i := 0; i < len(method); i++ {
		if c := method[i]; (c < 'A' || c > 'Z') && c != '-' {
			return false
		}
	}
	return method != "" && len(method) <= 32
}

// parseField reads one field line (RFC 9112, 5). A folded line begins with a
// blank, which is no name.
func parseField(line string) (name, value string, err *refusal) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || !token(name) {
		return "", "", bad("invalid header field name")
	}
	value = strings.Trim(value, " \t")
	for i := 0; i < len(value); i++ {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return "", "", bad("byte %#02x in the field %s", c, name)
		}
	}
	return name, value, nil
}

// token is that of RFC 9110, 5.6.2.
func token(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// check takes together what the fields say of host, target and framing.
func (h *head) check() *refusal {
	header := exchange.HeaderOf(h.fields...)
	if header.Count("Host") != 1 {
		return bad("not exactly one Host field")
	}
	host, port, err := exchange.ParseHost(header.Get("Host"))
	if err != nil {
		return bad("%w", err)
	}
	h.host, h.authority = host, host
	if port != "" {
		h.authority = host + ":" + port
	}
	if err := h.framing(&header); err != nil {
		return err
	}
	if h.path, h.query, err = exchange.ParseTarget(h.method, h.target, header.Get("Host")); err != nil {
		return bad("%w", err)
	}
	if h.method == http.MethodConnect || h.method == http.MethodTrace {
		// TRACE would show the client what is added toward the upstream.
		return &refusal{http.StatusNotImplemented, reasonMalformed, fmt.Errorf("method %s", h.method)}
	}
	if expect, ok := header.Lookup("Expect"); ok && (header.Count("Expect") > 1 || !exchange.EqualFold(expect, "100-continue")) {
		return &refusal{http.StatusExpectationFailed, reasonMalformed, fmt.Errorf("expectation other than 100-continue")}
	}
	if h.method == http.MethodGet && h.proto == "HTTP/1.1" && h.length == 0 && header.Count("Upgrade") == 1 &&
		exchange.EqualFold(header.Get("Upgrade"), "websocket") && listed(&header, "Connection", "upgrade") {
		h.upgrade = "websocket"
	}
	return nil
}

// framing finds the length of the body (RFC 9112, 6.3). Where the RFC lets a
// server choose between two readings it refuses both.
func (h *head) framing(header *exchange.Header) *refusal {
	lengths, codings := header.Count("Content-Length"), header.Count("Transfer-Encoding")
	switch {
	case codings > 0 && lengths > 0:
		return bad("both Content-Length and Transfer-Encoding")
	case codings > 1 || codings == 1 && !exchange.EqualFold(header.Get("Transfer-Encoding"), "chunked"):
		return bad("a transfer coding other than chunked, once")
	case codings == 1 && h.proto == "HTTP/1.0":
		return bad("Transfer-Encoding in HTTP/1.0")
	case codings == 1:
		h.length = -1
	case lengths > 1:
		return bad("several Content-Length fields")
	case lengths == 1:
		text := header.Get("Content-Length")
		n, err := strconv.ParseUint(text, 10, 62)
		if err != nil || text[0] == '+' {
			return bad("invalid Content-Length")
		}
		h.length = int64(n)
	}
	return nil
}

// listed tells whether a comma-separated field names the option.
func listed(header *exchange.Header, field, option string) bool {
	for value := range header.Values(field) {
		for item := range strings.SplitSeq(value, ",") {
			if exchange.EqualFold(strings.Trim(item, " \t"), option) {
				return true
			}
		}
	}
	return false
}
