package guard

import (
	"math"
	"sync/atomic"
	"time"
)

// Criticality says what is shed first. The order is that of shedding.
type Criticality uint8

// The criticalities, and what each may take of the limit that was found.
const (
	// Sheddable is refused from 80 % of the limit on, so that it never meets the
	// normal ones in a queue.
	Sheddable Criticality = iota
	// Normal is refused at the limit.
	Normal
	// Critical is admitted up to 20 % beyond the limit, at least one request: what
	// the upstream then queues is short.
	Critical
)

// Shares of the limit by criticality.
const (
	sheddableShare = 0.8
	criticalShare  = 1.2
)

// Constants of the algorithm.
const (
	// startLimit is where a limit begins, within its bounds.
	startLimit = 50
	// tolerance is how far latency may rise above its base before the limit falls:
	// some of it is only noise, and a short queue keeps the upstream busy
	// (Gradient2: rttTolerance).
	tolerance = 1.5
	// smoothing is the weight of a window's result (Gradient2).
	smoothing = 0.2
	// minGradient bounds how fast the limit falls (Gradient2).
	minGradient = 0.5
	// minSamples and minWindow are what a window must have, that its mean says
	// something; a window also lasts at least as long as one request.
	minSamples = 10
	minWindow  = 50 * time.Millisecond
	// basePeriod is how long the least latency counts; it counts for twice as long
	// at most.
	basePeriod = 30 * time.Second
	// near is what is as good as the base.
	near = 1.1
	// probeShare of the limit is allowed while the base is measured again, less
	// than what is left of a limit without the queue that tolerance allows.
	probeShare = 0.5
	// maxProbe bounds a probe.
	maxProbe = 2 * time.Second
)

// Bounds of an Adaptive limit. 1 <= Min <= Max.
type Bounds struct{ Min, Max int64 }

// Adaptive finds how many requests an upstream bears at once. Per window of
// samples it compares the mean latency with the base, the least mean of the last
// 30 to 60 s: while the ratio is within the tolerance the limit grows by its square
// root, beyond it shrinks by the ratio. This is the gradient algorithm of Netflix's
// concurrency-limits (Gradient2Limit) and of Envoy's adaptive concurrency filter
// (GradientController), from which the square root is.
//
// The base is where they differ. A long-term average, Gradient2's, takes a queue
// that stays for normal; Envoy drops to a few requests every minute to measure.
// Here the limit halves for a moment, and only when traffic has not shown latency
// near the base for 30 s by itself; and what latency is with the least limit is
// not of our queueing, so that it is the base by definition.
//
// The zero Adaptive is ready.
type Adaptive struct {
	inFlight Gauge
	refused  atomic.Uint64
	// limit is the bits of a float64; 0 before the first use.
	limit atomic.Uint64
	// probing is set while probeShare of the limit holds.
	probing atomic.Bool
	// The window that is open.
	sum, count, peak, opened atomic.Int64
	// updating is held, and never waited for, by whoever closes a window.
	updating atomic.Bool

	// Owned by whoever holds updating; times are nanoseconds.
	// now and before are the least means of this period and the last; 0: none.
	now, before float64
	period      int64
	probeUntil  int64
}

// Enter admits one more request of the criticality, or counts a refusal.
func (a *Adaptive) Enter(b Bounds, c Criticality) bool {
	limit := a.current(b)
	if a.probing.Load() {
		limit = max(limit*probeShare, float64(b.Min))
	}
	most := int64(limit)
	switch c {
	case Sheddable:
		most = max(1, int64(limit*sheddableShare))
	case Critical:
		most = max(most+1, int64(limit*criticalShare))
	}
	if !a.inFlight.Enter(most) {
		a.refused.Add(1)
		return false
	}
	if n := a.inFlight.Len(); n > a.peak.Load() {
		a.peak.Store(n) // a lost race loses one sample of a peak
	}
	return true
}

// Leave undoes one Enter that returned true without telling a latency: the request
// failed, and a quick failure says nothing of what the upstream bears.
func (a *Adaptive) Leave() { a.inFlight.Leave() }

// Done undoes one Enter that returned true; now is on a clock of the caller's that
// never goes back, latency is how long the upstream took, or how long the node
// waited in vain.
func (a *Adaptive) Done(b Bounds, now, latency time.Duration) {
	a.inFlight.Leave()
	a.sum.Add(int64(latency))
	n := a.count.Add(1)
	opened := a.opened.Load()
	switch {
	case opened == 0:
		a.opened.CompareAndSwap(0, max(1, int64(now)))
		return
	case n < minSamples || int64(now)-opened < int64(max(minWindow, latency)):
		return
	}
	if !a.updating.CompareAndSwap(false, true) {
		return
	}
	defer a.updating.Store(false)
	if a.opened.Load() != opened {
		return // closed by another since
	}
	sum, count := a.sum.Swap(0), a.count.Swap(0)
	peak := a.peak.Swap(a.inFlight.Len())
	a.opened.Store(max(1, int64(now)))
	if count > 0 {
		a.update(b, int64(now), float64(sum)/float64(count), peak)
	}
}

// update closes a window whose mean latency was mean and in which at most peak
// requests were in flight.
func (a *Adaptive) update(b Bounds, now int64, mean float64, peak int64) {
	limit := a.current(b)
	mean = max(mean, 1)
	if a.now == 0 || mean < a.now {
		a.now = mean
	}
	if a.probing.Load() {
		// What stood before the probe is in its first windows; the least mean counts.
		if now >= a.probeUntil {
			a.probing.Store(false)
			a.rotate(now)
		}
		return
	}
	if a.period == 0 {
		a.period = now
	}
	if now-a.period >= int64(basePeriod) {
		if base := a.base(); a.now > base*near && float64(peak) >= limit*probeShare {
			a.probing.Store(true)
			a.probeUntil = now + min(int64(4*mean), int64(maxProbe))
			return
		}
		a.rotate(now)
	}
	if limit <= float64(b.Min) && mean > a.base()*tolerance && a.base() > 0 {
		// Whatever makes it slow, it is not what we lay on it.
		a.before, a.now = 0, mean
	}
	gradient := min(1, max(minGradient, tolerance*a.base()/mean))
	if gradient == 1 && float64(peak) < limit/2 {
		return // what was not tried is not known (Gradient2)
	}
	next := limit*gradient + math.Sqrt(limit)
	a.store(clamp(limit+smoothing*(next-limit), b))
}

// rotate begins another period.
func (a *Adaptive) rotate(now int64) {
	a.before, a.now, a.period = a.now, 0, now
}

// base is the least mean of this period and the last.
func (a *Adaptive) base() float64 {
	switch {
	case a.now == 0:
		return a.before
	case a.before == 0:
		return a.now
	}
	return min(a.now, a.before)
}

func (a *Adaptive) current(b Bounds) float64 {
	bits := a.limit.Load()
	if bits == 0 {
		return clamp(startLimit, b)
	}
	return clamp(math.Float64frombits(bits), b)
}

func (a *Adaptive) store(limit float64) { a.limit.Store(math.Float64bits(limit)) }

func clamp(limit float64, b Bounds) float64 {
	return max(float64(b.Min), min(float64(b.Max), limit))
}

// Limit is what has been found.
func (a *Adaptive) Limit(b Bounds) int64 { return int64(a.current(b)) }

// Len is how many requests are in flight.
func (a *Adaptive) Len() int64 { return a.inFlight.Len() }

// Refused is how many requests have been shed.
func (a *Adaptive) Refused() uint64 { return a.refused.Load() }
