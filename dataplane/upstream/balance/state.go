package balance

import (
	"math"
	"sync/atomic"
	"time"
)

// The average's shape. decay is Finagle's default.
const (
	decay = 10 * time.Second
	// unheard is the cost of an endpoint that has a request in flight and has never
	// answered one: it is asked by one request at a time.
	unheard = float64(math.MaxInt64 >> 16)
	// A failure counts as an answer that took twice what answers take, at least
	// leastPenalty: an endpoint that refuses at once must not look fast. One stray
	// failure is forgotten within seconds, a row of them grows exponentially.
	leastPenalty = 10 * time.Millisecond
	mostPenalty  = time.Minute
)

// stampShift makes the unit of stamps, 65 µs: 32 bits of them last 78 hours,
// after which an endpoint that was never asked looks as if it had just been.
const stampShift = 16

// State is what is known of one endpoint, shared by whoever balances over it. The
// zero State is usable since the start, idle, and has never answered. All methods
// are safe for concurrent use and hold no lock.
type State struct {
	inFlight atomic.Int64
	// latency is the peak EWMA in nanoseconds as float32, and in the low half when
	// it was true: both change as one.
	latency  atomic.Uint64
	since    atomic.Int64
	unusable atomic.Bool
	// Two endpoints' counters do not share a cache line.
	_ [64 - 8 - 8 - 8 - 4]byte
}

// NewState returns the state of an endpoint that is new at now.
func NewState(now time.Duration) *State {
	s := &State{}
	s.since.Store(int64(now))
	return s
}

// Begin notes a request that is being sent.
func (s *State) Begin() { s.inFlight.Add(1) }

// End notes that a request begun is over.
func (s *State) End() { s.inFlight.Add(-1) }

// InFlight returns the requests begun and not over.
func (s *State) InFlight() int { return int(s.inFlight.Load()) }

// SetUsable says whether the endpoint may be chosen, and returns whether that is
// news. The sets that hold the state are to be refreshed then.
func (s *State) SetUsable(now time.Duration, usable bool) (changed bool) {
	if usable && s.unusable.Load() {
		// Before it is seen as usable, so that nobody gives it its whole share.
		s.since.Store(int64(now))
	}
	return s.unusable.Swap(!usable) == usable
}

// Usable says whether the endpoint may be chosen.
func (s *State) Usable() bool { return !s.unusable.Load() }

// Since returns when the endpoint last became usable.
func (s *State) Since() time.Duration { return time.Duration(s.since.Load()) }

// Observe notes how long an answer took. failed: there was none, or one that
// says that the endpoint is not well.
//
// The average is Finagle's peak EWMA (finagle-core, loadbalancer/PeakEwma.scala):
// a latency above the average replaces it; one below pulls it down, by as much as
// time has passed since the last (Eckner, Algorithms for Unevenly Spaced Time
// Series). Answers within one unit of time count as one.
func (s *State) Observe(now, latency time.Duration, failed bool) {
	for {
		old := s.latency.Load()
		average, age := unpack(old, now)
		took := float64(latency)
		if failed {
			took = max(took, min(2*average, float64(mostPenalty)), float64(leastPenalty))
		}
		if took <= average {
			if age == 0 {
				return
			}
			weight := math.Exp(-float64(age) / float64(decay))
			took = average*weight + took*(1-weight)
		}
		if s.latency.CompareAndSwap(old, pack(took, now)) {
			return
		}
	}
}

// Latency returns the peak EWMA at now; 0 before the first answer.
func (s *State) Latency(now time.Duration) time.Duration {
	average, age := unpack(s.latency.Load(), now)
	return time.Duration(average * math.Exp(-float64(age)/float64(decay)))
}

// Cost is what one more request would meet: the peak EWMA times the requests in
// flight with it. As in Finagle, an endpoint that is not asked looks better with
// time and so is tried again; unlike there, not while a request waits for it:
// silence is no good news.
func (s *State) Cost(now time.Duration) float64 {
	waiting := s.inFlight.Load()
	average, age := unpack(s.latency.Load(), now)
	switch {
	case waiting <= 0:
		if age > 0 && average > 0 {
			average *= math.Exp(-float64(age) / float64(decay))
		}
		return average
	case average == 0:
		return unheard + float64(waiting)
	}
	return average * float64(waiting+1)
}

func pack(average float64, now time.Duration) uint64 {
	// Never 0, which means that there is no average.
	return uint64(math.Float32bits(float32(max(average, 1))))<<32 | uint64(uint32(now>>stampShift))
}

func unpack(word uint64, now time.Duration) (average float64, age time.Duration) {
	passed := int32(uint32(now>>stampShift) - uint32(word))
	// Clocks read in one order may be noted in another.
	return float64(math.Float32frombits(uint32(word >> 32))), max(0, time.Duration(passed)<<stampShift)
}
