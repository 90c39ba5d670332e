package http2

import (
	"errors"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// errUnwritable means that a field or a target which our own code made cannot
// stand in a head. It goes nowhere.
var errUnwritable = errors.New("a byte that cannot stand in a head")

// appendRequest appends the header block of a request. It uses the static table
// and literals only, as answers to clients do (see appendStatus): a block depends
// on no other, so that no caller's credential is ever in a table that another
// caller's request is written with. length is that of the body: 0 for none, -1
// when it is not known. Fields that belong to the connection stay behind, and
// Expect: we read the client's body when we are ready to.
func appendRequest(dst []byte, scheme string, r *exchange.Request, length int64) ([]byte, error) {
	if !validMethod(r.Method) || !visible(r.Path) || r.Query != "" && !visible(r.Query) || !visible(r.Authority) {
		return dst, errUnwritable
	}
	switch r.Method {
	case "GET":
		dst = append(dst, 0x80|2)
	case "POST":
		dst = append(dst, 0x80|3)
	default:
		dst = appendText(appendInt(dst, literal, 4, 2), r.Method)
	}
	if scheme == "https" {
		dst = append(dst, 0x80|7)
	} else {
		dst = append(dst, 0x80|6)
	}
	dst = appendText(appendInt(dst, literal, 4, 1), r.Authority)
	dst = appendPath(dst, r)
	for _, f := range r.Header.Fields() {
		if exchange.HopByHop(f.Name) || exchange.EqualFold(f.Name, "Host") || exchange.EqualFold(f.Name, "Expect") {
			continue
		}
		if !token(f.Name) || !validValue(f.Value) {
			return dst, errUnwritable
		}
		dst = appendRequestField(dst, f.Name, f.Value)
	}
	// Servers of gRPC want to hear that trailers are understood.
	dst = append(dst, literal, 2, 't', 'e', 8, 't', 'r', 'a', 'i', 'l', 'e', 'r', 's')
	if length > 0 || length == 0 && (r.Method == "POST" || r.Method == "PUT" || r.Method == "PATCH") {
		dst = appendLength(dst, length)
	}
	return dst, nil
}

// appendPath appends the pseudo-header field :path.
func appendPath(dst []byte, r *exchange.Request) []byte {
	if r.Query == "" {
		if r.Path == "/" {
			return append(dst, 0x80|4)
		}
		return appendText(appendInt(dst, literal, 4, 4), r.Path)
	}
	dst = appendInt(dst, literal, 4, 4)
	dst = appendInt(dst, 0, 7, uint64(len(r.Path)+1+len(r.Query)))
	dst = append(append(dst, r.Path...), '?')
	return append(dst, r.Query...)
}

// appendText appends a string literal as it is (RFC 7541, 5.2).
func appendText(dst []byte, s string) []byte {
	return append(appendInt(dst, 0, 7, uint64(len(s))), s...)
}

// appendRequestField appends a field; its name becomes lower case.
func appendRequestField(dst []byte, name, value string) []byte {
	index, how := requestName(name)
	if index > 0 {
		return appendText(appendInt(dst, how, 4, index), value)
	}
	dst = appendInt(append(dst, how), 0, 7, uint64(len(name)))
	for i := range len(name) {
		dst = append(dst, lower(name[i]))
	}
	return appendText(dst, value)
}

// requestName returns the name's index in the static table (RFC 7541, appendix A),
// 0 when it has none, and how the field is written. Any name that is not known to
// be harmless may be that of a credential: proxies behind must not put it in a
// table either (7.1.3).
func requestName(name string) (index uint64, how byte) {
	var text [24]byte
	if !fold(text[:], name) {
		return 0, neverIndexed
	}
	switch string(text[:len(name)]) {
	case "accept-charset":
		return 15, literal
	case "accept-encoding":
		return 16, literal
	case "accept-language":
		return 17, literal
	case "accept":
		return 19, literal
	case "authorization":
		return 23, neverIndexed
	case "cache-control":
		return 24, literal
	case "content-disposition":
		return 25, literal
	case "content-encoding":
		return 26, literal
	case "content-language":
		return 27, literal
	case "content-type":
		return 31, literal
	case "cookie":
		return 32, neverIndexed
	case "date":
		return 33, literal
	case "if-match":
		return 39, literal
	case "if-modified-since":
		return 40, literal
	case "if-none-match":
		return 41, literal
	case "if-range":
		return 42, literal
	case "if-unmodified-since":
		return 43, literal
	case "range":
		return 50, literal
	case "referer":
		return 51, neverIndexed
	case "user-agent":
		return 58, literal
	case "via":
		return 60, literal
	}
	return 0, neverIndexed
}

// appendRequestTrailer appends the trailer fields of a request.
func appendRequestTrailer(dst []byte, trailer *exchange.Header) ([]byte, error) {
	for _, f := range trailer.Fields() {
		if exchange.HopByHop(f.Name) {
			continue
		}
		if !token(f.Name) || !validValue(f.Value) {
			return dst, errUnwritable
		}
		dst = appendRequestField(dst, f.Name, f.Value)
	}
	return dst, nil
}

// visible admits visible ASCII, at least one byte of it.
func visible(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return s != ""
}

// token is validName for names that are yet to become lower case.
func token(name string) bool {
	for i := range len(name) {
		c := lower(name[i])
		if ('a' > c || c > 'z') && c != '-' && ('0' > c || c > '9') && !validName(name[i:i+1]) {
			return false
		}
	}
	return name != ""
}
