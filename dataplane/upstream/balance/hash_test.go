package balance

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"testing"

	"github.com/cespare/xxhash/v2"
	"pgregory.net/rapid"
)

// TestLeavingMovesOnlyItsKeys: against the ring itself, whoever leaves hands on
// its own keys and no other key moves, whether it becomes unusable or is taken
// out of the set.
func TestLeavingMovesOnlyItsKeys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 20).Draw(t, "n")
		candidates := equal(n)
		gone := rapid.IntRange(0, n-1).Draw(t, "gone")
		before := New(Config{Algorithm: RingHash}, candidates)
		owner := make([]string, 500)
		for k := range owner {
			owner[k] = candidates[before.Pick(0, hashed(k))].Key
		}
		without := New(Config{Algorithm: RingHash}, slices.Delete(slices.Clone(candidates), gone, gone+1))
		candidates[gone].State.SetUsable(0, false)
		before.Refresh()
		for k := range owner {
			now := candidates[before.Pick(0, hashed(k))].Key
			if owner[k] != candidates[gone].Key && now != owner[k] {
				t.Fatalf("key %d moved from %s to %s though %s left", k, owner[k], now, candidates[gone].Key)
			}
			if other := without.Candidate(without.Pick(0, hashed(k))).Key; other != now {
				t.Fatalf("key %d: %s when unusable, %s when taken out", k, now, other)
			}
		}
	})
}

// TestTheRingIsTheOracles compares picks with a ring written down naively.
func TestTheRingIsTheOracles(t *testing.T) {
	candidates := endpoints(1, 3, 2)
	type point struct {
		hash uint64
		key  string
	}
	var points []point
	for _, c := range candidates {
		// The heaviest weighs 3: the scale is 2.
		for n := range int(c.Weight) * pointsOfHeaviest / 2 {
			points = append(points, point{xxhash.Sum64String(c.Key + "#" + strconv.Itoa(n)), c.Key})
		}
	}
	slices.SortFunc(points, func(a, b point) int { return cmp.Compare(a.hash, b.hash) })
	s := New(Config{Algorithm: RingHash}, candidates)
	for k := range 2000 {
		hash := hashed(k).Hash
		want := points[0].key
		for _, p := range points {
			if p.hash >= hash {
				want = p.key
				break
			}
		}
		if got := candidates[s.Pick(0, &Query{Hash: hash})].Key; got != want {
			t.Fatalf("key %d is on %s, want %s", k, got, want)
		}
	}
	if last := points[len(points)-1].hash; last < math.MaxUint64 {
		if got := candidates[s.Pick(0, &Query{Hash: math.MaxUint64})].Key; got != points[0].key {
			t.Errorf("the ring does not close: %s", got)
		}
	}
}

func TestRingsAreBounded(t *testing.T) {
	for _, c := range []struct {
		n      int
		weight func(i int) uint32
	}{
		{1000, func(int) uint32 { return 1 }},
		{3000, func(i int) uint32 { return uint32(i) * 999 }},
		{2, func(i int) uint32 { return math.MaxUint32 * uint32(i&1) }},
		{2, func(i int) uint32 { return 1 + (math.MaxUint32-1)*uint32(i&1) }},
		{3, func(int) uint32 { return 0 }},
	} {
		candidates := equal(c.n)
		weighty := 0
		for i := range candidates {
			if candidates[i].Weight = c.weight(i); candidates[i].Weight > 0 {
				weighty++
			}
		}
		r := newRing(candidates)
		if len(r.owners) > maxPoints || len(r.owners) < weighty {
			t.Errorf("%d candidates make %d points", c.n, len(r.owners))
		}
		seen := map[int32]bool{}
		for _, owner := range r.owners {
			seen[owner] = true
		}
		if len(seen) != weighty || !slices.IsSorted(r.hashes) {
			t.Errorf("%d of %d candidates are on the ring", len(seen), weighty)
		}
	}
}

// TestBoundedLoadHolds sends keys, all the same or not, and lets requests end at
// random: no endpoint ever has more than the factor times its share of what is in
// flight, rounded up.
func TestBoundedLoadHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.Uint32Range(1, 5), 1, 10).Draw(t, "weights")
		factor := rapid.SampledFrom([]float64{1, 1.25, 2}).Draw(t, "factor")
		candidates := endpoints(weights...)
		s := New(Config{Algorithm: BoundedLoad, LoadFactor: factor}, candidates)
		keys := rapid.IntRange(1, 3).Draw(t, "keys")
		var open []int
		weight := 0.0
		for _, w := range weights {
			weight += float64(w)
		}
		for range 200 {
			if len(open) > 0 && rapid.IntRange(0, 3).Draw(t, "end") == 0 {
				last := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				candidates[open[last]].State.End()
				open = slices.Delete(open, last, last+1)
				continue
			}
			i := s.Pick(0, hashed(len(open)%keys))
			candidates[i].State.Begin()
			open = append(open, i)
			if most := math.Ceil(factor * float64(len(open)) * float64(weights[i]) / weight); float64(candidates[i].State.InFlight()) > most {
				t.Fatalf("%d in flight on %d of %v, bound %v of %d", candidates[i].State.InFlight(), i, weights, most, len(open))
			}
		}
	})
}

func TestBoundedLoadIsTheRingAtRest(t *testing.T) {
	candidates := equal(9)
	ring, bounded := New(Config{Algorithm: RingHash}, candidates), New(Config{Algorithm: BoundedLoad}, candidates)
	for k := range 1000 {
		if ring.Pick(0, hashed(k)) != bounded.Pick(0, hashed(k)) {
			t.Fatal("they differ though nothing is in flight")
		}
	}
}
