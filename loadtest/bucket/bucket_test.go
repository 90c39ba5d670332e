package bucket

import (
	"math"
	"testing"
	"time"
)

// offered is a stream of attempts, each 1/perSecond after the other; admit says
// which get in.
func offered(perSecond int, span time.Duration, admit func(i int) bool) []Attempt {
	var all []Attempt
	for i := range int(span.Seconds()) * perSecond {
		all = append(all, Attempt{time.Duration(i) * time.Second / time.Duration(perSecond), admit(i)})
	}
	return all
}

func TestJudge(t *testing.T) {
	// Ten times the rate, every tenth admitted: just what one bucket allows.
	exact := Judge(offered(1000, 6*time.Second, func(i int) bool { return i%10 == 0 }), 100, 2, time.Second)
	if math.Abs(exact.Worst-1) > 0.03 || math.Abs(exact.OfAllowed-1) > 0.01 {
		t.Errorf("exact: %+v", exact)
	}
	// One second admits half as much again.
	burst := Judge(offered(1000, 6*time.Second, func(i int) bool {
		return i%10 == 0 || i%20 == 5 && i >= 3000 && i < 4000
	}), 100, 2, time.Second)
	if math.Abs(burst.Worst-1.5) > 0.04 {
		t.Errorf("a burst: %+v", burst)
	}
	// Half of what is allowed gets in.
	starved := Judge(offered(1000, 6*time.Second, func(i int) bool { return i%20 == 0 }), 100, 2, time.Second)
	if math.Abs(starved.OfAllowed-0.5) > 0.01 {
		t.Errorf("starved: %+v", starved)
	}
	// What the bucket has saved may be spent: below the rate everything gets in.
	if calm := Judge(offered(50, 6*time.Second, func(int) bool { return true }), 100, 100, time.Second); calm.Worst > 1 || calm.OfAllowed != 1 {
		t.Errorf("calm: %+v", calm)
	}
}

func TestMergeKeepsTime(t *testing.T) {
	all := Merge([][]Attempt{{{1, true}, {4, false}}, {{2, false}, {3, true}}})
	for i, a := range all {
		if a.At != time.Duration(i+1) {
			t.Errorf("%v", all)
		}
	}
}
