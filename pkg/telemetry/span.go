package telemetry

import (
	"context"
	"encoding/binary"
	"math/rand/v2"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

type decisionKey struct{}

// Start begins the server span of a request whose Decision says Record, under the
// ids that were decided. Its name is the method and the route, never a path. The
// context that it returns parents further spans.
func (t *Telemetry) Start(ctx context.Context, d Decision, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	opts = append(opts, trace.WithSpanKind(trace.SpanKindServer))
	with := context.WithValue(ctx, decisionKey{}, d)
	if d.Parent.IsZero() {
		opts = append(opts, trace.WithNewRoot())
	} else {
		with = trace.ContextWithRemoteSpanContext(with, d.Parent.spanContext())
	}
	if !d.Link.IsZero() {
		opts = append(opts, trace.WithLinks(trace.Link{SpanContext: d.Link.spanContext()}))
	}
	_, span := t.server.Start(with, name, opts...)
	// Without the decision: it is for this span only.
	return trace.ContextWithSpan(ctx, span), span
}

func (p TraceParent) spanContext() trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: p.TraceID, SpanID: p.SpanID, TraceFlags: trace.TraceFlags(p.Flags), Remote: true,
	})
}

// TraceParentOf names a span, for the traceparent field toward an upstream.
func TraceParentOf(span trace.Span) TraceParent {
	c := span.SpanContext()
	return TraceParent{TraceID: c.TraceID(), SpanID: c.SpanID(), Flags: byte(c.TraceFlags())}
}

// decidedSampler records what a Sampler has decided to record. Other spans, which
// no request's decision stands behind, follow their parent or begin a trace.
type decidedSampler struct{ sdktrace.Sampler }

// ShouldSample implements the SDK's Sampler.
func (s decidedSampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	if _, ok := p.ParentContext.Value(decisionKey{}).(Decision); ok {
		return sdktrace.SamplingResult{Decision: sdktrace.RecordAndSample}
	}
	return s.Sampler.ShouldSample(p)
}

// decidedIDs gives a server span the ids of its Decision, which logs and refusals
// already name.
type decidedIDs struct{}

// NewIDs implements the SDK's IDGenerator.
func (decidedIDs) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if d, ok := ctx.Value(decisionKey{}).(Decision); ok {
		return d.Self.TraceID, d.Self.SpanID
	}
	return newTraceID(), newSpanID()
}

// NewSpanID implements the SDK's IDGenerator.
func (decidedIDs) NewSpanID(ctx context.Context, _ trace.TraceID) trace.SpanID {
	if d, ok := ctx.Value(decisionKey{}).(Decision); ok {
		return d.Self.SpanID
	}
	return newSpanID()
}

// Ids must be unlikely to meet, not hard to guess.
func newTraceID() (id [16]byte) {
	for id == [16]byte{} {
		binary.BigEndian.PutUint64(id[:8], rand.Uint64())
		binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id
}

func newSpanID() (id [8]byte) {
	for id == [8]byte{} {
		binary.BigEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}
