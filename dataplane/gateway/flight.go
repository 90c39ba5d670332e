package gateway

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/telemetry"
)

// flight is what the gateway knows of one exchange beyond the exchange itself:
// how it is traced, what was decided, and what has to be told when it ends. It is
// pooled, and belongs to the goroutine of its exchange.
type flight struct {
	g *Gateway
	// end is finish as a func value, made once for the life of the flight.
	end func(*exchange.Exchange)
	// unwatch is forget as a func value, fail is failed.
	unwatch func(*exchange.Exchange)
	fail    func(*exchange.Exchange, error) *exchange.Response

	trace    telemetry.Decision
	span     trace.Span
	spanCtx  context.Context
	route    *Route
	version  config.Version
	reason   policy.Reason
	cut      Cut
	upstream string
	stream   stream

	// traceText is trace.Self as the traceparent field has it, and memory what else
	// the exchange's header needs: strings of the request lie in both.
	traceText [telemetry.TraceParentSize]byte
	memory    memory
}

func (g *Gateway) begin(e *exchange.Exchange) *flight {
	f := g.flights.Get().(*flight)
	parent := ""
	if e.Request.Header.Count("Traceparent") == 1 {
		parent = e.Request.Header.Get("Traceparent")
	}
	f.trace = g.cfg.Sampler.Decide(parent)
	f.trace.Self.Append(f.traceText[:0])
	g.cfg.Counters.Began(e.Request.Method, e.Request.TLS != nil)
	e.Done = append(e.Done, f.end)
	return f
}

// startSpan begins the server span. It is called only when the sampler said so: its
// frame alone would make the stacks of all connections grow.
func (f *flight) startSpan(e *exchange.Exchange) {
	// HTTP server span, OpenTelemetry semantic conventions 1.x. It outlives the
	// exchange, in whose memory the texts lie.
	f.spanCtx, f.span = f.g.cfg.Tracer.Start(e.Context, f.trace, e.Request.Method+" "+f.route.pattern,
		trace.WithTimestamp(e.Received),
		trace.WithAttributes(
			attribute.String("http.request.method", strings.Clone(e.Request.Method)), attribute.String("url.scheme", e.Request.Scheme),
			attribute.String("url.path", strings.Clone(e.Request.Path)), attribute.String("server.address", strings.Clone(e.Request.Host)),
			attribute.String("client.address", e.Request.Peer.String()), attribute.String("http.route", f.route.pattern),
			attribute.String("portcullis.route", f.route.info.Workspace+"/"+f.route.info.Name),
			attribute.String("portcullis.request_id", strings.Clone(e.ID)), attribute.Int64("portcullis.revision", f.version.Revision),
		))
}

// traceparent is the field that goes to the upstream, traceID the part of it
// that people quote. They hold until the exchange has ended.
func (f *flight) traceparent() string { return textOf(f.traceText[:]) }

func (f *flight) traceID() string { return f.traceparent()[3:35] }

func (f *flight) context(e *exchange.Exchange) context.Context {
	if f.spanCtx != nil {
		return f.spanCtx
	}
	return e.Context
}

// propagate puts the trace context toward the upstream in place of the caller's.
// Baggage and tracestate of a caller that is not trusted are dropped.
func (f *flight) propagate(e *exchange.Exchange) {
	if f.trace.Parent.IsZero() {
		e.Request.Header.Del("Tracestate")
		e.Request.Header.Del("Baggage")
	}
	e.Request.Header.Set("Traceparent", f.traceparent())
}

// refuse answers with a problem and remembers the reason.
func (f *flight) refuse(e *exchange.Exchange, d *policy.Denial) *exchange.Response {
	f.reason = d.Reason
	if e.Why == (exchange.Why{}) {
		e.Why = exchange.Why{Policy: d.Policy, Rule: d.Rule, Detail: d.Detail}
		if d.Note != "" {
			e.Why.Detail = d.Note
		}
	}
	resp := d.ResponseTo(&e.Request, e.ID, f.traceID())
	e.Answer(resp)
	return resp
}

// failed answers in place of an answer whose body broke before any of it was sent.
func (f *flight) failed(e *exchange.Exchange, err error) *exchange.Response {
	return f.refuse(e, denialOf(err))
}

// finish tells everybody what became of the exchange.
func (f *flight) finish(e *exchange.Exchange) {
	g := f.g
	ended := e.Result.Ended
	if ended.IsZero() {
		ended = g.cfg.Policy.Now()
	}
	took := ended.Sub(e.Received)
	counters := g.unrouted
	if f.route != nil {
		counters = f.route.counters
	}
	secure := e.Request.TLS != nil
	counters.Count(telemetry.Request{Method: e.Request.Method, TLS: secure, Status: e.Result.Status, Reason: string(f.reason), Duration: took})
	g.cfg.Counters.Ended(e.Request.Method, secure)
	traceID := f.traceID()
	f.cut = cutOf(e.Result.Err)
	if e.Result.Err != nil && e.Why.Detail == "" {
		e.Why.Detail = "The answer was cut short: " + e.Result.Err.Error()
	}
	f.remember(e, traceID, took)
	if g.logs.Load() && g.cfg.AccessLog != nil {
		f.log(e, traceID, took)
	}
	f.endSpan(e)
	*f = flight{g: g, end: f.end, unwatch: f.unwatch, fail: f.fail, memory: f.memory.reset(), stream: f.stream}
	g.flights.Put(f)
}

func (f *flight) endSpan(e *exchange.Exchange) {
	if f.span == nil {
		return
	}
	f.span.SetAttributes(attribute.Int("http.response.status_code", e.Result.Status))
	if f.upstream != "" {
		f.span.SetAttributes(attribute.String("portcullis.upstream", f.upstream))
	}
	if f.reason != "" {
		f.span.SetAttributes(attribute.String("portcullis.reason", string(f.reason)))
	}
	if f.cut != "" {
		f.span.SetAttributes(attribute.String("portcullis.cut", string(f.cut)))
	}
	if e.Result.Status >= 500 || e.Result.Err != nil {
		f.span.SetStatus(codes.Error, string(f.reason))
	}
	f.span.End()
}

// remember writes the decision into the ring.
func (f *flight) remember(e *exchange.Exchange, traceID string, took time.Duration) {
	id := &e.Identity
	rec := decision{
		text: [decisionTexts]string{
			textID: e.ID, textMethod: e.Request.Method, textHost: e.Request.Host, textPath: e.Request.Path,
			textRoute: e.Route.Name, textWorkspace: e.Route.Workspace, textReason: string(f.reason),
			textPolicy: e.Why.Policy, textRule: e.Why.Rule, textDetail: e.Why.Detail, textAuth: id.Method,
			textSubject: id.Subject, textClient: id.Client, textIssuer: id.Issuer, textUpstream: f.upstream, textTrace: traceID,
		},
		at: e.Received, version: f.version, status: e.Result.Status, duration: took, peer: e.Request.Peer,
	}
	f.g.cfg.Decisions.record(&rec)
}

func (f *flight) log(e *exchange.Exchange, traceID string, took time.Duration) {
	id := &e.Identity
	f.g.cfg.AccessLog.Log(&telemetry.AccessEntry{
		Time: e.Received, RequestID: e.ID, TraceID: traceID, Node: f.g.cfg.Node, Peer: e.Request.Peer,
		Method: e.Request.Method, Scheme: e.Request.Scheme, Host: e.Request.Host, Path: e.Request.Path, Protocol: e.Request.Proto,
		Status: e.Result.Status, Reason: string(f.reason), Cut: string(f.cut), Workspace: e.Route.Workspace, Route: e.Route.Name,
		Epoch: f.version.Epoch, Revision: f.version.Revision, AuthMethod: id.Method, Consumer: id.Client, Subject: id.Subject,
		Issuer: id.Issuer, Upstream: f.upstream, Duration: took, UpstreamDuration: e.Waited, BytesSent: e.Result.Bytes,
	})
}
