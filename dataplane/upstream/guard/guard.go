// Package guard decides how much one node may lay on one upstream: the circuit
// breaker's bounds, the budget of retries and hedges, and the concurrency that an
// upstream bears, found from its latency. It counts and decides; it must not know
// what a request is, opens nothing, starts nothing, and reads no clock: time is an
// argument.
//
// What it counts outlives the configuration, and so bounds are arguments too: a
// changed bound holds for the very next request. All types are safe for concurrent
// use without locks, and no method allocates.
package guard

import (
	"math"
	"sync/atomic"
)

// Gauge counts what is in flight. The zero Gauge is empty.
type Gauge struct{ n atomic.Int64 }

// Enter counts one more unless most are there already, and says whether it did.
// The count never exceeds most, not even for a moment: of requests that come at
// once no one is refused for the sake of another that is refused too. 0 means no
// bound.
func (g *Gauge) Enter(most int64) bool {
	if most <= 0 {
		g.n.Add(1)
		return true
	}
	for {
		n := g.n.Load()
		if n >= most {
			return false
		}
		if g.n.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Leave undoes one Enter that returned true.
func (g *Gauge) Leave() { g.n.Add(-1) }

// Len is how many are in flight.
func (g *Gauge) Len() int64 { return g.n.Load() }

// Kind is what a Breaker bounds.
type Kind uint8

// The kinds.
const (
	// Connections that are open or being opened.
	Connections Kind = iota
	// Pending are requests that wait for a connection.
	Pending
	// Requests are in flight, waiting ones included.
	Requests

	kinds
)

// Limits of a Breaker, by Kind; 0 means no bound.
type Limits [kinds]int64

// Breaker refuses what is beyond the limits at once, so that an upstream that
// hangs cannot hold all that the node has (Nygard, Release It!, "circuit breaker"
// and "bulkhead"; the three bounds are Envoy's). The zero Breaker is ready.
type Breaker struct {
	gauges  [kinds]Gauge
	refused [kinds]atomic.Uint64
}

// Enter admits one more of the kind, or counts a refusal.
func (b *Breaker) Enter(k Kind, l *Limits) bool {
	if b.gauges[k].Enter(l[k]) {
		return true
	}
	b.refused[k].Add(1)
	return false
}

// TryEnter is Enter that counts no refusal, for who waits and asks again.
func (b *Breaker) TryEnter(k Kind, l *Limits) bool { return b.gauges[k].Enter(l[k]) }

// Leave undoes one Enter that returned true.
func (b *Breaker) Leave(k Kind) { b.gauges[k].Leave() }

// Len is how many of the kind are in flight.
func (b *Breaker) Len(k Kind) int64 { return b.gauges[k].Len() }

// Refused is how many of the kind have been refused.
func (b *Breaker) Refused(k Kind) uint64 { return b.refused[k].Load() }

// Budget bounds retries and hedges in flight as a share of the requests in flight,
// so that they cannot multiply the load on an upstream that fails for all: with
// ratio 0.2 it gets at most 1.2 times what clients send (Google SRE book, ch. 21).
// The zero Budget is ready.
type Budget struct {
	inFlight Gauge
	refused  atomic.Uint64
}

// Share is how much a Budget allows.
type Share struct {
	// Ratio of the requests in flight, 0 or more.
	Ratio float64
	// Min are always allowed.
	Min int64
}

// Enter admits one more retry or hedge while requests are in flight.
func (b *Budget) Enter(s Share, requests int64) bool {
	most := max(s.Min, int64(math.Floor(s.Ratio*float64(requests))))
	if most > 0 && b.inFlight.Enter(most) {
		return true
	}
	b.refused.Add(1)
	return false
}

// Leave undoes one Enter that returned true.
func (b *Budget) Leave() { b.inFlight.Leave() }

// Len is how many are in flight.
func (b *Budget) Len() int64 { return b.inFlight.Len() }

// Refused is how many have been refused.
func (b *Budget) Refused() uint64 { return b.refused.Load() }
