package guard

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A gauge counts as one would with a lock, whatever the order.
func TestGaugeCountsAsACounterDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var g Gauge
		n := int64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			if n > 0 && rapid.Bool().Draw(t, "leave") {
				g.Leave()
				n--
				continue
			}
			most := rapid.Int64Range(0, 8).Draw(t, "most")
			if got, want := g.Enter(most), most == 0 || n < most; got != want {
				t.Fatalf("Enter(%d) with %d in flight: %t", most, n, got)
			} else if got {
				n++
			}
			if g.Len() != n {
				t.Fatalf("Len() = %d, want %d", g.Len(), n)
			}
		}
	})
}

// Exactly as many enter as there is room for, and never more at once, however
// many come at the same time.
func TestBreakerAdmitsExactlyItsLimitAtOnce(t *testing.T) {
	const limit, callers = 7, 64
	l := Limits{Requests: limit}
	var b Breaker
	var inside, most, admitted atomic.Int64
	var start, decided, done sync.WaitGroup
	start.Add(1)
	decided.Add(callers)
	release := make(chan struct{})
	for range callers {
		done.Go(func() {
			start.Wait()
			ok := b.Enter(Requests, &l)
			if ok {
				admitted.Add(1)
				if n := inside.Add(1); n > most.Load() {
					most.Store(n)
				}
			}
			decided.Done()
			<-release
			if ok {
				inside.Add(-1)
				b.Leave(Requests)
			}
		})
	}
	start.Done()
	decided.Wait()
	close(release)
	done.Wait()
	if admitted.Load() != limit || most.Load() != limit {
		t.Fatalf("%d admitted, %d at once: expected %d", admitted.Load(), most.Load(), limit)
	}
	if b.Refused(Requests) != callers-limit || b.Len(Requests) != 0 {
		t.Fatalf("%d refused, %d left: expected %d and 0", b.Refused(Requests), b.Len(Requests), callers-limit)
	}
}

// One that is refused never costs another its place: with room for one, whenever
// all have left, one of those that come at once enters.
func TestARefusalCostsNobodyElse(t *testing.T) {
	var g Gauge
	for range 2000 {
		var admitted atomic.Int64
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				if g.Enter(1) {
					admitted.Add(1)
				}
			})
		}
		group.Wait()
		if admitted.Load() != 1 {
			t.Fatalf("%d entered: expected one", admitted.Load())
		}
		g.Leave()
	}
}

func TestBudgetIsAShareWithALeast(t *testing.T) {
	for _, c := range []struct {
		share    Share
		requests int64
		want     int64
	}{
		{Share{Ratio: 0.2, Min: 3}, 0, 3},
		{Share{Ratio: 0.2, Min: 3}, 15, 3},
		{Share{Ratio: 0.2, Min: 3}, 20, 4},
		{Share{Ratio: 0.2, Min: 3}, 1000, 200},
		{Share{Ratio: 0, Min: 0}, 1000, 0},
		{Share{Ratio: 0.5, Min: 0}, 1, 0},
		{Share{Ratio: 1, Min: 0}, 5, 5},
	} {
		var b Budget
		n := int64(0)
		for n < 10_000 && b.Enter(c.share, c.requests) {
			n++
		}
		if n != c.want || b.Refused() != 1 {
			t.Errorf("%+v of %d requests: %d allowed and %d refused, expected %d and 1", c.share, c.requests, n, b.Refused(), c.want)
		}
		for range n {
			b.Leave()
		}
		if b.Len() != 0 {
			t.Errorf("%d are left", b.Len())
		}
	}
}

func TestNothingAllocates(t *testing.T) {
	var breaker Breaker
	var budget Budget
	var adaptive Adaptive
	l := Limits{Connections: 1, Pending: 1, Requests: 1}
	bounds := Bounds{Min: 1, Max: 10}
	now := time.Duration(0)
	allocated := testing.AllocsPerRun(1000, func() {
		breaker.Enter(Requests, &l)
		breaker.Leave(Requests)
		budget.Enter(Share{Ratio: 0.2, Min: 3}, 10)
		budget.Leave()
		adaptive.Enter(bounds, Normal)
		now += 20 * time.Millisecond
		adaptive.Done(bounds, now, time.Millisecond)
	})
	if allocated != 0 {
		t.Fatalf("%v allocations: expected none", allocated)
	}
}
