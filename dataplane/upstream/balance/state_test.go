package balance

import (
	"math"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"
)

func near(a, b time.Duration, by float64) bool {
	return math.Abs(float64(a-b)) <= by*float64(b)+float64(time.Microsecond)
}

// TestTheAverageIsFinagles compares with the formula over whole float64 and no
// packing.
func TestTheAverageIsFinagles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := &State{}
		average, stamp := 0.0, time.Duration(0)
		now := time.Duration(rapid.Int64Range(0, int64(100*24*time.Hour)).Draw(t, "start"))
		for range rapid.IntRange(1, 30).Draw(t, "n") {
			now += time.Duration(rapid.Int64Range(int64(time.Millisecond), int64(20*second)).Draw(t, "passes"))
			took := time.Duration(rapid.Int64Range(int64(time.Microsecond), int64(second)).Draw(t, "latency"))
			if w := math.Exp(-float64(now-stamp) / float64(decay)); float64(took) > average {
				average = float64(took)
			} else {
				average = average*w + float64(took)*(1-w)
			}
			stamp = now
			s.Observe(now, took, false)
			if got := s.Latency(now); !near(got, time.Duration(average), 0.01) {
				t.Fatalf("average %v, want %v", got, time.Duration(average))
			}
		}
		later := now + 3*second
		if got, want := s.Latency(later), time.Duration(average*math.Exp(-0.3)); !near(got, want, 0.01) {
			t.Fatalf("3 s later %v, want %v", got, want)
		}
	})
}

func TestSilenceIsNoGoodNews(t *testing.T) {
	s := &State{}
	s.Observe(second, 100*time.Millisecond, false)
	if busy, idle := func() float64 { s.Begin(); defer s.End(); return s.Cost(time.Minute) }(), s.Cost(time.Minute); busy < 1.9e8 || idle > 1e6 {
		t.Errorf("cost %v while a request waits, %v at rest", busy, idle)
	}
	if cost := (&State{}).Cost(0); cost != 0 {
		t.Error("an endpoint that is not known costs", cost)
	}
}

func TestFailuresDoNotLookFast(t *testing.T) {
	s := &State{}
	s.Observe(second, time.Microsecond, true)
	if got := s.Latency(second); !near(got, leastPenalty, 0.01) {
		t.Error(got)
	}
	for range 20 {
		s.Observe(second, time.Microsecond, true)
	}
	if got := s.Latency(second); !near(got, mostPenalty, 0.01) {
		t.Error(got)
	}
}

func TestUsability(t *testing.T) {
	s := NewState(5 * second)
	if !s.Usable() || s.Since() != 5*second || s.SetUsable(6*second, true) || s.Since() != 5*second {
		t.Error("usable is news", s.Since())
	}
	if !s.SetUsable(7*second, false) || s.SetUsable(8*second, false) || s.Usable() {
		t.Error("unusable")
	}
	if !s.SetUsable(9*second, true) || s.Since() != 9*second {
		t.Error("usable again since", s.Since())
	}
}

func TestStatesDoNotShareCacheLines(t *testing.T) {
	if size := unsafe.Sizeof(State{}); size != 64 {
		t.Error(size)
	}
}
