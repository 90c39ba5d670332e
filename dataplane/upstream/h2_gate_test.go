package upstream

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/upstream/guard"
)

// Who waits for a connection that the circuit breaker does not grant is served as
// soon as one that is there has a stream to spare.
func TestHTTP2WaitersGetTheStreamThatBecomesFree(t *testing.T) {
	arrived, release := make(chan struct{}, 100), make(chan struct{})
	url, conns := serveHTTP2(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-release })
	b := guarded(t, `{protocol: http2, circuitBreaker: {maxConnections: 1, maxPending: 3}}`, `{}`, url)
	var group sync.WaitGroup
	var served atomic.Int64
	ask := func() {
		group.Go(func() {
			if status, _, err := send(b, get("/"), patience); status != 200 || err != nil {
				t.Errorf("%d %v", status, err)
			}
			served.Add(1)
		})
	}
	// The server takes four at once on a connection.
	for range 4 {
		ask()
		<-arrived
	}
	for range 3 {
		ask()
	}
	eventually(t, "three wait", func() bool { return b.upstream.breaker.Len(guard.Pending) == 3 })
	if _, _, err := send(b, get("/"), patience); !errors.Is(err, ErrOverloaded) {
		t.Errorf("nowhere to wait: %v", err)
	}
	for range 3 {
		release <- struct{}{}
		<-arrived
	}
	close(release)
	group.Wait()
	if served.Load() != 7 || conns.Load() != 1 || b.upstream.breaker.Len(guard.Pending) != 0 {
		t.Errorf("%d served over %d connections, %d are left waiting", served.Load(), conns.Load(), b.upstream.breaker.Len(guard.Pending))
	}
}

// Where another endpoint's connection takes up the place it is closed as soon as it
// is idle.
func TestHTTP2IdleConnectionsMakeRoomForOthers(t *testing.T) {
	ok := func(http.ResponseWriter, *http.Request) {}
	one, ones := serveHTTP2(t, ok)
	other, others := serveHTTP2(t, ok)
	b := guarded(t, `{protocol: http2, circuitBreaker: {maxConnections: 1, maxPending: 10}, balance: {algorithm: round_robin}}`, `{}`, one, other)
	for range 6 {
		if status, _, err := send(b, get("/"), patience); status != 200 || err != nil {
			t.Fatalf("%d %v", status, err)
		}
	}
	if ones.Load() == 0 || others.Load() == 0 || b.upstream.breaker.Len(guard.Connections) > 1 {
		t.Errorf("%d and %d connections, %d open", ones.Load(), others.Load(), b.upstream.breaker.Len(guard.Connections))
	}
}

// What is given up while it waits leaves nothing behind.
func TestHTTP2WaitersThatGiveUp(t *testing.T) {
	arrived, release := make(chan struct{}, 100), make(chan struct{})
	url, _ := serveHTTP2(t, func(http.ResponseWriter, *http.Request) { arrived <- struct{}{}; <-release })
	b := guarded(t, `{protocol: http2, circuitBreaker: {maxConnections: 1, maxPending: 3}}`, `{}`, url)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() { _, _, _ = send(b, get("/"), patience) })
		<-arrived
	}
	if _, _, err := send(b, get("/"), 30*time.Millisecond); !errors.Is(err, ErrOverloaded) && !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	close(release)
	group.Wait()
	if n, m := b.upstream.breaker.Len(guard.Pending), b.upstream.gate.waiting.Load(); n != 0 || m != 0 {
		t.Errorf("%d are left pending, %d waiting", n, m)
	}
}
