package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"portcullis.dev/portcullis/deploy/cluster"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const resilient = `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: checked}
spec:
  endpoints: [{url: %[1]q}, {url: %[2]q}]
  balance: {algorithm: round_robin}
  healthCheck: {http: {path: /ready}, interval: 100ms, unhealthy: 2, healthy: 1}
  panicThreshold: 0
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: flaky}
spec:
  endpoints: [{url: %[1]q}, {url: %[2]q}]
  balance: {algorithm: round_robin}
  outlierDetection: {consecutiveFailures: 100}
  retryBudget: {ratio: 1, min: 5}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: narrow}
spec:
  endpoints: [{url: %[2]q}]
  circuitBreaker: {maxRequests: 1}
  adaptiveConcurrency: {min: 5, max: 50}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: shadow}
spec: {endpoints: [{url: %[3]q}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: checked}
spec: {public: true, matches: [{path: {prefix: /checked}}], backends: [{upstream: checked}], priority: %[4]d}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: flaky}
spec:
  public: true
  matches: [{path: {prefix: /flaky}}]
  backends: [{upstream: flaky}]
  retries: {attempts: 2, "on": [unavailable, timeout], backoff: 1ms}
  hedging: {delay: 1s}
  timeouts: {request: 10s, attempt: 5s, idle: 1m, deadlineHeader: X-Timeout-Ms}
  mirrors: [{upstream: shadow}]
  criticality: critical
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: narrow}
spec: {public: true, matches: [{path: {prefix: /narrow}}], backends: [{upstream: narrow}]}
`

// TestResilience declares what keeps a service up and sees each at work on every
// node, in status and in metrics.
func TestResilience(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 2, MetricsListen: "127.0.0.1:0"})
	var sick atomic.Bool
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if sick.Load() {
			w.WriteHeader(503)
			return
		}
		_, _ = io.WriteString(w, "bad")
	}))
	defer bad.Close()
	arrived, release := make(chan struct{}), make(chan struct{})
	good := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/narrow/hold" {
			arrived <- struct{}{}
			<-release
		}
		_, _ = io.WriteString(w, "good "+r.Header.Get("X-Timeout-Ms"))
	}))
	defer good.Close()
	declare := func(priority int) { h.apply(fmt.Sprintf(resilient, bad.URL, good.URL, h.up.URL, priority)) }
	declare(0)
	sick.Store(true)
	address := strings.TrimPrefix(bad.URL, "http://")
	h.until("out on both nodes, as status shows", func() error { return h.finds(2, address, "health_check", "status 503") })
	for node := range 2 {
		h.until("no request goes there", func() error {
			for range 6 {
				if a := h.get(node, "/checked"); a.Status != 200 {
					return fmt.Errorf("%+v", a)
				}
			}
			return nil
		})
		h.up.take()
		for range 6 {
			a := h.get(node, "/flaky")
			if a.Status != 200 || !strings.HasPrefix(a.Body, "good ") || a.Body == "good " {
				t.Errorf("node %d: a retry does not help, or the upstream is not told its time: %+v", node, a)
			}
		}
		copies := 0
		h.until("copies", func() error {
			if copies += len(h.up.take()); copies < 6 {
				return fmt.Errorf("%d of 6 copies", copies)
			}
			return nil
		})
		var first sync.WaitGroup
		first.Go(func() { _, _ = h.try(node, "GET", "/narrow/hold", "") })
		<-arrived
		if a := h.get(node, "/narrow"); a.Status != 503 || a.Reason != "upstream_overloaded" || a.Header.Get("Retry-After") != "1" {
			t.Errorf("node %d: beyond the breaker: %+v", node, a)
		}
		release <- struct{}{}
		first.Wait()
		for name, want := range map[string]float64{
			`portcullis_upstream_endpoints\{[^}]*portcullis_upstream="checked"[^}]*\}`:              2,
			`portcullis_upstream_endpoints_usable\{[^}]*portcullis_upstream="checked"[^}]*\}`:       1,
			`portcullis_upstream_mirrored_total\{[^}]*portcullis_upstream="shadow"[^}]*\}`:          6,
			`portcullis_upstream_refused_total\{[^}]*limit="requests"[^}]*upstream="narrow"[^}]*\}`: 1,
			`portcullis_upstream_concurrency_limit\{[^}]*portcullis_upstream="narrow"[^}]*\}`:       50,
		} {
			if got := h.metric(node, name); got != want {
				t.Errorf("node %d: %s is %v, want %v", node, name, got, want)
			}
		}
	}
	for node := range 2 {
		// Whose turn it is decides how many of six meet the one that fails.
		if got := h.metric(node, `portcullis_upstream_retries_total\{[^}]*portcullis_upstream="flaky"[^}]*\}`); got < 1 || got > 6 {
			t.Errorf("node %d: %v retries of 6 requests", node, got)
		}
	}
	// Another revision changes nothing of what is known.
	declare(1)
	for node := range 2 {
		if a := h.get(node, "/checked"); a.Status != 200 {
			t.Errorf("node %d after the swap: %+v", node, a)
		}
	}
	h.must("still out", h.finds(2, address, "health_check", "status 503"))
	sick.Store(false)
	h.until("back", func() error { return h.finds(0, address, "", "") })
}

// finds tells whether so many nodes find the endpoint out for the reason.
func (h *harness) finds(nodes int, address, reason, detail string) error {
	resp, err := h.admin.Status(h.t.Context(), &adminv1.StatusRequest{})
	if err != nil {
		return err
	}
	found := 0
	for _, node := range resp.Nodes {
		for _, e := range node.GetCondition().GetEndpoints() {
			if e.Address == address && e.Workspace == "default" && e.Upstream == "checked" && e.Since != nil && (reason == "" || e.Reason == reason && e.Detail == detail) {
				found++
			}
		}
	}
	if found != nodes {
		return fmt.Errorf("%d of %d nodes find %s out: %v", found, nodes, address, conditions(resp.Nodes))
	}
	return nil
}

func conditions(nodes []*controlv1.NodeStatus) []string {
	var out []string
	for _, node := range nodes {
		out = append(out, node.Name+": "+node.GetCondition().String())
	}
	return out
}
