package upstream

import (
	"math/bits"
	"sort"
	"sync/atomic"
)

// Picker chooses an index by weight. Choices walk a Weyl sequence over the
// golden ratio, so that every run of them is spread as the weights say, not only
// their average. It is safe for concurrent use and holds no lock.
type Picker struct {
	// ends are the running sums of the weights.
	ends []uint64
	turn atomic.Uint64
}

// NewPicker makes a picker; an index of weight 0 is never chosen.
func NewPicker(weights []uint32) *Picker {
	p := &Picker{ends: make([]uint64, len(weights))}
	sum := uint64(0)
	for i, w := range weights {
		sum += uint64(w)
		p.ends[i] = sum
	}
	return p
}

// Pick returns an index, or -1 when every weight is 0.
func (p *Picker) Pick() int {
	last := len(p.ends) - 1
	if last < 0 || p.ends[last] == 0 {
		return -1
	}
	if last == 0 {
		return 0
	}
	const golden = 0x9E3779B97F4A7C15 // 2^64 / φ
	// The high word of the product scales the sequence to [0, sum).
	at, _ := bits.Mul64(p.turn.Add(1)*golden, p.ends[last])
	return sort.Search(last, func(i int) bool { return p.ends[i] > at })
}

// next returns the index after i, cyclically, whose weight is not 0.
func (p *Picker) next(i int) int {
	for {
		i = (i + 1) % len(p.ends)
		if before := i - 1; i == 0 && p.ends[0] > 0 || i > 0 && p.ends[i] > p.ends[before] {
			return i
		}
	}
}
