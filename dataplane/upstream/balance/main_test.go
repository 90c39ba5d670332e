package balance

import (
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// seeded returns the same bits in every run.
func seeded(seed uint64) func() uint64 {
	var mu sync.Mutex
	source := rand.New(rand.NewPCG(seed, 1))
	return func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return source.Uint64()
	}
}

// endpoints makes candidates of the weights, usable and idle.
func endpoints(weights ...uint32) []Candidate {
	candidates := make([]Candidate, len(weights))
	for i, w := range weights {
		candidates[i] = Candidate{State: &State{}, Key: "http://10.0.0." + strconv.Itoa(i), ID: uint64(i) + 1, Weight: w}
	}
	return candidates
}

func equal(n int) []Candidate {
	weights := make([]uint32, n)
	for i := range weights {
		weights[i] = 1
	}
	return endpoints(weights...)
}

// histogram picks n times.
func histogram(t testing.TB, s *Set, n int, query func(i int) *Query) []float64 {
	t.Helper()
	counts := make([]float64, s.Len())
	for i := range n {
		at := s.Pick(0, query(i))
		if at < 0 {
			t.Fatal("nothing to pick")
		}
		counts[at]++
	}
	return counts
}

func plain(int) *Query { return &Query{} }

func hashed(i int) *Query { return &Query{Hash: mix(uint64(i) + 1)} }

// fits fails when the counts are further from the shares than chance explains:
// Pearson's statistic over its mean by more than five deviations.
func fits(t testing.TB, counts, shares []float64) {
	t.Helper()
	n, sum := 0.0, 0.0
	for i := range counts {
		n += counts[i]
		sum += shares[i]
	}
	statistic, freedom := 0.0, -1.0
	for i := range counts {
		want := n * shares[i] / sum
		if want == 0 {
			if counts[i] > 0 {
				t.Errorf("%v of %v went to %d, which has no share", counts[i], n, i)
			}
			continue
		}
		statistic += (counts[i] - want) * (counts[i] - want) / want
		freedom++
	}
	if statistic > freedom+5*math.Sqrt(2*max(freedom, 1)) {
		t.Errorf("counts %v do not follow shares %v: chi-square %.1f with %v degrees of freedom", counts, shares, statistic, freedom)
	}
}

const second = time.Second
