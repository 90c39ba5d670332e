package upstream

import (
	"strconv"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// unit is that of a grpc-timeout (gRPC over HTTP/2, "Requests"); 0 for none.
func unit(letter byte) time.Duration {
	switch letter {
	case 'H':
		return time.Hour
	case 'M':
		return time.Minute
	case 'S':
		return time.Second
	case 'm':
		return time.Millisecond
	case 'u':
		return time.Microsecond
	case 'n':
		return time.Nanosecond
	}
	return 0
}

// grpcTimeout reads a grpc-timeout; false when it is none: then it bounds nothing,
// and the upstream will say so.
func grpcTimeout(text string) (time.Duration, bool) {
	if len(text) < 2 || len(text) > 9 {
		return 0, false
	}
	digits, each := text[:len(text)-1], unit(text[len(text)-1])
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || each == 0 {
		return 0, false
	}
	// Eight digits of hours do not fit.
	if n > uint64(1<<63-1)/uint64(each) {
		return 1<<63 - 1, true
	}
	return time.Duration(n) * each, true
}

// callersDeadline is the earlier of the deadline and what the caller of a gRPC
// method allows.
func callersDeadline(e *exchange.Exchange, deadline time.Time) time.Time {
	text, ok := e.Request.Header.Lookup("Grpc-Timeout")
	if !ok {
		return deadline
	}
	if allowed, ok := grpcTimeout(text); ok && allowed < deadline.Sub(e.Received) {
		return e.Received.Add(allowed)
	}
	return deadline
}

// grpcTimeoutText renders what is left, in milliseconds as far as eight digits
// reach; never 0, which some servers take for none.
func grpcTimeoutText(left time.Duration) string {
	ms := max(1, left.Milliseconds())
	if ms > 99_999_999 {
		return strconv.FormatInt(min(ms/1000, 99_999_999), 10) + "S"
	}
	return strconv.FormatInt(ms, 10) + "m"
}

// tellDeadline writes how long the upstream has into the request.
func tellDeadline(r *exchange.Request, header string, grpc bool, left time.Duration) {
	switch {
	case grpc:
		r.Header.Set("Grpc-Timeout", grpcTimeoutText(left))
	case header != "":
		r.Header.Set(header, strconv.FormatInt(max(1, left.Milliseconds()), 10))
	}
}
