package telemetry

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Bounds are the upper bounds of the duration buckets in seconds: those that the
// HTTP semantic conventions advise, and three below them, since a gateway's own
// share lies there.
func Bounds() []float64 {
	return []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}
}

const bucketCount = 18 // len(Bounds()) + 1

// An upstream chooses its statuses; a route's further kinds of answer are counted
// as one.
const maxSeries = 128

// Counters count requests per route in atomics, from where they are collected
// when a reader asks. They outlive configuration changes. Safe for concurrent
// use.
type Counters struct {
	bounds [bucketCount]time.Duration // the last one is never reached
	start  time.Time
	active [methodCount][2]atomic.Int64

	mu     sync.RWMutex
	routes map[routeKey]*RouteCounters
}

type routeKey struct{ workspace, name string }

// Request is one request that has ended.
type Request struct {
	Method string
	// TLS says that the scheme is https.
	TLS    bool
	Status int
	// Reason is the refusal's; empty when the request was allowed.
	Reason   string
	Duration time.Duration
}

// RouteCounters are one route's.
type RouteCounters struct {
	of    *Counters
	key   routeKey
	start time.Time
	// series is copied on write: a route has a handful, found by walking.
	series atomic.Pointer[[]*series]
	grow   sync.Mutex
}

// series is what shares all attributes.
type series struct {
	code     uint32 // method, scheme and status, see pack
	reason   string
	start    time.Time
	buckets  [bucketCount]atomic.Uint64
	sumNanos atomic.Int64
}

const overflowCode = math.MaxUint32

// NewCounters returns counters without routes.
func NewCounters() *Counters {
	c := &Counters{start: time.Now(), routes: make(map[routeKey]*RouteCounters)}
	for i, b := range Bounds() {
		c.bounds[i] = time.Duration(math.Round(b * float64(time.Second)))
	}
	c.bounds[bucketCount-1] = math.MaxInt64
	return c
}

// Route returns the counters of a route, the same ones for the same names. Both
// names empty: of requests that match none. A gateway asks when it compiles, not
// per request.
func (c *Counters) Route(workspace, name string) *RouteCounters {
	key := routeKey{workspace, name}
	c.mu.RLock()
	r := c.routes[key]
	c.mu.RUnlock()
	if r != nil {
		return r
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if r = c.routes[key]; r == nil {
		r = &RouteCounters{of: c, key: key, start: time.Now()}
		r.series.Store(new([]*series))
		c.routes[key] = r
	}
	return r
}

// Forget drops the counters of a route that is gone. Requests in flight may still
// count on them; nobody reads it.
func (c *Counters) Forget(workspace, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.routes, routeKey{workspace, name})
}

// Began counts a request in flight; Ended takes it back with the same arguments.
func (c *Counters) Began(method string, tls bool) { c.active[methodOf(method)][bit(tls)].Add(1) }

// Ended says that a request that Began is over.
func (c *Counters) Ended(method string, tls bool) { c.active[methodOf(method)][bit(tls)].Add(-1) }

// Count counts a request. It allocates only for the first of its kind.
func (r *RouteCounters) Count(q Request) {
	d := max(q.Duration, 0)
	s := r.find(pack(q), q.Reason)
	if s == nil {
		s = r.add(pack(q), q.Reason)
	}
	i := 0
	for d > r.of.bounds[i] {
		i++
	}
	s.buckets[i].Add(1)
	s.sumNanos.Add(int64(d))
}

func (r *RouteCounters) find(code uint32, reason string) *series {
	for _, s := range *r.series.Load() {
		if s.code == code && s.reason == reason {
			return s
		}
	}
	return nil
}

func (r *RouteCounters) add(code uint32, reason string) *series {
	r.grow.Lock()
	defer r.grow.Unlock()
	if len(*r.series.Load()) >= maxSeries-1 {
		code, reason = overflowCode, ""
	}
	if s := r.find(code, reason); s != nil {
		return s
	}
	s := &series{code: code, reason: reason, start: time.Now()}
	old := *r.series.Load()
	next := append(old[:len(old):len(old)], s)
	r.series.Store(&next)
	return s
}

// pack puts method, scheme and status into one word.
func pack(q Request) uint32 {
	status := q.Status
	if status < 0 || status > 999 {
		status = 0
	}
	return uint32(methodOf(q.Method))<<17 | uint32(bit(q.TLS))<<16 | uint32(status)
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

const methodCount = 11

// methods are the well-known ones; clients can send any, which counts as _OTHER
// (HTTP semantic conventions, http.request.method).
func methods() [methodCount]string {
	return [...]string{"_OTHER", "GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "CONNECT", "TRACE", "QUERY"}
}

func methodOf(m string) int {
	switch m {
	case "GET":
		return 1
	case "POST":
		return 2
	case "PUT":
		return 3
	case "DELETE":
		return 4
	case "HEAD":
		return 5
	case "PATCH":
		return 6
	case "OPTIONS":
		return 7
	case "CONNECT":
		return 8
	case "TRACE":
		return 9
	case "QUERY":
		return 10
	}
	return 0
}
