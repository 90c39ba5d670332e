package admission

import "portcullis.dev/portcullis/dataplane/exchange"

// notInTrailers are names that only a header section may hold, beside those that
// are Foreign or for one connection, and those with the prefixes below.
var notInTrailers = [...]string{
	"Max-Forwards", "Cache-Control", "Age", "Expires", "Date", "Pragma", "Range", "Vary", "Location", "Retry-After",
	"Authorization", "Cookie", "Set-Cookie", "WWW-Authenticate", "Authentication-Info", "Origin",
}

// Trailer tells whether a trailer field may be passed on: none that frames, routes,
// authenticates or says what the content is (RFC 9110, 6.5.1), and none that a
// client could not set in the header either.
func Trailer(name string) bool {
	if exchange.HopByHop(name) || Foreign(name) {
		return false
	}
	for _, forbidden := range &notInTrailers {
		if exchange.EqualFold(name, forbidden) {
			return false
		}
	}
	for _, prefix := range [...]string{"Content-", "If-", "Access-Control-"} {
		if len(name) >= len(prefix) && exchange.EqualFold(name[:len(prefix)], prefix) {
			// What was computed while the body was sent is what trailers are for.
			return exchange.EqualFold(name, "Content-Digest")
		}
	}
	return true
}
