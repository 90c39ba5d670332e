package balance

import (
	"math"
	"slices"
	"time"
)

// draws is how often chance is asked before the members are gone through in turn.
const draws = 8

// leastShare is where slow start begins.
const leastShare = 0.1

// Query is what of a request a choice may depend on.
type Query struct {
	// Hash of the request's key, for the hashing algorithms.
	Hash uint64
	// Affinity is the ID that the client's cookie names; 0: none.
	Affinity uint64
	// Tried are the endpoints that have failed this request. They are chosen only
	// when there is no other.
	Tried []*State
}

// Pick returns the index of a candidate, or -1 when none may be chosen. The
// caller notes on its State that a request begins, ends, and how it went.
func (s *Set) Pick(now time.Duration, q *Query) int {
	v := s.view.Load()
	if len(v.members) == 0 {
		return -1
	}
	if q.Affinity != 0 {
		if i, ok := s.byID[q.Affinity]; ok && v.in[i] && s.open(v, i, q) {
			return int(i)
		}
	}
	i := int32(-1)
	if v.ring != nil {
		i = s.onRing(v, now, q)
	} else {
		i = s.inGroups(v, now, q)
	}
	if i < 0 {
		i = s.lastResort(v)
	}
	return int(i)
}

// open tells whether a member may be chosen.
func (s *Set) open(v *view, i int32, q *Query) bool {
	state := s.candidates[i].State
	return (v.panicking || state.Usable()) && !slices.Contains(q.Tried, state)
}

// lastResort chooses when every member has been tried or has just become
// unusable.
func (s *Set) lastResort(v *view) int32 {
	start := s.below(len(v.members))
	for n := range v.members {
		if i := v.members[(start+n)%len(v.members)]; v.panicking || s.candidates[i].State.Usable() {
			return i
		}
	}
	if s.cfg.PanicThreshold > 0 {
		return v.members[start]
	}
	return -1
}

func (s *Set) below(n int) int { return int(s.cfg.Rand() >> 33 % uint64(n)) }

func (s *Set) inGroups(v *view, now time.Duration, q *Query) int32 {
	at := 0
	if len(v.groups) > 1 {
		at = v.shares.at(s.among.next())
	}
	for n := range v.groups {
		if i := s.inGroup(v, &v.groups[(at+n)%len(v.groups)], now, q); i >= 0 {
			return i
		}
	}
	return -1
}

func (s *Set) inGroup(v *view, g *group, now time.Duration, q *Query) int32 {
	if len(g.members) == 1 {
		if i := g.members[0]; s.open(v, i, q) {
			return i
		}
		return -1
	}
	first := s.draw(v, g, now, q)
	if first < 0 || s.cfg.Algorithm != LeastRequest {
		return first
	}
	second := s.another(v, g, first, now, q)
	if second < 0 || s.cost(first, now) <= s.cost(second, now) {
		return first
	}
	return second
}

func (s *Set) cost(i int32, now time.Duration) float64 {
	c := &s.candidates[i]
	return c.State.Cost(now) / float64(c.Weight)
}

// draw chooses one member by weight.
func (s *Set) draw(v *view, g *group, now time.Duration, q *Query) int32 {
	fallback := int32(-1)
	for range draws {
		place := uint64(0)
		if s.cfg.Algorithm == RoundRobin {
			place = s.turns[g.zone].next()
		} else {
			place = s.cfg.Rand()
		}
		i := g.members[g.spread.at(place)]
		if !s.open(v, i, q) {
			continue
		}
		if s.cfg.SlowStart == 0 || s.warm(i, now, s.cfg.Rand()) {
			return i
		}
		fallback = i
	}
	if fallback >= 0 {
		return fallback
	}
	return s.after(v, g, s.below(len(g.members)), -1, q)
}

// another draws a member that is not the first.
func (s *Set) another(v *view, g *group, first int32, now time.Duration, q *Query) int32 {
	for range draws / 2 {
		i := g.members[g.spread.at(s.cfg.Rand())]
		if i != first && s.open(v, i, q) && (s.cfg.SlowStart == 0 || s.warm(i, now, s.cfg.Rand())) {
			return i
		}
	}
	if s.cfg.SlowStart > 0 {
		// The next one may be what was just held back.
		return -1
	}
	return s.after(v, g, s.below(len(g.members)), first, q)
}

// after goes through the members from one on, all but the one named.
func (s *Set) after(v *view, g *group, start int, but int32, q *Query) int32 {
	for n := range g.members {
		if i := g.members[(start+n)%len(g.members)]; i != but && s.open(v, i, q) {
			return i
		}
	}
	return -1
}

// ramp returns the share of its weight that slow start leaves a candidate.
func (s *Set) ramp(i int32, now time.Duration) float64 {
	passed := now - s.candidates[i].State.Since()
	if passed >= s.cfg.SlowStart {
		return 1
	}
	return max(leastShare, float64(passed)/float64(s.cfg.SlowStart))
}

// warm tells whether a candidate that was chosen takes the request, by slow start
// and the chance.
func (s *Set) warm(i int32, now time.Duration, chance uint64) bool {
	share := s.ramp(i, now)
	return share == 1 || float64(chance>>11) < share*(1<<53)
}

// onRing follows the ring from the key's hash. Slow start is a matter of the key,
// not of chance: as the share grows each key moves to the endpoint once.
func (s *Set) onRing(v *view, now time.Duration, q *Query) int32 {
	points := len(v.ring.owners)
	at := v.ring.find(q.Hash)
	bound, fallback := math.Inf(1), int32(-1)
	if s.cfg.Algorithm == BoundedLoad {
		bound = s.bound(v)
	}
	for range points {
		i := v.ring.owners[at]
		if at++; at == points {
			at = 0
		}
		if !s.open(v, i, q) {
			continue
		}
		if fallback < 0 {
			fallback = i
		}
		c := &s.candidates[i]
		if s.cfg.Algorithm == BoundedLoad && float64(c.State.InFlight()) >= math.Ceil(bound*float64(c.Weight)) {
			continue
		}
		if s.cfg.SlowStart > 0 && !s.warm(i, now, mix(q.Hash^uint64(i))) {
			continue
		}
		return i
	}
	return fallback
}

// bound returns how many requests may be in flight for each unit of weight, this
// one counted: the load factor times the mean.
func (s *Set) bound(v *view) float64 {
	total := int64(1)
	for _, i := range v.members {
		total += max(0, s.candidates[i].State.inFlight.Load())
	}
	return s.cfg.LoadFactor * float64(total) / float64(v.weight)
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xBF58476D1CE4E5B9
	x ^= x >> 27
	x *= 0x94D049BB133111EB
	return x ^ x>>31
}
