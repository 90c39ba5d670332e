// Package telemetry is how a process tells what it does: logs, traces, metrics
// and the access log, in OpenTelemetry's words. It is the only place that knows
// the OpenTelemetry SDK; the rest of the tree uses its API. Nothing here ever
// makes a request wait: queues are bounded and drop. It must not know what a
// route or a policy is beyond their names.
package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/otlptranslator"
	"go.opentelemetry.io/otel/attribute"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// Config says who tells and to whom. Headers, certificates, compression and
// further resource attributes come from the standard OTEL_* variables.
type Config struct {
	// Service is service.name, e.g. portcullis-dataplane. Required.
	Service string
	// Version is service.version, Instance service.instance.id.
	Version  string
	Instance string
	// Endpoint is the collector, e.g. http://127.0.0.1:4317. Empty: what
	// OTEL_EXPORTER_OTLP_ENDPOINT says; empty too: nothing is exported, and
	// Prometheus still works. OTEL_SDK_DISABLED=true has the same effect.
	Endpoint string
	// Protocol is "grpc" or "http/protobuf". Empty: what
	// OTEL_EXPORTER_OTLP_PROTOCOL says; empty too: grpc.
	Protocol string
	// TLS toward an https collector, see pkg/identity; nil: the system's
	// authorities and what OTEL_* says.
	TLS *tls.Config
	// Queue is how many ended spans may wait for the collector; 0: 4096. Further
	// ones are dropped.
	Queue int
	// Interval between exports of metrics; 0: 15 s. Spans leave after at most 1 s.
	Interval time.Duration
	// Timeout of one export; 0: 5 s.
	Timeout time.Duration
	// Log gets failures of exports, the first and then each minute's; nil: nobody.
	Log *slog.Logger
}

// Telemetry is a process's. Safe for concurrent use.
type Telemetry struct {
	// Counters feed OTLP and Prometheus.
	Counters *Counters
	// Sampler decides which requests are traced. Set it from the configuration.
	Sampler *Sampler

	tracers trace.TracerProvider
	server  trace.Tracer
	meters  *sdkmetric.MeterProvider
	handler http.Handler
	// closers end the pipelines; exports are what they export with.
	closers []func(context.Context) error
	exports []*export
}

// Setup starts exporting. It does not wait for the collector: one that is not
// there costs what it would have been told. End it with Shutdown.
func Setup(ctx context.Context, c Config) (*Telemetry, error) {
	if c.Service == "" {
		return nil, errors.New("telemetry: no service name")
	}
	c = c.withDefaults()
	res, err := c.resource(ctx)
	if err != nil {
		return nil, err
	}
	t := &Telemetry{Counters: NewCounters(), Sampler: &Sampler{exports: c.Endpoint != ""}}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	scrape, err := otelprom.New(
		otelprom.WithRegisterer(registry),
		otelprom.WithProducer(t.Counters),
		otelprom.WithTranslationStrategy(otlptranslator.UnderscoreEscapingWithSuffixes),
		otelprom.WithoutScopeInfo(),
	)
	if err != nil {
		return nil, fmt.Errorf("telemetry: prometheus: %w", err)
	}
	t.handler = promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, EnableOpenMetrics: true})
	readers := []sdkmetric.Option{sdkmetric.WithResource(res), sdkmetric.WithReader(scrape)}
	t.tracers = noop.NewTracerProvider()
	if c.Endpoint != "" {
		reader, err := t.startExport(ctx, c, res)
		if err != nil {
			return nil, errors.Join(err, t.Shutdown(ctx))
		}
		readers = append(readers, sdkmetric.WithReader(reader))
	}
	t.meters = sdkmetric.NewMeterProvider(readers...)
	t.closers = append(t.closers, t.meters.Shutdown)
	t.server = t.tracers.Tracer(Scope)
	return t, nil
}

func (c Config) withDefaults() Config {
	if c.Endpoint == "" {
		c.Endpoint = os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	}
	if strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		c.Endpoint = ""
	}
	if c.Protocol == "" {
		c.Protocol = os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL")
	}
	if c.Protocol == "" {
		c.Protocol = "grpc"
	}
	if c.Queue == 0 {
		c.Queue = 4096
	}
	if c.Interval == 0 {
		c.Interval = 15 * time.Second
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

func (c Config) resource(ctx context.Context) (*resource.Resource, error) {
	own := []attribute.KeyValue{attribute.String("service.name", c.Service)}
	if c.Version != "" {
		own = append(own, attribute.String("service.version", c.Version))
	}
	if c.Instance != "" {
		own = append(own, attribute.String("service.instance.id", c.Instance))
	}
	// Last wins: what the operator says in the environment overrides.
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(), resource.WithAttributes(own...), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("telemetry: resource: %w", err)
	}
	return res, nil
}

// startExport begins the pipelines to the collector and returns the metrics' end.
func (t *Telemetry) startExport(ctx context.Context, c Config, res *resource.Resource) (sdkmetric.Reader, error) {
	spans, metrics, err := c.exporters(ctx)
	if err != nil {
		return nil, fmt.Errorf("telemetry: %w", err)
	}
	traceExport, metricExport := newExport("traces", c.Log), newExport("metrics", c.Log)
	t.exports = append(t.exports, traceExport, metricExport)
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithResource(res),
		sdktrace.WithSampler(decidedSampler{sdktrace.ParentBased(sdktrace.AlwaysSample())}),
		sdktrace.WithIDGenerator(decidedIDs{}),
		sdktrace.WithBatcher(&spanExport{traceExport, spans},
			sdktrace.WithMaxQueueSize(c.Queue), sdktrace.WithMaxExportBatchSize(min(c.Queue, 512)),
			sdktrace.WithBatchTimeout(time.Second), sdktrace.WithExportTimeout(c.Timeout)),
	)
	t.tracers = provider
	t.closers = append(t.closers, provider.Shutdown)
	return sdkmetric.NewPeriodicReader(&metricsExport{metricExport, metrics},
		sdkmetric.WithInterval(c.Interval), sdkmetric.WithTimeout(c.Timeout), sdkmetric.WithProducer(t.Counters)), nil
}

// Tracer returns a tracer of the OpenTelemetry API; without a collector it does
// nothing.
func (t *Telemetry) Tracer(name string) trace.Tracer { return t.tracers.Tracer(name) }

// Meter returns a meter of the OpenTelemetry API. Prefer asynchronous instruments
// over atomics to synchronous ones on the request path.
func (t *Telemetry) Meter(name string) metric.Meter { return t.meters.Meter(name) }

// Handler serves the metrics in Prometheus' formats.
func (t *Telemetry) Handler() http.Handler { return t.handler }

// Shutdown exports what is queued and ends. When ctx ends first, exports in flight
// are cut off and what is queued is lost.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	// A collector that hangs must not hold the process for a whole timeout.
	stop := context.AfterFunc(ctx, func() {
		for _, e := range t.exports {
			e.cancel()
		}
	})
	defer stop()
	errs := make(chan error, len(t.closers))
	for _, closer := range t.closers {
		go func() { errs <- closer(ctx) }()
	}
	var all error
	for range t.closers {
		all = errors.Join(all, <-errs)
	}
	for _, e := range t.exports {
		e.stop()
	}
	return all
}
