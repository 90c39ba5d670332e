package http1

import (
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
)

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
