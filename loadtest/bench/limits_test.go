package main

import (
	"math"
	"testing"
)

func TestWeights(t *testing.T) {
	for _, n := range []int{2, 3, 10, 100} {
		sum := 0.0
		for i := range n {
			sum += weightOf(i, n, 0.9)
		}
		if math.Abs(sum-1) > 1e-9 || math.Abs(weightOf(0, n, 0)-1/float64(n)) > 1e-9 {
			t.Errorf("%d nodes: %v", n, sum)
		}
	}
}
