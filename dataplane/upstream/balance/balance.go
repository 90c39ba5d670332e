// Package balance chooses the endpoint of a request. It owns what is known of an
// endpoint's load, latency and usability, and the structures that make a choice
// cheap. It opens no connection, starts no goroutine and reads no clock: time is
// an argument, a duration since any fixed start on the monotonic clock, the same
// for all that share a State.
package balance

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Algorithm says how an endpoint is chosen among those that are usable.
type Algorithm uint8

// The algorithms.
const (
	// LeastRequest takes the better of two that are drawn by weight (Mitzenmacher,
	// The Power of Two Choices in Randomized Load Balancing, 2001), by State.Cost
	// over weight.
	LeastRequest Algorithm = iota
	// RoundRobin takes all in turn, as often as their weights say.
	RoundRobin
	// Random draws by weight.
	Random
	// RingHash is consistent hashing: one endpoint more or less moves few keys.
	RingHash
	// BoundedLoad is RingHash, but an endpoint that has its share of what is in
	// flight passes a key on to the next one on the ring (Mirrokni, Thorup,
	// Zadimoghaddam, Consistent Hashing with Bounded Loads, 2016).
	BoundedLoad
)

// Hashed tells whether the algorithm goes by a key of the request.
func (a Algorithm) Hashed() bool { return a == RingHash || a == BoundedLoad }

// DefaultLoadFactor is that of BoundedLoad.
const DefaultLoadFactor = 1.25

// Config of a Set. The zero Config is LeastRequest without slow start, zones and
// panic.
type Config struct {
	Algorithm Algorithm
	// LoadFactor bounds, for BoundedLoad, an endpoint's requests in flight relative
	// to the mean by weight; at least 1; 0: DefaultLoadFactor.
	LoadFactor float64
	// SlowStart is how long it takes until an endpoint that is new or usable again
	// gets its whole share; 0: at once. Its share grows linearly from a tenth.
	SlowStart time.Duration
	// Zone is where this node stands. When it is not empty and a candidate stands
	// there too, that zone gets what it can take (see zones). It has no effect on
	// the hashing algorithms: a key belongs to one endpoint, whoever asks.
	Zone string
	// PanicThreshold is the share of usable candidates under which usability is
	// ignored; 0 never ignores it.
	PanicThreshold float64
	// Rand returns 64 random bits and is safe for concurrent use; nil: that of
	// math/rand/v2.
	Rand func() uint64
}

// Candidate is an endpoint as a Set sees it.
type Candidate struct {
	// State is shared by all sets that hold the endpoint; not nil.
	State *State
	// Key places the endpoint on the hash ring; unique in the set and the same on
	// every node.
	Key string
	// ID is what an affinity cookie names; 0: none.
	ID uint64
	// Weight is the endpoint's relative share; one of weight 0 is never chosen.
	Weight uint32
	Zone   string
	Labels map[string]string
	// Source and Priority are those of a DNS service: of the candidates of one
	// source, only those of the lowest priority of which enough are usable are chosen.
	Source   int
	Priority uint16
}

// Select returns the candidates that have all of the labels.
func Select(candidates []Candidate, labels map[string]string) []Candidate {
	return slices.DeleteFunc(slices.Clone(candidates), func(c Candidate) bool {
		for name, value := range labels {
			if have, ok := c.Labels[name]; !ok || have != value {
				return true
			}
		}
		return false
	})
}

// Set picks among a fixed list of candidates. Pick holds no lock and allocates
// nothing; everything is safe for concurrent use.
type Set struct {
	cfg        Config
	candidates []Candidate
	byID       map[uint64]int32
	// zones are the candidates' distinct zones; zone is each candidate's.
	zones []string
	zone  []int32
	// whole is the ring of all candidates; nil unless the algorithm needs it.
	whole *ring

	// turns of the zones, and of the choice among them.
	turns []turn
	among turn

	refresh sync.Mutex
	view    atomic.Pointer[view]
}

// New makes a set; it keeps candidates. It looks at the states as they are now.
func New(cfg Config, candidates []Candidate) *Set {
	if cfg.LoadFactor == 0 {
		cfg.LoadFactor = DefaultLoadFactor
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Uint64
	}
	s := &Set{cfg: cfg, candidates: candidates, byID: make(map[uint64]int32), zone: make([]int32, len(candidates))}
	for i := range candidates {
		if id := candidates[i].ID; id != 0 {
			s.byID[id] = int32(i)
		}
		at := 0
		if cfg.Zone != "" && !cfg.Algorithm.Hashed() {
			if at = slices.Index(s.zones, candidates[i].Zone); at < 0 {
				at = len(s.zones)
				s.zones = append(s.zones, candidates[i].Zone)
			}
		}
		s.zone[i] = int32(at)
	}
	if len(s.zones) == 0 {
		s.zones = []string{""}
	}
	s.turns = make([]turn, len(s.zones))
	if cfg.Algorithm.Hashed() {
		s.whole = newRing(candidates)
	}
	s.Refresh()
	return s
}

// Len returns the number of candidates.
func (s *Set) Len() int { return len(s.candidates) }

// Candidate returns the candidate that Pick means by i.
func (s *Set) Candidate(i int) *Candidate { return &s.candidates[i] }

// Refresh takes over which candidates are usable. Whoever changes a State calls
// it for the sets that hold the state; for a large set it costs milliseconds, so
// not in a request. Until then Pick avoids what has become unusable, and does not
// know what has become usable.
func (s *Set) Refresh() {
	s.refresh.Lock()
	defer s.refresh.Unlock()
	s.view.Store(s.look())
}

// Panicking tells whether too few candidates are usable, so that all are used.
func (s *Set) Panicking() bool { return s.view.Load().panicking }
