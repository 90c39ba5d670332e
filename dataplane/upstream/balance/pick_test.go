package balance

import (
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func algorithms() []Algorithm {
	return []Algorithm{LeastRequest, RoundRobin, Random, RingHash, BoundedLoad}
}

func TestChoicesFollowTheWeights(t *testing.T) {
	weights := []uint32{1, 0, 5, 10, 4}
	shares := []float64{1, 0, 5, 10, 4}
	fits(t, histogram(t, New(Config{Algorithm: Random, Rand: seeded(1)}, endpoints(weights...)), 20000, plain), shares)
	turns := histogram(t, New(Config{Algorithm: RoundRobin}, endpoints(weights...)), 2000, plain)
	for i := range turns {
		// The discrepancy of the golden sequence grows with the logarithm of n.
		if want := 2000 * shares[i] / 20; math.Abs(turns[i]-want) > 12 {
			t.Errorf("%v in turn went to %d, want about %v", turns[i], i, want)
		}
	}
	// A ring's shares deviate, the less the more points there are.
	for _, a := range []Algorithm{RingHash, BoundedLoad} {
		got := histogram(t, New(Config{Algorithm: a}, endpoints(weights...)), 20000, hashed)
		for i := range got {
			if want := 20000 * shares[i] / 20; math.Abs(got[i]-want) > 0.4*want {
				t.Errorf("algorithm %d: %v went to %d, want about %v", a, got[i], i, want)
			}
		}
	}
}

func TestEveryRunOfTurnsIsSpread(t *testing.T) {
	s := New(Config{Algorithm: RoundRobin}, equal(7))
	last := make([]int, 7)
	for n := range 1000 {
		i := s.Pick(0, &Query{})
		if gap := n - last[i]; gap > 14 {
			t.Fatalf("endpoint %d waited for %d turns", i, gap)
		}
		last[i] = n
	}
}

// TestNoUnusableIsPicked holds every algorithm to the rules for any states.
func TestNoUnusableIsPicked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.Uint32Range(0, 3), 0, 8).Draw(t, "weights")
		candidates := endpoints(weights...)
		cfg := Config{
			Algorithm: rapid.SampledFrom(algorithms()).Draw(t, "algorithm"), Rand: seeded(rapid.Uint64().Draw(t, "seed")),
			PanicThreshold: rapid.SampledFrom([]float64{0, 0.5, 1}).Draw(t, "panic"),
			SlowStart:      rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(t, "slow start"),
			Zone:           rapid.SampledFrom([]string{"", "a", "c"}).Draw(t, "zone"),
		}
		weighty, usable := 0, 0
		for i := range candidates {
			candidates[i].Zone = rapid.SampledFrom([]string{"a", "b", ""}).Draw(t, "zone of one")
			up := rapid.Bool().Draw(t, "usable")
			candidates[i].State.SetUsable(0, up)
			if weights[i] > 0 {
				weighty++
				if up {
					usable++
				}
			}
		}
		s := New(cfg, candidates)
		panicking := weighty > 0 && float64(usable) < cfg.PanicThreshold*float64(weighty)
		if s.Panicking() != panicking {
			t.Fatalf("%d of %d usable, threshold %v: panicking %t", usable, weighty, cfg.PanicThreshold, s.Panicking())
		}
		var tried []*State
		for len(tried) <= len(candidates) {
			q := &Query{Hash: rapid.Uint64().Draw(t, "hash"), Affinity: rapid.Uint64Range(0, 9).Draw(t, "affinity"), Tried: tried}
			i := s.Pick(second, q)
			open := usable
			if panicking {
				open = weighty
			}
			if open == 0 {
				if i >= 0 {
					t.Fatalf("picked %d of none", i)
				}
				return
			}
			if i < 0 || weights[i] == 0 || !panicking && !candidates[i].State.Usable() {
				t.Fatalf("picked %d", i)
			}
			if slices.Contains(tried, candidates[i].State) != (len(tried) >= open) {
				t.Fatalf("picked %d again, %d tried of %d", i, len(tried), open)
			}
			if !slices.Contains(tried, candidates[i].State) {
				tried = append(tried, candidates[i].State)
			} else {
				return
			}
		}
	})
}

func TestUnusableIsAvoidedBeforeTheRefresh(t *testing.T) {
	for _, a := range algorithms() {
		candidates := equal(3)
		s := New(Config{Algorithm: a, PanicThreshold: 0.1}, candidates)
		candidates[1].State.SetUsable(0, false)
		if got := histogram(t, s, 300, hashed); got[1] > 0 {
			t.Errorf("algorithm %d: %v", a, got)
		}
		for i := range candidates {
			candidates[i].State.SetUsable(0, false)
		}
		// The view does not know yet that this is a panic.
		if s.Pick(0, &Query{}) < 0 {
			t.Errorf("algorithm %d gives up before the refresh", a)
		}
		s.Refresh()
		if !s.Panicking() || s.Pick(0, &Query{}) < 0 {
			t.Errorf("algorithm %d does not panic", a)
		}
	}
}

// TestTheFasterOfTwoIsPreferred simulates an open loop in pure time: one endpoint
// is ten times slower, and all must serve 60 % of what they could together.
func TestTheFasterOfTwoIsPreferred(t *testing.T) {
	candidates := equal(4)
	latency := []time.Duration{10 * time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, 10 * time.Millisecond}
	counts := simulate(t, New(Config{Rand: seeded(7)}, candidates), latency, 2000, time.Millisecond/2)
	if slow := counts[2] / (counts[0] + counts[1] + counts[2] + counts[3]); slow > 0.08 || slow == 0 {
		t.Errorf("%.3f of the requests went to the slow endpoint: %v", slow, counts)
	}
}

// simulate sends requests at a fixed rate, each of which takes its endpoint's
// latency.
func simulate(t *testing.T, s *Set, latency []time.Duration, requests int, gap time.Duration) []float64 {
	t.Helper()
	type end struct {
		at  time.Duration
		who int
	}
	var pending []end
	counts := make([]float64, s.Len())
	for n := range requests {
		now := time.Hour + time.Duration(n)*gap
		pending = slices.DeleteFunc(pending, func(e end) bool {
			if e.at > now {
				return false
			}
			state := s.Candidate(e.who).State
			state.End()
			state.Observe(e.at, latency[e.who], false)
			return true
		})
		i := s.Pick(now, &Query{})
		s.Candidate(i).State.Begin()
		counts[i]++
		pending = append(pending, end{now + latency[i], i})
	}
	return counts
}

func TestColdEndpointsAreAskedOneAtATime(t *testing.T) {
	candidates := equal(2)
	known, cold := candidates[0].State, candidates[1].State
	known.Observe(0, 10*time.Millisecond, false)
	s := New(Config{Rand: seeded(3)}, candidates)
	if i := s.Pick(second, &Query{}); i != 1 {
		t.Fatal("what is not known is not tried")
	}
	cold.Begin()
	for range 100 {
		if i := s.Pick(second, &Query{}); i != 0 {
			t.Fatal("an endpoint that has never answered gets a second request")
		}
	}
	cold.End()
	cold.Observe(second, time.Millisecond, false)
	if i := s.Pick(second, &Query{}); i != 1 {
		t.Error("the faster endpoint is not preferred")
	}
}

func TestWeightsHoldUnderLoad(t *testing.T) {
	candidates := endpoints(1, 8, 1, 1, 1)
	s := New(Config{Rand: seeded(11)}, candidates)
	latency := make([]time.Duration, 5)
	for i := range latency {
		latency[i] = 20 * time.Millisecond
	}
	counts := simulate(t, s, latency, 6000, 100*time.Microsecond)
	if share := counts[1] / 6000; share < 0.55 || share > 0.8 {
		t.Errorf("the endpoint with 2/3 of the weight got %.2f: %v", share, counts)
	}
}

func TestSlowStartRamps(t *testing.T) {
	for _, a := range algorithms() {
		candidates := equal(4)
		s := New(Config{Algorithm: a, SlowStart: 10 * second, Rand: seeded(5)}, candidates)
		candidates[3].State.SetUsable(0, false)
		candidates[3].State.SetUsable(100*second, true)
		for _, c := range candidates {
			// The same latency and load for all, so that chance decides alone.
			c.State.Observe(100*second, time.Millisecond, false)
		}
		before := 0.0
		for _, c := range []struct {
			after time.Duration
			share float64
		}{{0, 0.1}, {5 * second, 0.5}, {10 * second, 1}, {time.Hour, 1}} {
			const n = 20000
			got := 0.0
			for i := range n {
				if s.Pick(100*second+c.after, hashed(i)) == 3 {
					got++
				}
			}
			// What is held back goes to the others: f against three whole ones.
			want := n * c.share / (3 + c.share)
			switch {
			case a == LeastRequest || a.Hashed():
				// Two choices and rings are not proportional; the ramp must show.
				if got < before || got < want/3 || got > 2.2*want {
					t.Errorf("algorithm %d after %v: %v, want about %v", a, c.after, got, want)
				}
			case math.Abs(got-want) > 0.1*want:
				t.Errorf("algorithm %d after %v: %v, want %v", a, c.after, got, want)
			}
			before = 0.9 * got
		}
	}
}

func TestAffinityPrecedesWhileTheEndpointIsUsable(t *testing.T) {
	for _, a := range algorithms() {
		candidates := equal(5)
		s := New(Config{Algorithm: a, Zone: "a"}, candidates)
		q := &Query{Affinity: 4, Hash: 99}
		for range 50 {
			if i := s.Pick(0, q); i != 3 {
				t.Fatalf("algorithm %d leaves the endpoint for %d", a, i)
			}
		}
		q.Tried = []*State{candidates[3].State}
		if s.Pick(0, q) == 3 {
			t.Errorf("algorithm %d sticks to what has failed", a)
		}
		q.Tried = nil
		candidates[3].State.SetUsable(0, false)
		s.Refresh()
		if s.Pick(0, q) == 3 {
			t.Errorf("algorithm %d sticks to what is unusable", a)
		}
		if q.Affinity = 77; s.Pick(0, q) < 0 {
			t.Errorf("algorithm %d: an unknown cookie", a)
		}
	}
}

func TestSelectTakesAllOfTheLabels(t *testing.T) {
	candidates := equal(4)
	candidates[0].Labels = map[string]string{"v": "1", "az": "a"}
	candidates[1].Labels = map[string]string{"v": "2", "az": "a"}
	candidates[2].Labels = map[string]string{"v": "2"}
	for _, c := range []struct {
		labels map[string]string
		want   int
	}{{nil, 4}, {map[string]string{"v": "2"}, 2}, {map[string]string{"v": "2", "az": "a"}, 1}, {map[string]string{"az": ""}, 0}} {
		if got := Select(candidates, c.labels); len(got) != c.want {
			t.Errorf("%v selects %d", c.labels, len(got))
		}
	}
	if len(candidates) != 4 || candidates[3].Key == "" {
		t.Error("the list is changed")
	}
}

func TestSetsAreSafeForConcurrentUse(t *testing.T) {
	for _, a := range algorithms() {
		candidates := equal(6)
		for i := range candidates {
			candidates[i].Zone = string(rune('a' + i%2))
		}
		s := New(Config{Algorithm: a, Zone: "a", SlowStart: time.Second, PanicThreshold: 0.5}, candidates)
		var wg sync.WaitGroup
		for g := range 3 {
			wg.Go(func() {
				for n := range 2000 {
					now := time.Duration(n) * time.Millisecond
					i := s.Pick(now, hashed(g*n))
					if i < 0 {
						t.Error("nothing to pick")
						return
					}
					state := s.Candidate(i).State
					state.Begin()
					state.Observe(now, time.Millisecond, n%7 == 0)
					state.End()
				}
			})
		}
		wg.Go(func() {
			for n := range 200 {
				candidates[n%6].State.SetUsable(time.Duration(n), n%3 == 0)
				s.Refresh()
			}
		})
		wg.Wait()
		for _, c := range candidates {
			if c.State.InFlight() != 0 {
				t.Error("in flight", c.State.InFlight())
			}
		}
	}
}
