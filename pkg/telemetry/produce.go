package telemetry

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// Scope is the name of the instrumentation in what is exported.
const Scope = "portcullis.dev/portcullis/pkg/telemetry"

// Produce implements the SDK's metric.Producer, so that OTLP and Prometheus read
// the same atomics:
//
//   - http.server.request.duration (s): by route, method, scheme, status, and
//     error.type, which is a refusal's reason;
//   - http.server.active_requests: by method and scheme;
//   - portcullis.requests: by route, status class and reason.
//
// Nothing is labelled by client or key.
func (c *Counters) Produce(context.Context) ([]metricdata.ScopeMetrics, error) {
	now := time.Now()
	durations, requests := c.perRoute(now)
	metrics := []metricdata.Metrics{{
		Name:        "http.server.active_requests",
		Description: "Number of active HTTP server requests.",
		Unit:        "{request}",
		Data:        metricdata.Sum[int64]{DataPoints: c.inFlight(now), Temporality: metricdata.CumulativeTemporality},
	}}
	if len(durations) > 0 {
		metrics = append(metrics, metricdata.Metrics{
			Name:        "http.server.request.duration",
			Description: "Duration of HTTP server requests.",
			Unit:        "s",
			Data:        metricdata.Histogram[float64]{DataPoints: durations, Temporality: metricdata.CumulativeTemporality},
		}, metricdata.Metrics{
			Name:        "portcullis.requests",
			Description: "Requests by route, class of status and reason of refusal.",
			Unit:        "{request}",
			Data:        metricdata.Sum[int64]{DataPoints: requests, Temporality: metricdata.CumulativeTemporality, IsMonotonic: true},
		})
	}
	return []metricdata.ScopeMetrics{{Scope: instrumentation.Scope{Name: Scope}, Metrics: metrics}}, nil
}

func (c *Counters) snapshot() []*RouteCounters {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]*RouteCounters, 0, len(c.routes))
	for _, r := range c.routes {
		out = append(out, r)
	}
	// A stable order keeps scrapes comparable and compressible.
	slices.SortFunc(out, func(a, b *RouteCounters) int {
		return cmp.Or(cmp.Compare(a.key.workspace, b.key.workspace), cmp.Compare(a.key.name, b.key.name))
	})
	return out
}

func (c *Counters) perRoute(now time.Time) (durations []metricdata.HistogramDataPoint[float64], requests []metricdata.DataPoint[int64]) {
	bounds := Bounds()
	for _, r := range c.snapshot() {
		type class struct {
			status int
			reason string
		}
		classes := make(map[class]int)
		for _, s := range *r.series.Load() {
			p := s.point(r.key, bounds, now)
			durations = append(durations, p)
			k := class{s.class(), s.reason}
			i, ok := classes[k]
			if !ok {
				i = len(requests)
				classes[k] = i
				requests = append(requests, metricdata.DataPoint[int64]{
					Attributes: classAttributes(r.key, k.status, k.reason), StartTime: r.start, Time: now,
				})
			}
			requests[i].Value += int64(p.Count)
		}
	}
	return durations, requests
}

// point reads a series. Buckets are read one by one: the count is their sum, so
// that both always agree.
func (s *series) point(key routeKey, bounds []float64, now time.Time) metricdata.HistogramDataPoint[float64] {
	p := metricdata.HistogramDataPoint[float64]{
		Attributes:   s.attributes(key),
		StartTime:    s.start,
		Time:         now,
		Bounds:       bounds,
		BucketCounts: make([]uint64, bucketCount),
		Sum:          time.Duration(s.sumNanos.Load()).Seconds(),
	}
	for i := range s.buckets {
		n := s.buckets[i].Load()
		p.BucketCounts[i] = n
		p.Count += n
	}
	return p
}

func (s *series) class() int {
	if s.code == overflowCode {
		return 0
	}
	return int(s.code&0xffff) / 100
}

func routeAttributes(key routeKey) []attribute.KeyValue {
	if key == (routeKey{}) {
		return make([]attribute.KeyValue, 0, 4)
	}
	return append(make([]attribute.KeyValue, 0, 6),
		attribute.String("http.route", key.workspace+"/"+key.name),
		attribute.String("portcullis.workspace", key.workspace))
}

func (s *series) attributes(key routeKey) attribute.Set {
	kvs := routeAttributes(key)
	if s.code == overflowCode {
		return attribute.NewSet(append(kvs, attribute.Bool("otel.metric.overflow", true))...)
	}
	kvs = append(kvs,
		attribute.String("http.request.method", methods()[s.code>>17]),
		attribute.String("url.scheme", scheme(int(s.code>>16&1))))
	status := int(s.code & 0xffff)
	if status != 0 {
		kvs = append(kvs, attribute.Int("http.response.status_code", status))
	}
	switch {
	case s.reason != "":
		kvs = append(kvs, attribute.String("error.type", s.reason))
	case status >= 500:
		kvs = append(kvs, attribute.String("error.type", strconv.Itoa(status)))
	}
	return attribute.NewSet(kvs...)
}

func classAttributes(key routeKey, class int, reason string) attribute.Set {
	kvs := routeAttributes(key)
	if class > 0 {
		kvs = append(kvs, attribute.String("portcullis.status_class", strconv.Itoa(class)+"xx"))
	}
	if reason != "" {
		kvs = append(kvs, attribute.String("portcullis.reason", reason))
	}
	return attribute.NewSet(kvs...)
}

func (c *Counters) inFlight(now time.Time) []metricdata.DataPoint[int64] {
	var out []metricdata.DataPoint[int64]
	for m, name := range methods() {
		for tls := range 2 {
			n := c.active[m][tls].Load()
			// GET over http is always there, so that an idle node has the metric.
			if n == 0 && (m != 1 || tls != 0) {
				continue
			}
			out = append(out, metricdata.DataPoint[int64]{
				Attributes: attribute.NewSet(attribute.String("http.request.method", name), attribute.String("url.scheme", scheme(tls))),
				StartTime:  c.start, Time: now, Value: n,
			})
		}
	}
	return out
}

func scheme(tls int) string {
	if tls == 1 {
		return "https"
	}
	return "http"
}
