package balance

import "slices"

// view is what a set picks from: the candidates that are usable, arranged. It is
// immutable and replaced whole.
type view struct {
	// groups hold the members, by zone when the set goes by zones.
	groups []group
	// shares is how often each group is chosen.
	shares weighted
	// in tells for each candidate whether it is a member.
	in []bool
	// members, their whole weight, and the ring of them for the hashing algorithms.
	members []int32
	weight  uint64
	ring    *ring
	// panicking: usability is ignored.
	panicking bool
}

type group struct {
	zone    int32
	members []int32
	spread  weighted
}

// look arranges the candidates as their states are now.
func (s *Set) look() *view {
	v := &view{in: make([]bool, len(s.candidates))}
	active, usable := s.active()
	total := len(active)
	if total > 0 && float64(usable) < s.cfg.PanicThreshold*float64(total) {
		v.panicking = true
	}
	for _, i := range active {
		if v.panicking || s.candidates[i].State.Usable() {
			v.in[i] = true
			v.members = append(v.members, i)
			v.weight += uint64(s.candidates[i].Weight)
		}
	}
	if s.whole != nil {
		v.ring = s.whole.among(v.in)
		return v
	}
	s.divide(v)
	return v
}

// active returns the candidates that have a weight and, of each source, the
// lowest priority of which enough are usable, and how many of them are. When no
// priority has enough it is the lowest that has any, else the lowest of all.
func (s *Set) active() (active []int32, usable int) {
	type tier struct {
		source   int
		priority uint16
	}
	type count struct{ all, usable int }
	counts := map[tier]count{}
	for i := range s.candidates {
		c := &s.candidates[i]
		if c.Weight == 0 {
			continue
		}
		t := tier{c.Source, c.Priority}
		n := counts[t]
		n.all++
		if c.State.Usable() {
			n.usable++
		}
		counts[t] = n
	}
	rank := func(t tier) int {
		switch n := counts[t]; {
		case n.usable > 0 && float64(n.usable) >= s.cfg.PanicThreshold*float64(n.all):
			return 2
		case n.usable > 0:
			return 1
		}
		return 0
	}
	best := map[int]tier{}
	for t := range counts {
		have, ok := best[t.source]
		if !ok || rank(t) > rank(have) || rank(t) == rank(have) && t.priority < have.priority {
			best[t.source] = t
		}
	}
	for _, t := range best {
		usable += counts[t].usable
	}
	for i := range s.candidates {
		c := &s.candidates[i]
		if c.Weight > 0 && best[c.Source].priority == c.Priority {
			active = append(active, int32(i))
		}
	}
	return active, usable
}

// divide groups the members by zone and gives each group its share.
func (s *Set) divide(v *view) {
	byZone := make([][]int32, len(s.zones))
	for _, i := range v.members {
		byZone[s.zone[i]] = append(byZone[s.zone[i]], i)
	}
	// A zone without usable candidates stays one of the zones: its nodes send to the
	// others.
	capacity := make([]uint64, len(s.zones))
	for z, members := range byZone {
		for _, i := range members {
			capacity[z] += uint64(s.candidates[i].Weight)
		}
	}
	shares := capacity
	if own := slices.Index(s.zones, s.cfg.Zone); own >= 0 && len(s.zones) > 1 {
		shares = zoneShares(capacity, own)
	}
	var kept []uint64
	for z, members := range byZone {
		if len(members) == 0 {
			continue
		}
		weights := make([]uint64, len(members))
		for at, i := range members {
			weights[at] = uint64(s.candidates[i].Weight)
		}
		v.groups = append(v.groups, group{int32(z), members, newWeighted(weights)})
		kept = append(kept, shares[z])
	}
	v.shares = newWeighted(kept)
}

// shareScale is what the shares of all zones add up to, but for rounding.
const shareScale = 1 << 32

// zoneShares returns each zone's share of the requests of a node in the zone own,
// by Envoy's rule (docs, "Zone aware routing"; LoadBalancerBase's
// calculateLocalityPercentages), where the originating nodes are taken to be
// spread evenly over the zones: a zone whose share of the capacity is at least
// its share of the nodes keeps its requests; one that has less keeps as much as
// it has, and the rest goes to the zones that have more than they need, in
// proportion to what they have left. So every endpoint gets its weight's worth,
// with as little traffic between zones as that allows.
func zoneShares(capacity []uint64, own int) []uint64 {
	shares := make([]uint64, len(capacity))
	total := uint64(0)
	for _, c := range capacity {
		total += c
	}
	if total == 0 {
		return shares
	}
	relative := func(z int) float64 { return float64(capacity[z]) * float64(len(capacity)) / float64(total) }
	local := min(1, relative(own))
	shares[own] = uint64(local * shareScale)
	if local == 1 {
		return shares
	}
	left := 0.0
	for z := range capacity {
		left += max(0, relative(z)-1)
	}
	for z := range capacity {
		if z != own {
			shares[z] = uint64((1 - local) * shareScale * max(0, relative(z)-1) / left)
		}
	}
	return shares
}
