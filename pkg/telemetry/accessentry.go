package telemetry

import (
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// AccessEntry is one request in the access log. Fields that are zero are left out,
// save time, status and duration. It holds no query and no header, where secrets
// travel.
type AccessEntry struct {
	Time      time.Time
	RequestID string
	TraceID   string
	Node      string
	Peer      netip.Addr
	Method    string
	Scheme    string
	Host      string
	Path      string
	Protocol  string
	Status    int
	// Reason is the refusal's; empty when the request was allowed.
	Reason string
	// Cut is why the answer was cut short; empty when it was sent whole.
	Cut       string
	Workspace string
	Route     string
	// Epoch is written when it is not 1.
	Epoch    uint64
	Revision int64
	// AuthMethod, Consumer, Subject and Issuer say who called.
	AuthMethod string
	Consumer   string
	Subject    string
	Issuer     string
	Upstream   string
	// Duration is the whole request's, UpstreamDuration the upstream's share.
	Duration         time.Duration
	UpstreamDuration time.Duration
	BytesSent        int64
}

// Append writes the entry as one line of JSON to b. Durations are in seconds.
func (e *AccessEntry) Append(b []byte) []byte {
	b = append(b, `{"time":"`...)
	b = e.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = text(b, "request_id", e.RequestID)
	b = text(b, "trace_id", e.TraceID)
	b = text(b, "node", e.Node)
	if e.Peer.IsValid() {
		b = append(b, `,"peer":"`...)
		// The zone of an address is the peer's to choose nowhere, but it is text.
		b = e.Peer.WithZone("").AppendTo(b)
		b = append(b, '"')
	}
	b = text(b, "method", e.Method)
	b = text(b, "scheme", e.Scheme)
	b = text(b, "host", e.Host)
	b = text(b, "path", e.Path)
	b = text(b, "protocol", e.Protocol)
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(e.Status), 10)
	b = text(b, "reason", e.Reason)
	b = text(b, "cut", e.Cut)
	b = text(b, "workspace", e.Workspace)
	b = text(b, "route", e.Route)
	if e.Epoch > 1 {
		b = append(b, `,"epoch":`...)
		b = strconv.AppendUint(b, e.Epoch, 10)
	}
	b = number(b, "revision", e.Revision)
	b = text(b, "auth_method", e.AuthMethod)
	b = text(b, "consumer", e.Consumer)
	b = text(b, "subject", e.Subject)
	b = text(b, "issuer", e.Issuer)
	b = text(b, "upstream", e.Upstream)
	b = append(b, `,"duration":`...)
	b = seconds(b, e.Duration)
	if e.UpstreamDuration > 0 {
		b = append(b, `,"upstream_duration":`...)
		b = seconds(b, e.UpstreamDuration)
	}
	b = number(b, "bytes_sent", e.BytesSent)
	return append(b, "}\n"...)
}

func number(b []byte, name string, n int64) []byte {
	if n == 0 {
		return b
	}
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":`...)
	return strconv.AppendInt(b, n, 10)
}

func seconds(b []byte, d time.Duration) []byte {
	return strconv.AppendFloat(b, d.Seconds(), 'f', -1, 64)
}

func text(b []byte, name, s string) []byte {
	if s == "" {
		return b
	}
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":"`...)
	return append(quoted(b, s), '"')
}

// quoted escapes by RFC 8259, section 7. What is no UTF-8 becomes U+FFFD, so that
// a line is valid whatever a client sent; control characters are escaped, so that
// nobody writes lines of his own, and so are DEL and the C1 controls, which
// terminals obey.
func quoted(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	plain := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c < 0x7f && c != '"' && c != '\\' {
			i++
			continue
		}
		size, escape := 1, rune(c)
		if c >= utf8.RuneSelf {
			escape, size = utf8.DecodeRuneInString(s[i:])
			// Valid and no C1 control: it stays as it is.
			if escape >= 0xa0 && (escape != utf8.RuneError || size > 1) {
				i += size
				continue
			}
		}
		b = append(b, s[plain:i]...)
		if c == '"' || c == '\\' {
			b = append(b, '\\', c)
		} else {
			b = append(b, '\\', 'u', digits[escape>>12&0xf], digits[escape>>8&0xf], digits[escape>>4&0xf], digits[escape&0xf])
		}
		i += size
		plain = i
	}
	return append(b, s[plain:]...)
}
