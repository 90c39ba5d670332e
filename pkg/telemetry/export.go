package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/credentials"
)

func (c Config) exporters(ctx context.Context) (sdktrace.SpanExporter, sdkmetric.Exporter, error) {
	// The exporters would fall back to their default and only log it.
	if u, err := url.Parse(c.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, nil, fmt.Errorf("OTLP endpoint %q: want http://host:port or https://host:port", c.Endpoint)
	}
	switch c.Protocol {
	case "grpc":
		return c.grpcExporters(ctx)
	case "http/protobuf":
		return c.httpExporters(ctx)
	}
	return nil, nil, fmt.Errorf("OTLP protocol %q is neither grpc nor http/protobuf", c.Protocol)
}

func (c Config) grpcExporters(ctx context.Context) (sdktrace.SpanExporter, sdkmetric.Exporter, error) {
	traceOpts := []otlptracegrpc.Option{otlptracegrpc.WithEndpointURL(c.Endpoint), otlptracegrpc.WithTimeout(c.Timeout)}
	metricOpts := []otlpmetricgrpc.Option{otlpmetricgrpc.WithEndpointURL(c.Endpoint), otlpmetricgrpc.WithTimeout(c.Timeout)}
	if c.TLS != nil {
		traceOpts = append(traceOpts, otlptracegrpc.WithTLSCredentials(credentials.NewTLS(c.TLS)))
		metricOpts = append(metricOpts, otlpmetricgrpc.WithTLSCredentials(credentials.NewTLS(c.TLS)))
	}
	spans, err := otlptracegrpc.New(ctx, traceOpts...)
	if err != nil {
		return nil, nil, fmt.Errorf("OTLP traces: %w", err)
	}
	metrics, err := otlpmetricgrpc.New(ctx, metricOpts...)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("OTLP metrics: %w", err), spans.Shutdown(ctx))
	}
	return spans, metrics, nil
}

func (c Config) httpExporters(ctx context.Context) (sdktrace.SpanExporter, sdkmetric.Exporter, error) {
	// An endpoint stands for all signals; each has its path below it (OTLP
	// specification, "Endpoint URLs for OTLP/HTTP").
	traceOpts := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(signalURL(c.Endpoint, "traces")), otlptracehttp.WithTimeout(c.Timeout)}
	metricOpts := []otlpmetrichttp.Option{otlpmetrichttp.WithEndpointURL(signalURL(c.Endpoint, "metrics")), otlpmetrichttp.WithTimeout(c.Timeout)}
	if c.TLS != nil {
		traceOpts = append(traceOpts, otlptracehttp.WithTLSClientConfig(c.TLS))
		metricOpts = append(metricOpts, otlpmetrichttp.WithTLSClientConfig(c.TLS))
	}
	spans, err := otlptracehttp.New(ctx, traceOpts...)
	if err != nil {
		return nil, nil, fmt.Errorf("OTLP traces: %w", err)
	}
	metrics, err := otlpmetrichttp.New(ctx, metricOpts...)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("OTLP metrics: %w", err), spans.Shutdown(ctx))
	}
	return spans, metrics, nil
}

func signalURL(endpoint, signal string) string {
	for len(endpoint) > 0 && endpoint[len(endpoint)-1] == '/' {
		endpoint = endpoint[:len(endpoint)-1]
	}
	return endpoint + "/v1/" + signal
}

// failureLogInterval keeps a collector that is away for a day from filling a log.
const failureLogInterval = time.Minute

// export is what both pipelines need around an exporter: an end to exports in
// flight at shutdown, and a log of failures that does not flood. The SDK would
// report to a process-wide handler, which several members in one process share.
type export struct {
	signal string
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	// Held during an export: the SDK makes one at a time.
	flying sync.Mutex

	mu       sync.Mutex
	failures int
	logged   time.Time
}

func newExport(signal string, log *slog.Logger) *export {
	ctx, cancel := context.WithCancel(context.Background())
	return &export{signal: signal, log: log, ctx: ctx, cancel: cancel}
}

// run exports until its context, or that of the whole, ends.
func (e *export) run(ctx context.Context, send func(context.Context) error) {
	e.flying.Lock()
	defer e.flying.Unlock()
	if e.ctx.Err() != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	if err := send(ctx); err != nil {
		e.failed(err)
	}
}

func (e *export) failed(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failures++
	if now := time.Now(); now.Sub(e.logged) >= failureLogInterval {
		e.logged = now
		e.log.Warn("telemetry is not exported", "signal", e.signal, "error", err, "failures", e.failures)
	}
}

// stop cuts off the export in flight, waits for its end and lets no other begin.
func (e *export) stop() {
	e.cancel()
	e.flying.Lock()
	defer e.flying.Unlock()
}

type spanExport struct {
	*export
	to sdktrace.SpanExporter
}

// ExportSpans never fails: what did is logged and dropped.
func (e *spanExport) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	e.run(ctx, func(ctx context.Context) error { return e.to.ExportSpans(ctx, spans) })
	return nil
}

// Shutdown closes the connection.
func (e *spanExport) Shutdown(ctx context.Context) error { return e.to.Shutdown(ctx) }

type metricsExport struct {
	*export
	sdkmetric.Exporter
}

// Export never fails: what did is logged and dropped.
func (e *metricsExport) Export(ctx context.Context, m *metricdata.ResourceMetrics) error {
	e.run(ctx, func(ctx context.Context) error { return e.Exporter.Export(ctx, m) })
	return nil
}
