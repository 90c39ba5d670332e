package telemetry

import (
	"encoding/hex"
	"errors"
)

// TraceParentSize is the length of a traceparent field in bytes.
const TraceParentSize = 55

// ErrTraceParent says that a traceparent field is not valid.
var ErrTraceParent = errors.New("traceparent is not valid")

// TraceParent names a span across processes: W3C Trace Context, section 3.2. The
// zero TraceParent is none.
type TraceParent struct {
	TraceID [16]byte
	SpanID  [8]byte
	Flags   byte
}

// The flags of a TraceParent.
const (
	FlagSampled byte = 1
	FlagRandom  byte = 2 // Trace Context Level 2, section 3.2.2.5.2
)

// IsZero reports whether there is no span.
func (p TraceParent) IsZero() bool { return p.TraceID == [16]byte{} || p.SpanID == [8]byte{} }

// Sampled reports whether whoever made the span may have recorded it.
func (p TraceParent) Sampled() bool { return p.Flags&FlagSampled != 0 }

// Append writes the traceparent field, version 00, to b.
func (p TraceParent) Append(b []byte) []byte {
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, p.TraceID[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, p.SpanID[:])
	const digits = "0123456789abcdef"
	return append(b, '-', digits[p.Flags>>4], digits[p.Flags&0xf])
}

// String returns the traceparent field.
func (p TraceParent) String() string { return string(p.Append(make([]byte, 0, TraceParentSize))) }

// TraceIDString returns the trace id in hex.
func (p TraceParent) TraceIDString() string { return hex.EncodeToString(p.TraceID[:]) }

// ParseTraceParent reads a traceparent field. Of a later version it reads what
// version 00 defines and passes over the rest, as section 4.3 asks. It allocates
// nothing.
func ParseTraceParent(s string) (TraceParent, error) {
	var p TraceParent
	var version, flags [1]byte
	switch {
	case len(s) < TraceParentSize, s[2] != '-', s[35] != '-', s[52] != '-':
		return p, ErrTraceParent
	case !lowerHex(version[:], s[0:2]), version[0] == 0xff:
		return p, ErrTraceParent
	case version[0] == 0 && len(s) != TraceParentSize:
		return p, ErrTraceParent
	case len(s) > TraceParentSize && s[TraceParentSize] != '-':
		return p, ErrTraceParent
	case !lowerHex(p.TraceID[:], s[3:35]), !lowerHex(p.SpanID[:], s[36:52]), !lowerHex(flags[:], s[53:55]):
		return TraceParent{}, ErrTraceParent
	case p.IsZero():
		return TraceParent{}, ErrTraceParent
	}
	p.Flags = flags[0] & (FlagSampled | FlagRandom)
	return p, nil
}

// lowerHex fills dst; upper case is not valid here, so encoding/hex is too kind.
func lowerHex(dst []byte, s string) bool {
	for i := range dst {
		hi, lo := nibble(s[2*i]), nibble(s[2*i+1])
		if hi|lo > 0xf {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}
