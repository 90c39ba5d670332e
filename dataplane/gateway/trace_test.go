package gateway

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"

	"portcullis.dev/portcullis/pkg/telemetry"
)

const caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestTraceContext(t *testing.T) {
	r := newRig(t)
	up := newOrigin(t, r, ok)
	r.apply(doc("Route", "default", "a", "{public: true, backends: [{upstream: up}]}") + upstreamAt("up", up.URL))
	send := func(fields ...string) http.Header {
		t.Helper()
		if got := r.do(request("GET", "x/", append(fields, "Tracestate", "a=b", "Baggage", "user=1")...)); got.status != 200 {
			t.Fatal(got)
		}
		return up.last()
	}
	for _, parents := range [][]string{{caller}, nil, {"nonsense"}, {caller, caller}} {
		var fields []string
		for _, p := range parents {
			fields = append(fields, "traceparent", p)
		}
		h := send(fields...)
		own, err := telemetry.ParseTraceParent(h.Get("Traceparent"))
		if err != nil || len(h["Traceparent"]) != 1 || strings.Contains(caller, own.TraceIDString()) || h.Get("Tracestate")+h.Get("Baggage") != "" {
			t.Errorf("untrusted %v became %v", parents, h)
		}
	}
	r.apply(doc("Gateway", "", "default", "{tracing: {trustIncoming: true}}"))
	if h := send("Traceparent", caller); h.Get("Traceparent") != caller || h.Get("Tracestate") != "a=b" || h.Get("Baggage") != "user=1" {
		t.Errorf("trusted: %v", h)
	}
	for _, fields := range [][]string{{"Traceparent", "nonsense"}, {"Traceparent", caller, "Traceparent", caller}} {
		if h := send(fields...); strings.Contains(h.Get("Traceparent"), caller[3:35]) || len(h["Traceparent"]) != 1 || h.Get("Tracestate")+h.Get("Baggage") != "" {
			t.Errorf("trusted, but %v: %v", fields, h)
		}
	}
}

// spans notes what it is asked to begin.
type spans struct {
	silent
	began []telemetry.Decision
	names []string
}

func (s *spans) Start(ctx context.Context, d telemetry.Decision, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span) {
	s.began, s.names = append(s.began, d), append(s.names, name)
	return s.silent.Start(ctx, d, name, opts...)
}

func TestSpans(t *testing.T) {
	tel, err := telemetry.Setup(t.Context(), telemetry.Config{Service: "test", Endpoint: "http://127.0.0.1:1", Timeout: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = tel.Shutdown(ctx) // nobody collects
	}()
	r := newRig(t)
	tracer := &spans{}
	r.g.cfg.Sampler, r.g.cfg.Tracer = tel.Sampler, tracer
	up := newOrigin(t, r, ok)
	r.apply(doc("Route", "default", "a", "{public: true, matches: [{path: {template: '/u/{id}'}}], backends: [{upstream: up}]}") + upstreamAt("up", up.URL) +
		doc("Gateway", "", "default", "{tracing: {ratio: 1}}"))
	r.do(request("GET", "x/u/7", "Traceparent", caller))
	sent := up.last().Get("Traceparent")
	if len(tracer.began) != 1 || tracer.names[0] != "GET /u/{id}" || tracer.began[0].Link.String() != caller || !tracer.began[0].Parent.IsZero() ||
		tracer.began[0].Self.String() != sent || !strings.HasSuffix(sent, "3") {
		t.Errorf("untrusted: %v %+v; sent %s", tracer.names, tracer.began, sent)
	}
	r.do(request("GET", "x/none")) // which has no route to name a span by
	r.apply(doc("Gateway", "", "default", "{tracing: {ratio: 0, trustIncoming: true}}"))
	r.do(request("GET", "x/u/7"))
	r.do(request("GET", "x/u/7", "Traceparent", caller))
	if len(tracer.began) != 2 || tracer.began[1].Parent.String() != caller || tracer.began[1].Self.TraceIDString() != caller[3:35] {
		t.Errorf("trusted: %+v", tracer.began)
	}
}
