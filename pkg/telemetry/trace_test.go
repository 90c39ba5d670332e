package telemetry

import (
	"math"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const example = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestParseTraceParent(t *testing.T) {
	for in, ok := range map[string]bool{
		example: true,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00":   true,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":   true,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x": true,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x":  false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x": false,
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":   false,
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01":   false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01":   false,
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01":   false,
		"00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":   false,
		"00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01":   false,
		"":                      false,
		example[:54]:            false,
		" " + example:           false,
		example + "," + example: false,
	} {
		p, err := ParseTraceParent(in)
		if (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
		if !ok && p != (TraceParent{}) {
			t.Errorf("%q: an error and %v", in, p)
		}
	}
	p, _ := ParseTraceParent(example)
	if p.String() != example || !p.Sampled() || p.TraceIDString() != example[3:35] {
		t.Errorf("comes back as %s", p)
	}
}

func TestTraceParentRoundTrips(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var p TraceParent
		copy(p.TraceID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(rt, "trace"))
		copy(p.SpanID[:], rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(rt, "span"))
		p.Flags = rapid.Byte().Draw(rt, "flags") & 3
		back, err := ParseTraceParent(p.String())
		if (err == nil) == p.IsZero() || err == nil && back != p {
			rt.Fatalf("%v comes back as %v, %v", p, back, err)
		}
	})
}

// FuzzTraceParent's oracle is the OpenTelemetry API's own parser.
func FuzzTraceParent(f *testing.F) {
	f.Add(example)
	f.Add("cc" + example[2:] + "-what")
	f.Add(strings.ToUpper(example))
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParseTraceParent(s)
		if err == nil && s[:2] == "00" && s[53:] > "03" {
			// OpenTelemetry refuses flags that it does not know; section 3.2.2.5 wants
			// them passed over.
			s = s[:53] + p.String()[53:]
		}
		ctx := propagation.TraceContext{}.Extract(t.Context(), propagation.HeaderCarrier(http.Header{"Traceparent": {s}}))
		sc := trace.SpanContextFromContext(ctx)
		if err != nil {
			return // ours is the stricter one
		}
		if !sc.IsValid() || sc.TraceID() != p.TraceID || sc.SpanID() != p.SpanID || sc.IsSampled() != p.Sampled() {
			t.Errorf("%q: we read %v, OpenTelemetry %v", s, p, sc)
		}
	})
}

func TestSampler(t *testing.T) {
	caller, _ := ParseTraceParent(example)
	unsampled := example[:54] + "0"
	for name, c := range map[string]struct {
		ratio          float64
		trust, exports bool
		in             string
		record, linked bool
		continues      bool
	}{
		"new, all":              {ratio: 1, exports: true, record: true},
		"new, none":             {ratio: 0, exports: true},
		"new, above one":        {ratio: 7, exports: true, record: true},
		"new, not a number":     {ratio: math.NaN(), exports: true},
		"no collector":          {ratio: 1},
		"stranger, all":         {ratio: 1, exports: true, in: example, record: true, linked: true},
		"stranger, none":        {ratio: 0, exports: true, in: example, linked: true},
		"trusted, sampled":      {ratio: 0, trust: true, exports: true, in: example, record: true, continues: true},
		"trusted, unsampled":    {ratio: 1, trust: true, exports: true, in: unsampled, continues: true},
		"trusted, no collector": {ratio: 1, trust: true, in: example, continues: true},
		"trusted, invalid":      {ratio: 1, trust: true, exports: true, in: "00-x", record: true},
		"trusted, none sent":    {ratio: 0, trust: true, exports: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &Sampler{exports: c.exports}
			s.Set(c.ratio, c.trust)
			d := s.Decide(c.in)
			if d.Record != c.record || d.Link.IsZero() == c.linked || d.Parent.IsZero() == c.continues || d.Self.IsZero() {
				t.Errorf("decided %+v", d)
			}
			if sameTrace := d.Self.TraceID == caller.TraceID; sameTrace != c.continues {
				t.Errorf("trace %s", d.Self)
			}
			if c.continues && (d.Self.SpanID == caller.SpanID) == c.record {
				t.Errorf("span %s, recorded %v: a parent must exist", d.Self, c.record)
			}
			if !c.continues && d.Self.Sampled() != c.record {
				t.Errorf("flags of %s", d.Self)
			}
		})
	}
}

func TestSamplerRatio(t *testing.T) {
	s := &Sampler{exports: true}
	s.Set(0.1, false)
	n := 0
	const tries = 20000
	for range tries {
		if s.Decide("").Record {
			n++
		}
	}
	// 10 standard deviations.
	if math.Abs(float64(n)-tries*0.1) > 10*math.Sqrt(tries*0.09) {
		t.Errorf("%d of %d", n, tries)
	}
}

func TestDecisionAllocatesNothing(t *testing.T) {
	s := &Sampler{exports: true}
	s.Set(0, false)
	buf := make([]byte, 0, TraceParentSize)
	if n := testing.AllocsPerRun(1000, func() { d := s.Decide(example); buf = d.Self.Append(buf[:0]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkDecide(b *testing.B) {
	s := &Sampler{exports: true}
	s.Set(0.01, false)
	b.ReportAllocs()
	for b.Loop() {
		s.Decide(example)
	}
}
