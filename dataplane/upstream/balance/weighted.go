package balance

import (
	"math/bits"
	"sort"
	"sync/atomic"
)

// weighted maps 64 bits to an index, each as often as its weight says.
type weighted struct {
	// ends are the running sums of the weights; nil when all are the same.
	ends []uint64
	sum  uint64
	n    int
}

func newWeighted(weights []uint64) weighted {
	w := weighted{ends: make([]uint64, len(weights)), n: len(weights)}
	same := true
	for i, weight := range weights {
		w.sum += weight
		w.ends[i] = w.sum
		same = same && weight == weights[0]
	}
	if same {
		w.ends = nil
	}
	return w
}

// at returns the index that holds the place bits/2^64 of the whole. The sum of
// the weights is not 0.
func (w *weighted) at(place uint64) int {
	if w.ends == nil {
		// The high word of the product scales to [0, n).
		i, _ := bits.Mul64(place, uint64(w.n))
		return int(i)
	}
	at, _ := bits.Mul64(place, w.sum)
	return sort.Search(len(w.ends)-1, func(i int) bool { return w.ends[i] > at })
}

// turn walks a Weyl sequence over the golden ratio: every run of it, not only the
// whole, is spread evenly over the 64 bits.
type turn struct {
	n atomic.Uint64
	// Turns are written by every request.
	_ [56]byte
}

func (t *turn) next() uint64 {
	const golden = 0x9E3779B97F4A7C15 // 2^64 / φ
	return t.n.Add(1) * golden
}

// Wheel chooses an index by weight, in turn: every run of choices is spread as
// the weights say, not only their average. It is safe for concurrent use and
// holds no lock.
type Wheel struct {
	weighted
	turn turn
}

// NewWheel makes a wheel; an index of weight 0 is never chosen.
func NewWheel(weights []uint32) *Wheel {
	wide := make([]uint64, len(weights))
	for i, w := range weights {
		wide[i] = uint64(w)
	}
	return &Wheel{weighted: newWeighted(wide)}
}

// Pick returns an index, or -1 when every weight is 0.
func (w *Wheel) Pick() int {
	switch {
	case w.sum == 0:
		return -1
	case w.n == 1:
		return 0
	}
	return w.at(w.turn.next())
}
