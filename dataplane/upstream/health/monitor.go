// Package health finds out which endpoints of an upstream should get traffic: by
// asking them (active checks) and by what live traffic shows (outlier detection).
// It owns what is known of each endpoint, beyond the configurations that name it,
// and the checks' connections. It must not know how an endpoint is chosen, nor what
// a request is.
//
// An endpoint is usable until it is known not to be.
package health

import (
	"container/heap"
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

// maxChecks bounds the checks under way at once.
const maxChecks = 256

// Config of a Monitor.
type Config struct {
	// Probe asks an endpoint; an error is why it is not well. It returns soon after
	// ctx has ended and may be called concurrently. Nil asks over the network.
	Probe func(ctx context.Context, c *Check, t Target) error
	// Log; nil discards.
	Log *slog.Logger
}

// Monitor plans the checks and the readmissions of all groups, with one goroutine
// and those of the checks that are under way. It is safe for concurrent use.
type Monitor struct {
	cfg  Config
	wake chan struct{} // cap 1: something sooner is planned

	mu      sync.Mutex
	planned plans
}

// New makes a Monitor, which does nothing until Run.
func New(cfg Config) *Monitor {
	if cfg.Probe == nil {
		cfg.Probe = probe
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Monitor{cfg: cfg, wake: make(chan struct{}, 1)}
}

// Group begins another upstream's health. It costs nothing once its last Use has
// ended.
func (m *Monitor) Group() *Group {
	return &Group{monitor: m, endpoints: map[name]*Endpoint{}, plan: plan{index: -1}}
}

// plan is a group's place in the order of what is to be done.
type plan struct {
	at    time.Time
	index int // in Monitor.planned; -1: nowhere
}

// plans are a heap, soonest first.
type plans []*Group

func (p plans) Len() int           { return len(p) }
func (p plans) Less(i, j int) bool { return p[i].plan.at.Before(p[j].plan.at) }
func (p plans) Swap(i, j int) {
	p[i], p[j] = p[j], p[i]
	p[i].plan.index, p[j].plan.index = i, j
}

func (p *plans) Push(x any) {
	g := x.(*Group)
	g.plan.index = len(*p)
	*p = append(*p, g)
}

func (p *plans) Pop() any {
	last := len(*p) - 1
	g := (*p)[last]
	(*p)[last] = nil
	*p = (*p)[:last]
	g.plan.index = -1
	return g
}

// replan gives the group the place that it is due. The group's lock is held.
func (m *Monitor) replan(g *Group) {
	at := g.next()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch known := g.plan.index >= 0; {
	case at.IsZero() && known:
		heap.Remove(&m.planned, g.plan.index)
		return
	case at.IsZero() || known && at.Equal(g.plan.at):
		return
	case known:
		g.plan.at = at
		heap.Fix(&m.planned, g.plan.index)
	default:
		g.plan.at = at
		heap.Push(&m.planned, g)
	}
	if g.plan.index == 0 {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
}

// due takes out the groups whose time has come, and says when the next one's does;
// zero for never.
func (m *Monitor) due(now time.Time) (groups []*Group, next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.planned) > 0 {
		if at := m.planned[0].plan.at; now.Before(at) {
			return groups, at
		}
		groups = append(groups, heap.Pop(&m.planned).(*Group))
	}
	return groups, time.Time{}
}

// Run checks and readmits until ctx ends, and returns when all checks have ended.
func (m *Monitor) Run(ctx context.Context) error {
	var checks sync.WaitGroup
	defer checks.Wait()
	slots := make(chan struct{}, maxChecks)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now := time.Now()
		groups, next := m.due(now)
		for _, g := range groups {
			check, due := g.advance(now)
			for _, e := range due {
				select {
				case slots <- struct{}{}:
				case <-ctx.Done():
					return nil
				}
				checks.Go(func() {
					m.check(ctx, g, e, check)
					<-slots
				})
			}
		}
		if len(groups) > 0 {
			continue // time has passed
		}
		wait := time.Hour
		if !next.IsZero() {
			wait = time.Until(next)
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-m.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// check asks one endpoint once.
func (m *Monitor) check(ctx context.Context, g *Group, e *Endpoint, c *Check) {
	g.mu.Lock()
	target := e.target
	g.mu.Unlock()
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, c.Timeout)
	err := m.cfg.Probe(bounded, c, target)
	cancel()
	if ctx.Err() != nil {
		return // it says nothing of the endpoint
	}
	wait := time.Duration((0.9 + 0.2*rand.Float64()) * float64(c.Interval))
	before := e.Usable()
	g.checked(e, c, began, time.Now(), wait, err)
	if after := e.Usable(); before != after {
		m.cfg.Log.Info("an endpoint's health has changed", "endpoint", target.Address, "usable", after, "detail", detailOf(0, err))
	}
}
