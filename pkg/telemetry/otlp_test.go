package telemetry

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	colmetrics "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	metrics "go.opentelemetry.io/proto/otlp/metrics/v1"
	traces "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

func attributeKey(k string) attribute.Key { return attribute.Key(k) }

// collector is a real OTLP receiver that keeps what it hears.
type collector struct {
	coltrace.UnimplementedTraceServiceServer
	hang chan struct{} // while it is open, answers wait

	mu       sync.Mutex
	spans    []*traces.Span
	metrics  map[string]*metrics.Metric
	services []string
	calls    int
}

type metricsReceiver struct {
	colmetrics.UnimplementedMetricsServiceServer
	c *collector
}

func (c *collector) Export(ctx context.Context, in *coltrace.ExportTraceServiceRequest) (*coltrace.ExportTraceServiceResponse, error) {
	if err := c.wait(ctx); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rs := range in.ResourceSpans {
		for _, kv := range rs.Resource.Attributes {
			if kv.Key == "service.name" {
				c.services = append(c.services, kv.Value.GetStringValue())
			}
		}
		for _, ss := range rs.ScopeSpans {
			c.spans = append(c.spans, ss.Spans...)
		}
	}
	return &coltrace.ExportTraceServiceResponse{}, nil
}

func (r metricsReceiver) Export(ctx context.Context, in *colmetrics.ExportMetricsServiceRequest) (*colmetrics.ExportMetricsServiceResponse, error) {
	if err := r.c.wait(ctx); err != nil {
		return nil, err
	}
	r.c.keep(in)
	return &colmetrics.ExportMetricsServiceResponse{}, nil
}

func (c *collector) keep(in *colmetrics.ExportMetricsServiceRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, rm := range in.ResourceMetrics {
		for _, sm := range rm.ScopeMetrics {
			for _, m := range sm.Metrics {
				c.metrics[m.Name] = m
			}
		}
	}
}

func (c *collector) wait(ctx context.Context) error {
	c.mu.Lock()
	c.calls++
	c.mu.Unlock()
	if c.hang == nil {
		return nil
	}
	select {
	case <-c.hang:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startCollector serves OTLP over gRPC on loopback.
func startCollector(t *testing.T, hang chan struct{}) (*collector, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{hang: hang, metrics: make(map[string]*metrics.Metric)}
	s := grpc.NewServer()
	coltrace.RegisterTraceServiceServer(s, c)
	colmetrics.RegisterMetricsServiceServer(s, metricsReceiver{c: c})
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		if hang != nil {
			close(hang)
		}
		s.Stop()
		<-done
	})
	return c, "http://" + ln.Addr().String()
}

// tell makes a request's telemetry: a server span with a client span below it.
func tell(t *testing.T, tel *Telemetry) (Decision, TraceParent) {
	t.Helper()
	tel.Sampler.Set(1, false)
	d := tel.Sampler.Decide(example)
	ctx, server := tel.Start(t.Context(), d, "GET shop/orders", trace.WithAttributes(attribute.String("http.route", "shop/orders")))
	_, client := tel.Tracer("upstream").Start(ctx, "GET", trace.WithSpanKind(trace.SpanKindClient))
	sent := TraceParentOf(client)
	client.End()
	server.End()
	tel.Counters.Route("shop", "orders").Count(Request{Method: "GET", Status: 200, Duration: 3 * time.Millisecond})
	n, err := tel.Meter("test").Int64Counter("portcullis.test.count")
	if err != nil {
		t.Fatal(err)
	}
	n.Add(t.Context(), 3)
	return d, sent
}

func (c *collector) check(t *testing.T, d Decision, sent TraceParent) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 2 || len(c.services) == 0 || c.services[0] != "portcullis-test" {
		t.Fatalf("%d spans of %v", len(c.spans), c.services)
	}
	byKind := map[traces.Span_SpanKind]*traces.Span{c.spans[0].Kind: c.spans[0], c.spans[1].Kind: c.spans[1]}
	server, client := byKind[traces.Span_SPAN_KIND_SERVER], byKind[traces.Span_SPAN_KIND_CLIENT]
	caller, _ := ParseTraceParent(example)
	switch {
	case server == nil || client == nil:
		t.Fatalf("kinds %v", byKind)
	case !bytes.Equal(server.TraceId, d.Self.TraceID[:]) || !bytes.Equal(server.SpanId, d.Self.SpanID[:]):
		t.Errorf("server span %x-%x, decided %s", server.TraceId, server.SpanId, d.Self)
	case len(server.ParentSpanId) != 0:
		t.Errorf("a stranger's span %x is the parent", server.ParentSpanId)
	case len(server.Links) != 1 || !bytes.Equal(server.Links[0].TraceId, caller.TraceID[:]):
		t.Errorf("links %v", server.Links)
	case !bytes.Equal(client.ParentSpanId, server.SpanId) || !bytes.Equal(client.TraceId, server.TraceId):
		t.Errorf("client span %x below %x", client.SpanId, client.ParentSpanId)
	case !bytes.Equal(client.SpanId, sent.SpanID[:]) || !sent.Sampled() || bytes.Equal(client.SpanId, server.SpanId):
		t.Errorf("the upstream is told %s", sent)
	}
	h := c.metrics["http.server.request.duration"].GetHistogram()
	if h == nil || len(h.DataPoints) != 1 || h.DataPoints[0].Count != 1 || h.DataPoints[0].BucketCounts[3] != 1 ||
		h.AggregationTemporality != metrics.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
		t.Errorf("durations: %v", h)
	}
	if s := c.metrics["portcullis.test.count"].GetSum(); s == nil || s.DataPoints[0].GetAsInt() != 3 {
		t.Errorf("SDK metrics: %v", c.metrics["portcullis.test.count"])
	}
}

func TestExportsOverGRPC(t *testing.T) {
	c, endpoint := startCollector(t, nil)
	tel, err := Setup(t.Context(), Config{Service: "portcullis-test", Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	d, sent := tell(t, tel)
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.check(t, d, sent)
}

func TestExportsOverHTTP(t *testing.T) {
	c := &collector{metrics: make(map[string]*metrics.Metric)}
	read := func(w http.ResponseWriter, r *http.Request, into, out proto.Message) bool {
		body := io.Reader(r.Body)
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(body)
			if err != nil {
				t.Error(err)
				return false
			}
			body = z
		}
		data, err := io.ReadAll(body)
		if err == nil {
			err = proto.Unmarshal(data, into)
		}
		if err != nil {
			t.Error(err)
			return false
		}
		answer, _ := proto.Marshal(out)
		w.Header().Set("Content-Type", "application/x-protobuf")
		w.Write(answer)
		return true
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/traces", func(w http.ResponseWriter, r *http.Request) {
		in := new(coltrace.ExportTraceServiceRequest)
		if read(w, r, in, &coltrace.ExportTraceServiceResponse{}) {
			c.Export(r.Context(), in)
		}
	})
	mux.HandleFunc("POST /v1/metrics", func(w http.ResponseWriter, r *http.Request) {
		in := new(colmetrics.ExportMetricsServiceRequest)
		if read(w, r, in, &colmetrics.ExportMetricsServiceResponse{}) {
			c.keep(in)
		}
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", s.URL+"/")
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	tel, err := Setup(t.Context(), Config{Service: "portcullis-test"})
	if err != nil {
		t.Fatal(err)
	}
	d, sent := tell(t, tel)
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	c.check(t, d, sent)
}

func TestContinuesATrustedTrace(t *testing.T) {
	c, endpoint := startCollector(t, nil)
	tel, err := Setup(t.Context(), Config{Service: "portcullis-test", Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	tel.Sampler.Set(0, true)
	d := tel.Sampler.Decide(example)
	_, span := tel.Start(t.Context(), d, "GET shop/orders")
	span.End()
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 1 || !bytes.Equal(c.spans[0].TraceId, d.Parent.TraceID[:]) ||
		!bytes.Equal(c.spans[0].ParentSpanId, d.Parent.SpanID[:]) || !bytes.Equal(c.spans[0].SpanId, d.Self.SpanID[:]) {
		t.Errorf("%v for %+v", c.spans, d)
	}
}

// A collector that accepts and never answers costs nobody anything: spans end at
// once, the queue stays bounded, shutdown ends with its context.
func TestHungCollectorBlocksNobody(t *testing.T) {
	c, endpoint := startCollector(t, make(chan struct{}))
	var log syncBuffer
	tel, err := Setup(t.Context(), Config{
		Service: "portcullis-test", Endpoint: endpoint, Queue: 64, Timeout: time.Hour,
		Interval: time.Hour, Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	tel.Sampler.Set(1, false)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		// Many times the queue; each End would wait for ever if one did.
		for range 5000 {
			_, span := tel.Start(context.Background(), tel.Sampler.Decide(""), "GET x")
			span.End()
		}
	}()
	select {
	case <-ended:
	case <-time.After(60 * time.Second):
		t.Fatal("spans wait for the collector")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	down := make(chan error, 1)
	go func() { down <- tel.Shutdown(ctx) }()
	select {
	case err := <-down:
		if err == nil {
			t.Error("a shutdown that lost spans says nothing")
		}
	case <-time.After(60 * time.Second):
		t.Fatal("shutdown waits for the collector")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 0 || c.calls == 0 {
		t.Errorf("%d spans in %d calls: the collector did not hang", len(c.spans), c.calls)
	}
}

func TestAbsentCollectorIsLoggedOnce(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := "http://" + ln.Addr().String()
	ln.Close()
	var log syncBuffer
	e := newExport("traces", slog.New(slog.NewTextHandler(&log, nil)))
	for range 100 {
		e.failed(io.ErrUnexpectedEOF)
	}
	if n := strings.Count(log.String(), "not exported"); n != 1 {
		t.Errorf("logged %d times", n)
	}
	e.cancel()
	tel, err := Setup(t.Context(), Config{Service: "portcullis-test", Endpoint: endpoint, Timeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tell(t, tel)
	tel.Shutdown(ctx)
	if ctx.Err() != nil {
		t.Error("shutdown waits longer than an export may take")
	}
}

func TestSetupRefuses(t *testing.T) {
	for name, c := range map[string]Config{
		"no service":       {},
		"unknown protocol": {Service: "x", Endpoint: "http://127.0.0.1:1", Protocol: "smoke"},
		"no URL":           {Service: "x", Endpoint: "127.0.0.1:4317"},
		"no host":          {Service: "x", Endpoint: "http://"},
	} {
		if tel, err := Setup(t.Context(), c); err == nil {
			t.Errorf("%s: accepted", name)
			tel.Shutdown(t.Context())
		}
	}
	t.Setenv("OTEL_SDK_DISABLED", "true")
	tel, err := Setup(t.Context(), Config{Service: "x", Endpoint: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	tel.Sampler.Set(1, false)
	if tel.Sampler.Decide("").Record {
		t.Error("records without a collector")
	}
	if err := tel.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
