package http1

import (
	"errors"
	"strconv"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// errUnwritable means that a field or a target which our own code made would
// break the framing. It goes nowhere.
var errUnwritable = errors.New("a byte that cannot stand in a head")

// appendRequest appends a request head. length is that of the body: 0 for none,
// -1 when it is not known. Names, values and order of the fields go out as they
// stand in the request, but those that belong to the connection, and Expect: we
// read the client's body when we are ready to.
func appendRequest(b []byte, r *exchange.Request, length int64) ([]byte, error) {
	if !allOf(r.Method, inMethod) || !allOf(r.Path, inTarget) || r.Query != "" && !allOf(r.Query, inTarget) || !allOf(r.Authority, inTarget) {
		return b, errUnwritable
	}
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, r.Path...)
	if r.Query != "" {
		b = append(b, '?')
		b = append(b, r.Query...)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, r.Authority...)
	b = append(b, "\r\n"...)
	for _, f := range r.Header.Fields() {
		if exchange.HopByHop(f.Name) || len(f.Name) == 4 && exchange.EqualFold(f.Name, "Host") || len(f.Name) == 6 && exchange.EqualFold(f.Name, "Expect") {
			continue
		}
		if !allOf(f.Name, inToken) || valueEnd(bytesOf(f.Value), 0) != len(f.Value) {
			return b, errUnwritable
		}
		b = append(b, f.Name...)
		b = append(b, ": "...)
		b = append(b, f.Value...)
		b = append(b, "\r\n"...)
	}
	switch {
	case r.Upgrade != "":
		if !allOf(r.Upgrade, inToken) {
			return b, errUnwritable
		}
		b = append(b, "Connection: Upgrade\r\nUpgrade: "...)
		b = append(b, r.Upgrade...)
		b = append(b, "\r\n"...)
	case length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case length > 0 || r.Method == "POST" || r.Method == "PUT" || r.Method == "PATCH":
		// Servers that expect a body want to hear that there is none (RFC 9110, 8.6).
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, length, 10)
		b = append(b, "\r\n"...)
	}
	return append(b, "\r\n"...), nil
}

// allOf tells whether s is not empty and all its bytes are of the class.
func allOf(s string, class uint8) bool {
	return s != "" && skip(bytesOf(s), 0, class) == len(s)
}
