package upstream

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/upstream/guard"
	"portcullis.dev/portcullis/dataplane/upstream/health"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// ErrOverloaded is wrapped by the error when the circuit breaker or the concurrency
// limit refuses a request: nothing of it was sent.
var ErrOverloaded = errors.New("upstream overloaded")

var (
	errRequests    = fmt.Errorf("%w: circuitBreaker.maxRequests are in flight", ErrOverloaded)
	errPending     = fmt.Errorf("%w: circuitBreaker.maxPending wait for a connection", ErrOverloaded)
	errConcurrency = fmt.Errorf("%w: it answers more slowly the more it is asked; the request is shed", ErrOverloaded)
)

// Defaults of RetryBudget and AdaptiveConcurrency.
const (
	defaultBudgetRatio = 0.2
	defaultBudgetMin   = 3
	defaultMinLimit    = 10
	defaultMaxLimit    = 1000
)

// guards are what is counted and known of one upstream beyond its configurations,
// as long as one of them is acquired.
type guards struct {
	key      config.Key
	breaker  guard.Breaker
	budget   guard.Budget
	adaptive guard.Adaptive
	gate     gate
	health   *health.Group
	// left undoes what enter counted, as an Exchange.Done.
	left func(*exchange.Exchange)

	retries, hedges, mirrored, unmirrored atomic.Uint64

	// Guarded by Pool.mu.
	users int
}

// protection is how one configuration guards its upstream.
type protection struct {
	*guards
	limits guard.Limits
	share  guard.Share
	bounds guard.Bounds
	// adapts: the concurrency is limited within bounds.
	adapts bool
	use    *health.Use
	// names tells how the lookups of endpoints' names fare. Guarded by gate.mu.
	names func() []Name
}

// protect begins a configuration's hold on the guards of its upstream. changed is
// called when an endpoint has become usable or no longer is.
func (p *Pool) protect(key config.Key, spec *configv1.Upstream, changed func()) *protection {
	p.mu.Lock()
	g := p.guards[key]
	if g == nil {
		g = &guards{key: key, health: p.monitor.Group()}
		g.gate.breaker = &g.breaker
		g.left = func(*exchange.Exchange) { g.breaker.Leave(guard.Requests) }
		p.guards[key] = g
	}
	g.users++
	p.mu.Unlock()
	limits := spec.GetCircuitBreaker()
	pr := &protection{
		guards: g,
		limits: guard.Limits{
			guard.Connections: int64(limits.GetMaxConnections()), guard.Pending: int64(limits.GetMaxPending()), guard.Requests: int64(limits.GetMaxRequests()),
		},
		share:  guard.Share{Ratio: defaultBudgetRatio, Min: defaultBudgetMin},
		bounds: guard.Bounds{Min: defaultMinLimit, Max: defaultMaxLimit},
		adapts: spec.GetAdaptiveConcurrency() != nil,
	}
	if b := spec.GetRetryBudget(); b != nil {
		if b.Ratio != nil {
			pr.share.Ratio = b.GetRatio()
		}
		if b.Min != nil {
			pr.share.Min = int64(b.GetMin())
		}
	}
	if n := spec.GetAdaptiveConcurrency().GetMin(); n > 0 {
		pr.bounds.Min = int64(n)
	}
	if n := spec.GetAdaptiveConcurrency().GetMax(); n > 0 {
		pr.bounds.Max = int64(n)
	}
	pr.use = g.health.Use(health.SettingsOf(spec), changed)
	g.gate.use(pr)
	return pr
}

// unprotect ends the hold.
func (p *Pool) unprotect(pr *protection) {
	pr.use.End()
	pr.gate.end(pr)
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr.users--; pr.users == 0 {
		delete(p.guards, pr.key)
	}
}

// enter admits a request; the error wraps ErrOverloaded. It allocates nothing.
func (pr *protection) enter(c guard.Criticality) error {
	if !pr.breaker.Enter(guard.Requests, &pr.limits) {
		return errRequests
	}
	if pr.adapts && !pr.adaptive.Enter(pr.bounds, c) {
		pr.breaker.Leave(guard.Requests)
		return errConcurrency
	}
	return nil
}

// answered tells how an admitted request came by its answer's head, or did not.
// From then on it does not count for the concurrency: what streams for hours says
// nothing of how busy the upstream is.
func (pr *protection) answered(start, began, ended time.Time, resp *exchange.Response, err error) {
	if !pr.adapts {
		return
	}
	if err != nil && !errors.Is(err, ErrTimeout) || resp != nil && resp.Status >= 500 {
		pr.adaptive.Leave()
		return
	}
	pr.adaptive.Done(pr.bounds, ended.Sub(start), ended.Sub(began))
}

// requests are those in flight.
func (pr *protection) requests() int64 { return pr.breaker.Len(guard.Requests) }

// criticalityOf is the guard's word for the route's.
func criticalityOf(c configv1.Criticality) guard.Criticality {
	switch c {
	case configv1.Criticality_CRITICALITY_SHEDDABLE:
		return guard.Sheddable
	case configv1.Criticality_CRITICALITY_CRITICAL:
		return guard.Critical
	}
	return guard.Normal
}
