package upstream

import (
	"math"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func TestPickerSpreadsByWeight(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		weights := rapid.SliceOfN(rapid.Uint32Range(0, 100), 1, 6).Draw(t, "weights")
		p := NewPicker(weights)
		sum := 0.0
		for _, w := range weights {
			sum += float64(w)
		}
		if sum == 0 {
			if p.Pick() != -1 {
				t.Fatal("picked without a weight")
			}
			return
		}
		const n = 2000
		counts := make([]float64, len(weights))
		for range n {
			counts[p.Pick()]++
		}
		for i, w := range weights {
			// The discrepancy of the golden sequence grows with the logarithm of n.
			if want := n * float64(w) / sum; math.Abs(counts[i]-want) > 12 {
				t.Fatalf("weights %v: %v of %d went to %d, want about %v", weights, counts[i], n, i, want)
			}
			if w == 0 && counts[i] > 0 {
				t.Fatalf("weights %v: picked %d", weights, i)
			}
			if next := p.next(i); weights[next] == 0 {
				t.Fatalf("weights %v: %d comes after %d", weights, next, i)
			}
		}
	})
	if NewPicker(nil).Pick() != -1 {
		t.Error("picked from nothing")
	}
}

func TestPickerIsSafeForConcurrentUse(t *testing.T) {
	p := NewPicker([]uint32{9, 1})
	var wg sync.WaitGroup
	var mu sync.Mutex
	ones := 0
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				if p.Pick() == 1 {
					mu.Lock()
					ones++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if ones < 390 || ones > 410 {
		t.Errorf("%d of 4000, want 400", ones)
	}
}
