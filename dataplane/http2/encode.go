package http2

import (
	"net/http"
	"strconv"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// The encoder of header blocks (RFC 7541) uses the static table and literals
// only. So a block depends on no other: it is encoded outside of the
// connection's lock, no secret shares a compression context with what an attacker
// chooses, and nothing is allocated. nginx and HAProxy do the same.

const (
	literal      = 0x00 // without indexing (6.2.2)
	neverIndexed = 0x10 // 6.2.3
	// tableSizeZero says that the dynamic table is not used (6.3).
	tableSizeZero = 0x20
)

// appendStatus appends the pseudo-header field :status.
func appendStatus(dst []byte, status int) []byte {
	switch status {
	case 200:
		return append(dst, 0x80|8)
	case 204:
		return append(dst, 0x80|9)
	case 206:
		return append(dst, 0x80|10)
	case 304:
		return append(dst, 0x80|11)
	case 400:
		return append(dst, 0x80|12)
	case 404:
		return append(dst, 0x80|13)
	case 500:
		return append(dst, 0x80|14)
	}
	dst = append(dst, literal|8, 3)
	return append(dst, byte('0'+status/100), byte('0'+status/10%10), byte('0'+status%10))
}

// appendField appends a field; its name becomes lower case (RFC 9113, 8.2).
func appendField(dst []byte, name, value string) []byte {
	if index, how := staticName(name); index > 0 {
		dst = appendInt(dst, how, 4, index)
	} else {
		dst = append(dst, how)
		dst = appendInt(dst, 0, 7, uint64(len(name)))
		for i := range len(name) {
			dst = append(dst, lower(name[i]))
		}
	}
	dst = appendInt(dst, 0, 7, uint64(len(value)))
	return append(dst, value...)
}

// appendLength appends Content-Length.
func appendLength(dst []byte, n int64) []byte {
	var text [20]byte
	digits := strconv.AppendInt(text[:0], n, 10)
	dst = appendInt(dst, literal, 4, 28)
	dst = append(dst, byte(len(digits)))
	return append(dst, digits...)
}

// appendInt appends an integer with a prefix of so many bits below the pattern
// (RFC 7541, 5.1).
func appendInt(dst []byte, pattern byte, prefix uint, n uint64) []byte {
	most := uint64(1)<<prefix - 1
	if n < most {
		return append(dst, pattern|byte(n))
	}
	dst = append(dst, pattern|byte(most))
	for n -= most; n >= 0x80; n >>= 7 {
		dst = append(dst, 0x80|byte(n))
	}
	return append(dst, byte(n))
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// fold writes a name to text in lower case; it reports false when there is no room.
func fold(text []byte, name string) bool {
	if len(name) > len(text) {
		return false
	}
	for i := range len(name) {
		text[i] = lower(name[i])
	}
	return true
}

// staticName returns the name's index in the static table (RFC 7541, appendix A),
// 0 when it has none, and how the field is written.
func staticName(name string) (index uint64, how byte) {
	var text [32]byte
	if !fold(text[:], name) {
		return 0, literal
	}
	switch string(text[:len(name)]) {
	case "accept-ranges":
		return 18, literal
	case "access-control-allow-origin":
		return 20, literal
	case "age":
		return 21, literal
	case "allow":
		return 22, literal
	case "cache-control":
		return 24, literal
	case "content-disposition":
		return 25, literal
	case "content-encoding":
		return 26, literal
	case "content-language":
		return 27, literal
	case "content-length":
		return 28, literal
	case "content-location":
		return 29, literal
	case "content-range":
		return 30, literal
	case "content-type":
		return 31, literal
	case "date":
		return 33, literal
	case "etag":
		return 34, literal
	case "expires":
		return 36, literal
	case "last-modified":
		return 44, literal
	case "link":
		return 45, literal
	case "location":
		return 46, literal
	case "retry-after":
		return 53, literal
	case "server":
		return 54, literal
	case "set-cookie":
		return 55, neverIndexed
	case "strict-transport-security":
		return 56, literal
	case "vary":
		return 59, literal
	case "via":
		return 60, literal
	case "www-authenticate":
		return 61, literal
	}
	return 0, literal
}

// date is the value of a Date field of one second.
type date struct {
	unix int64
	text string
}

// dateAt returns a value of Date (RFC 9110, 6.6.1), made once a second.
func (s *Server) dateAt(now time.Time) string {
	d := s.date.Load()
	if unix := now.Unix(); d == nil || d.unix != unix {
		d = &date{unix, now.UTC().Format(http.TimeFormat)}
		s.date.Store(d)
	}
	return d.text
}

// appendHead appends the fields of an answer; today is Date where it has none.
func appendHead(dst []byte, e *exchange.Exchange, resp *exchange.Response, today string) []byte {
	dst = appendStatus(dst, resp.Status)
	dated := false
	for _, f := range resp.Header.Fields() {
		dated = dated || exchange.EqualFold(f.Name, "Date")
		if !exchange.HopByHop(f.Name) && !exchange.EqualFold(f.Name, "X-Request-Id") {
			dst = appendField(dst, f.Name, f.Value)
		}
	}
	dst = appendField(dst, "x-request-id", e.ID)
	if !dated {
		dst = appendField(dst, "date", today)
	}
	switch {
	case resp.Status == 204, resp.Status == 304:
	case resp.Body.Length == 0 && resp.Header.Get("Grpc-Status") != "":
		// A head of gRPC that is the whole answer says no length.
	case resp.Body.Length > 0 || resp.Body.Length == 0 && resp.Body.Reader == nil && e.Request.Method != "HEAD":
		dst = appendLength(dst, resp.Body.Length)
	}
	return dst
}

// appendTrailer appends trailer fields.
func appendTrailer(dst []byte, trailer *exchange.Header) []byte {
	for _, f := range trailer.Fields() {
		if !exchange.HopByHop(f.Name) {
			dst = appendField(dst, f.Name, f.Value)
		}
	}
	return dst
}
