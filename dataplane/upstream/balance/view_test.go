package balance

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// TestZonesConserveTraffic: with the nodes spread evenly over the zones, every
// zone gets its capacity's worth, and a zone that has enough keeps its own.
func TestZonesConserveTraffic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		capacity := rapid.SliceOfN(rapid.Uint64Range(0, 50), 1, 6).Draw(t, "capacity")
		total := uint64(0)
		for _, c := range capacity {
			total += c
		}
		if total == 0 {
			return
		}
		n := float64(len(capacity))
		arrives := make([]float64, len(capacity))
		for own := range capacity {
			shares := zoneShares(capacity, own)
			sum := 0.0
			for z, share := range shares {
				sum += float64(share) / shareScale
				arrives[z] += float64(share) / shareScale / n
			}
			if math.Abs(sum-1) > 1e-6 {
				t.Fatalf("%v from zone %d: shares %v add up to %v", capacity, own, shares, sum)
			}
			if enough := float64(capacity[own])*n >= float64(total); enough != (shares[own] == shareScale) {
				t.Fatalf("%v: zone %d keeps %v", capacity, own, float64(shares[own])/shareScale)
			}
		}
		for z := range capacity {
			if want := float64(capacity[z]) / float64(total); math.Abs(arrives[z]-want) > 1e-6 {
				t.Fatalf("%v: zone %d gets %v, want %v", capacity, z, arrives[z], want)
			}
		}
	})
}

func zoned(zones ...string) []Candidate {
	candidates := equal(len(zones))
	for i, z := range zones {
		candidates[i].Zone = z
	}
	return candidates
}

func TestZonesSpillOver(t *testing.T) {
	for _, a := range []Algorithm{LeastRequest, RoundRobin, Random} {
		candidates := zoned("a", "a", "a", "b", "b", "b", "c", "c", "c")
		s := New(Config{Algorithm: a, Zone: "a", Rand: seeded(2)}, candidates)
		zones := func() [3]float64 {
			var out [3]float64
			for i, n := range histogram(t, s, 3000, plain) {
				out[i/3] += n
			}
			return out
		}
		if got := zones(); got != [3]float64{3000, 0, 0} {
			t.Errorf("algorithm %d: all are well: %v", a, got)
		}
		candidates[0].State.SetUsable(0, false)
		s.Refresh()
		// Two of eight, for a third of the traffic: three quarters stay.
		if got := zones(); math.Abs(got[0]-2250) > 20 || math.Abs(got[1]-375) > 20 {
			t.Errorf("algorithm %d: one is down: %v", a, got)
		}
		candidates[1].State.SetUsable(0, false)
		candidates[2].State.SetUsable(0, false)
		s.Refresh()
		if got := zones(); got[0] != 0 || math.Abs(got[1]-1500) > 20 {
			t.Errorf("algorithm %d: the zone is down: %v", a, got)
		}
	}
	elsewhere := New(Config{Algorithm: RoundRobin, Zone: "d"}, zoned("a", "a", "a", "b"))
	if got := histogram(t, elsewhere, 400, plain); math.Abs(got[3]-100) > 10 {
		t.Errorf("a zone without endpoints uses all: %v", got)
	}
}

func TestTheBestPriorityOfWhichEnoughAreUsable(t *testing.T) {
	candidates := equal(7)
	for i := range 6 {
		candidates[i].Source, candidates[i].Priority = 1, uint16(10*(1+i/2))
	}
	s := New(Config{Algorithm: RoundRobin, PanicThreshold: 0.6}, candidates)
	for _, c := range []struct {
		down []int
		want []float64
	}{
		{nil, []float64{1, 1, 0, 0, 0, 0, 1}},
		{[]int{0}, []float64{0, 0, 1, 1, 0, 0, 1}}, // half of the first is not enough
		{[]int{0, 1}, []float64{0, 0, 1, 1, 0, 0, 1}},
		{[]int{0, 1, 2, 3, 5}, []float64{0, 0, 0, 0, 1, 0, 1}},
		{[]int{0, 1, 2, 3, 4, 5}, []float64{1, 1, 0, 0, 0, 0, 1}}, // 1 of 3: panic
	} {
		for i := range candidates {
			candidates[i].State.SetUsable(0, true)
		}
		for _, i := range c.down {
			candidates[i].State.SetUsable(0, false)
		}
		s.Refresh()
		got := histogram(t, s, 300, plain)
		for i := range got {
			if (got[i] > 0) != (c.want[i] > 0) {
				t.Errorf("with %v down: %v", c.down, got)
				break
			}
		}
	}
}

func TestWheel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.Uint32Range(0, 100), 1, 6).Draw(t, "weights")
		w := NewWheel(weights)
		sum := 0.0
		for _, w := range weights {
			sum += float64(w)
		}
		if sum == 0 {
			if w.Pick() != -1 {
				t.Fatal("picked without a weight")
			}
			return
		}
		const n = 2000
		counts := make([]float64, len(weights))
		for range n {
			counts[w.Pick()]++
		}
		for i, w := range weights {
			if want := n * float64(w) / sum; math.Abs(counts[i]-want) > 12 || w == 0 && counts[i] > 0 {
				t.Fatalf("weights %v: %v of %d went to %d, want about %v", weights, counts[i], n, i, want)
			}
		}
	})
	if NewWheel(nil).Pick() != -1 {
		t.Error("picked from nothing")
	}
}
