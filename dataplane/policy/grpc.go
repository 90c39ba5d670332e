package policy

import (
	"strconv"
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// ResponseTo is Response in the form that the request's client understands: a
// client of gRPC gets HTTP status 200 and the refusal as grpc-status and
// grpc-message in the head ("Trailers-Only" of gRPC over HTTP/2), with the
// challenges and Retry-After of any other refusal.
func (d *Denial) ResponseTo(r *exchange.Request, requestID, traceID string) *exchange.Response {
	contentType := r.Header.Get("Content-Type")
	if !IsGRPC(contentType) {
		return d.Response(requestID, traceID)
	}
	detail := d.Detail
	if detail == "" {
		detail = d.Reason.Title() + "."
	}
	answer := &exchange.Response{
		Status: 200,
		Header: exchange.HeaderOf(
			exchange.Field{Name: "Content-Type", Value: contentType},
			exchange.Field{Name: "Grpc-Status", Value: strconv.Itoa(d.GRPCStatus())},
			exchange.Field{Name: "Grpc-Message", Value: grpcMessage(string(d.Reason) + ": " + detail)},
			exchange.Field{Name: "Cache-Control", Value: "no-store"},
		),
	}
	d.addTo(&answer.Header)
	return answer
}

// IsGRPC tells whether a content type is one of gRPC's or gRPC-Web's.
func IsGRPC(contentType string) bool {
	const grpc = "application/grpc"
	if len(contentType) < len(grpc) || !exchange.EqualFold(contentType[:len(grpc)], grpc) {
		return false
	}
	rest := contentType[len(grpc):]
	return rest == "" || rest[0] == '+' || rest[0] == ';' || rest[0] == ' ' ||
		len(rest) >= 4 && exchange.EqualFold(rest[:4], "-web")
}

// GRPCStatus returns the refusal's gRPC status code. It is what gRPC's
// "HTTP to gRPC Status Code Mapping" (doc/http-grpc-status-mapping.md) has clients
// make of the HTTP status, but where the gateway knows better than a client could:
// a limit is RESOURCE_EXHAUSTED and not to be tried again at once, and what took
// too long DEADLINE_EXCEEDED.
func (d *Denial) GRPCStatus() int {
	const (
		canceled          = 1
		unknown           = 2
		deadlineExceeded  = 4
		permissionDenied  = 7
		resourceExhausted = 8
		unimplemented     = 12
		internal          = 13
		unavailable       = 14
		unauthenticated   = 16
	)
	switch d.StatusCode() {
	case 400, 431, 500:
		return internal
	case 401:
		return unauthenticated
	case 403:
		return permissionDenied
	case 404:
		return unimplemented
	case 413, 429:
		return resourceExhausted
	case 499:
		return canceled
	case 502, 503:
		return unavailable
	case 504:
		return deadlineExceeded
	}
	return unknown
}

// grpcMessage encodes a Status-Message: all but printable ASCII, and '%', is
// percent-encoded (gRPC over HTTP/2, "Responses").
func grpcMessage(s string) string {
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteString("%" + digits[c>>4:c>>4+1] + digits[c&15:c&15+1])
		}
	}
	return b.String()
}
