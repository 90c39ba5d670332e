package upstream

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"portcullis.dev/portcullis/dataplane/upstream/guard"
)

// gate bounds the connections to one upstream, those to all its endpoints
// together, by the newest configuration.
type gate struct {
	breaker *guard.Breaker
	limits  atomic.Pointer[guard.Limits]
	// waiting counts those who wait for a connection that is taken.
	waiting atomic.Int64

	mu sync.Mutex
	// Guarded by mu. freed is closed when a connection has ended or is idle, or
	// has a stream to spare; nil when nobody waits.
	freed chan struct{}
	uses  []*protection
	trips []evicter
}

// evicter closes one of the connections that it keeps idle, if there is one.
type evicter interface{ evict() bool }

func (g *gate) use(pr *protection) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.uses = append(g.uses, pr)
	g.limits.Store(&pr.limits)
}

func (g *gate) end(pr *protection) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.uses = slices.DeleteFunc(g.uses, func(other *protection) bool { return other == pr })
	if len(g.uses) > 0 {
		g.limits.Store(&g.uses[len(g.uses)-1].limits)
	}
}

// current is the newest configuration, nil when there is none, and what tells how
// its names fare, nil until its lookups have begun.
func (g *gate) current() (*protection, func() []Name) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.uses) == 0 {
		return nil, nil
	}
	newest := g.uses[len(g.uses)-1]
	return newest, newest.names
}

// opened sets what tells how the names of a configuration fare.
func (g *gate) opened(pr *protection, names func() []Name) {
	g.mu.Lock()
	defer g.mu.Unlock()
	pr.names = names
}

// join names one that keeps connections idle; quit takes it out.
func (g *gate) join(t evicter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trips = append(g.trips, t)
}

func (g *gate) quit(t evicter) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trips = slices.DeleteFunc(g.trips, func(other evicter) bool { return other == t })
}

// await returns what is closed when a connection may be had.
func (g *gate) await() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.freed == nil {
		g.freed = make(chan struct{})
	}
	return g.freed
}

// free wakes those who wait. They all look: there are at most maxPending.
func (g *gate) free() {
	if g.waiting.Load() == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.freed != nil {
		close(g.freed)
		g.freed = nil
	}
}

// evict has somebody close an idle connection: it may be to another endpoint than
// the one that is waited for.
func (g *gate) evict() bool {
	g.mu.Lock()
	trips := slices.Clone(g.trips)
	g.mu.Unlock()
	return slices.ContainsFunc(trips, evicter.evict)
}

// begin counts a request that waits for a connection, or refuses it; over ends it.
func (g *gate) begin() bool { return g.breaker.Enter(guard.Pending, g.limits.Load()) }

func (g *gate) over() { g.breaker.Leave(guard.Pending) }

// pass waits for the right to open a connection until ctx ends, while idle finds
// none that can be used instead; found is whether it did. Without bounds it waits
// for nothing. The error wraps ErrOverloaded. Whoever passes calls leave once the
// connection has ended or could not be made.
func (g *gate) pass(ctx context.Context, idle func() bool) (found bool, err error) {
	if g.breaker.Enter(guard.Connections, g.limits.Load()) {
		return false, nil
	}
	g.waiting.Add(1)
	defer g.waiting.Add(-1)
	for {
		freed := g.await()
		if idle() {
			return true, nil
		}
		if g.breaker.TryEnter(guard.Connections, g.limits.Load()) {
			return false, nil
		}
		if g.evict() {
			continue
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return false, fmt.Errorf("%w: circuitBreaker.maxConnections are busy: %w", ErrOverloaded, context.Cause(ctx))
		}
	}
}

// leave says that a connection has ended.
func (g *gate) leave() {
	g.breaker.Leave(guard.Connections)
	g.free()
}

// counted is a connection that leaves its gate when it is closed.
type counted struct {
	net.Conn
	gate *gate
	once sync.Once
}

// countedTCP is counted that can still be looked into.
type countedTCP struct {
	*net.TCPConn
	gate *gate
	once sync.Once
}

func (c *counted) Close() error {
	defer c.once.Do(c.gate.leave)
	return c.Conn.Close()
}

func (c *countedTCP) Close() error {
	defer c.once.Do(c.gate.leave)
	return c.TCPConn.Close()
}

// count makes the connection's end known to the gate.
func (g *gate) count(conn net.Conn) net.Conn {
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &countedTCP{TCPConn: tcp, gate: g}
	}
	return &counted{Conn: conn, gate: g}
}
