package gateway

import (
	"testing"
)

// What guards an upstream costs a request nothing but a few counters.
func TestForwardingToAGuardedUpstreamAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("ALLOCATIONS ARE NOT COUNTED under the race detector, where sync.Pool forgets: make test counts them without")
	}
	r := newRig(t)
	r.apply(typical + issuer("default", "local", "https://local.example", secret) + doc("Upstream", "default", "up", `
  endpoints: [{url: "http://127.0.0.1:1"}]
  healthCheck: {tcp: {}}
  outlierDetection: {}
  circuitBreaker: {maxConnections: 10, maxPending: 10, maxRequests: 10}
  adaptiveConcurrency: {}
  retryBudget: {ratio: 0.1}`))
	r.forwarded(t, manyScopes, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello", func(exchange func()) {
		for range decisionSlots + 3 { // the ring is warm then
			exchange()
		}
		if n := testing.AllocsPerRun(1000, exchange); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
