package telemetry

import (
	"fmt"
	"math"
	"net/http/httptest"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"pgregory.net/rapid"
)

func produced(t testing.TB, c *Counters) map[string]metricdata.Aggregation {
	t.Helper()
	scopes, err := c.Produce(t.Context())
	if err != nil || len(scopes) != 1 {
		t.Fatalf("%d scopes, %v", len(scopes), err)
	}
	out := make(map[string]metricdata.Aggregation)
	for _, m := range scopes[0].Metrics {
		out[m.Name] = m.Data
	}
	return out
}

func TestTablesAgree(t *testing.T) {
	if len(Bounds()) != bucketCount-1 || !sort.Float64sAreSorted(Bounds()) {
		t.Error("bounds and buckets differ")
	}
	for i, m := range methods() {
		if methodOf(m) != i {
			t.Errorf("%s is method %d, listed as %d", m, methodOf(m), i)
		}
	}
}

// The oracle counts in a map and sorts into buckets by looking at each bound.
func TestCountersAgainstMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := NewCounters()
		want := make(map[string]int)
		request := rapid.Custom(func(rt *rapid.T) Request {
			return Request{
				Method:   rapid.SampledFrom([]string{"GET", "POST", "BREW", "get", ""}).Draw(rt, "method"),
				TLS:      rapid.Bool().Draw(rt, "tls"),
				Status:   rapid.SampledFrom([]int{200, 204, 404, 502, 0, -1, 100000}).Draw(rt, "status"),
				Reason:   rapid.SampledFrom([]string{"", "scope_missing", "no_route"}).Draw(rt, "reason"),
				Duration: time.Duration(rapid.Int64Range(-5, int64(20*time.Second)).Draw(rt, "duration")),
			}
		})
		for _, q := range rapid.SliceOfN(request, 0, 60).Draw(rt, "requests") {
			c.Route("shop", "orders").Count(q)
			method, status, d := q.Method, q.Status, max(q.Duration, 0)
			if method != "GET" && method != "POST" {
				method = "_OTHER"
			}
			if status < 0 || status > 999 {
				status = 0
			}
			i := 0
			for i < len(Bounds()) && d.Seconds() > Bounds()[i] {
				i++
			}
			want[fmt.Sprint(method, q.TLS, status, q.Reason, i)]++
		}
		got := make(map[string]int)
		total := uint64(0)
		data := produced(t, c)
		if h, ok := data["http.server.request.duration"].(metricdata.Histogram[float64]); ok {
			for _, p := range h.DataPoints {
				text := func(k string) string {
					v, _ := p.Attributes.Value(attributeKey(k))
					return v.String()
				}
				status, reason := text("http.response.status_code"), text("error.type")
				if status == "" {
					status = "0"
				}
				if reason == "502" {
					reason = ""
				}
				for i, n := range p.BucketCounts {
					if n > 0 {
						got[fmt.Sprint(text("http.request.method"), text("url.scheme") == "https", " ", status, reason, i)] += int(n)
					}
				}
				total += p.Count
			}
		}
		sum := uint64(0)
		if s, ok := data["portcullis.requests"].(metricdata.Sum[int64]); ok {
			for _, p := range s.DataPoints {
				sum += uint64(p.Value)
			}
		}
		if fmt.Sprint(normal(got)) != fmt.Sprint(normal(want)) || sum != total {
			rt.Fatalf("counted %v, want %v; %d and %d in all", got, want, sum, total)
		}
	})
}

// fmt.Sprint sets its spaces by type; they say nothing.
func normal(m map[string]int) map[string]int {
	out := make(map[string]int)
	for k, v := range m {
		out[strings.ReplaceAll(k, " ", "")] += v
	}
	return out
}

func TestCountersAreBounded(t *testing.T) {
	c := NewCounters()
	r := c.Route("shop", "orders")
	n := 0
	for status := range 600 {
		for _, m := range methods() {
			r.Count(Request{Method: m, Status: status})
			n++
		}
	}
	if got := len(*r.series.Load()); got > maxSeries {
		t.Errorf("%d series", got)
	}
	h := produced(t, c)["http.server.request.duration"].(metricdata.Histogram[float64])
	total := 0
	overflow := false
	for _, p := range h.DataPoints {
		total += int(p.Count)
		_, over := p.Attributes.Value("otel.metric.overflow")
		overflow = overflow || over
	}
	if total != n || !overflow {
		t.Errorf("%d of %d counted, overflow %v", total, n, overflow)
	}
}

func TestCountersConcurrently(t *testing.T) {
	c := NewCounters()
	var wg sync.WaitGroup
	const each = 500
	for i := range 8 {
		wg.Go(func() {
			for k := range each {
				c.Began("GET", true)
				c.Route("shop", "orders").Count(Request{Method: "GET", Status: 200 + (i+k)%20, Duration: time.Millisecond})
				c.Ended("GET", true)
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			produced(t, c)
			c.Forget("shop", "others")
		}
	})
	wg.Wait()
	data := produced(t, c)
	total := uint64(0)
	for _, p := range data["http.server.request.duration"].(metricdata.Histogram[float64]).DataPoints {
		total += p.Count
		if math.Abs(p.Sum-float64(p.Count)/1000) > 1e-9 {
			t.Errorf("%d requests took %v s", p.Count, p.Sum)
		}
	}
	if total != 8*each {
		t.Errorf("%d of %d counted", total, 8*each)
	}
	for _, p := range data["http.server.active_requests"].(metricdata.Sum[int64]).DataPoints {
		if p.Value != 0 {
			t.Errorf("%d still active", p.Value)
		}
	}
	c.Forget("shop", "orders")
	if _, ok := produced(t, c)["portcullis.requests"]; ok {
		t.Error("a forgotten route is exported")
	}
}

func TestCountAllocatesNothing(t *testing.T) {
	r := NewCounters().Route("shop", "orders")
	q := Request{Method: "GET", Status: 403, Reason: "scope_missing", Duration: time.Millisecond}
	if n := testing.AllocsPerRun(1000, func() { r.Count(q) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestPrometheus(t *testing.T) {
	tel, err := Setup(t.Context(), Config{Service: "portcullis-test", Instance: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(t.Context())
	tel.Counters.Route("shop", "orders").Count(Request{Method: "GET", TLS: true, Status: 403, Reason: "scope_missing", Duration: 3 * time.Millisecond})
	tel.Counters.Route("", "").Count(Request{Method: "GET", Status: 404, Reason: "no_route"})
	gauge, err := tel.Meter("test").Int64UpDownCounter("portcullis.test.things")
	if err != nil {
		t.Fatal(err)
	}
	gauge.Add(t.Context(), 7)
	rec := httptest.NewRecorder()
	tel.Handler().ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	body := rec.Body.String()
	for _, want := range []string{
		"# TYPE http_server_request_duration_seconds histogram",
		`http_server_request_duration_seconds_bucket{error_type="scope_missing",http_request_method="GET",http_response_status_code="403",http_route="shop/orders",portcullis_workspace="shop",url_scheme="https",le="0.005"} 1`,
		`portcullis_requests_total{http_route="shop/orders",portcullis_reason="scope_missing",portcullis_status_class="4xx",portcullis_workspace="shop"} 1`,
		`portcullis_requests_total{portcullis_reason="no_route",portcullis_status_class="4xx"} 1`,
		"# TYPE http_server_active_requests gauge",
		"portcullis_test_things 7",
		"go_goroutines",
		`service_instance_id="n1"`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
}

func BenchmarkCount(b *testing.B) {
	r := NewCounters().Route("shop", "orders")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Count(Request{Method: "GET", Status: 200, Duration: time.Millisecond})
		}
	})
}
