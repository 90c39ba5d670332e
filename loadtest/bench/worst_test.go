package main

import (
	"math"
	"testing"
	"time"
)

// offered is a stream of attempts, each 1/perSecond after the other; admit says
// which get in.
func offered(perSecond int, span time.Duration, admit func(i int) bool) []attempt {
	var all []attempt
	for i := range int(span.Seconds()) * perSecond {
		all = append(all, attempt{time.Duration(i) * time.Second / time.Duration(perSecond), admit(i)})
	}
	return all
}

func TestWorstSecond(t *testing.T) {
	// Ten times the rate, every tenth admitted: just what one bucket allows.
	exact := worstSecond(offered(1000, 6*time.Second, func(i int) bool { return i%10 == 0 }), 100, 2, time.Second)
	if math.Abs(exact.worst-1) > 0.03 || math.Abs(exact.ofAllowed-1) > 0.01 {
		t.Errorf("exact: %+v", exact)
	}
	// One second admits half as much again.
	burst := worstSecond(offered(1000, 6*time.Second, func(i int) bool {
		return i%10 == 0 || i%20 == 5 && i >= 3000 && i < 4000
	}), 100, 2, time.Second)
	if math.Abs(burst.worst-1.5) > 0.04 {
		t.Errorf("a burst: %+v", burst)
	}
	// Half of what is allowed gets in.
	starved := worstSecond(offered(1000, 6*time.Second, func(i int) bool { return i%20 == 0 }), 100, 2, time.Second)
	if math.Abs(starved.ofAllowed-0.5) > 0.01 {
		t.Errorf("starved: %+v", starved)
	}
	// What the bucket has saved may be spent: below the rate everything gets in.
	if calm := worstSecond(offered(50, 6*time.Second, func(int) bool { return true }), 100, 100, time.Second); calm.worst > 1 || calm.ofAllowed != 1 {
		t.Errorf("calm: %+v", calm)
	}
}

func TestMergeKeepsTime(t *testing.T) {
	all := merge([][]attempt{{{1, true}, {4, false}}, {{2, false}, {3, true}}})
	for i, a := range all {
		if a.at != time.Duration(i+1) {
			t.Errorf("%v", all)
		}
	}
}

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
