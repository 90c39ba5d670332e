package balance

import (
	"strconv"
	"testing"
	"time"
)

func names() map[Algorithm]string {
	return map[Algorithm]string{LeastRequest: "least_request", RoundRobin: "round_robin", Random: "random", RingHash: "ring_hash", BoundedLoad: "bounded_load"}
}

func TestPicksAllocateNothing(t *testing.T) {
	for _, a := range algorithms() {
		candidates := zoned("a", "a", "b", "b", "")
		s := New(Config{Algorithm: a, Zone: "a", SlowStart: time.Second, PanicThreshold: 0.5}, candidates)
		q := &Query{Hash: 7, Tried: []*State{candidates[0].State}}
		if n := testing.AllocsPerRun(1000, func() { q.Hash = mix(q.Hash); s.Pick(time.Second/2, q) }); n != 0 {
			t.Errorf("%s allocates %v times", names()[a], n)
		}
	}
}

// BenchmarkPick is one choice and what is noted of the request.
func BenchmarkPick(b *testing.B) {
	for _, a := range algorithms() {
		for _, n := range []int{3, 100, 1000} {
			b.Run(names()[a]+"/"+strconv.Itoa(n), func(b *testing.B) {
				candidates := equal(n)
				for i := range candidates {
					candidates[i].State.Observe(time.Second, time.Duration(i+1)*time.Millisecond, false)
				}
				s := New(Config{Algorithm: a, PanicThreshold: 0.5}, candidates)
				q, now := &Query{}, time.Second
				b.ReportAllocs()
				for b.Loop() {
					now += 50 * time.Microsecond
					q.Hash = mix(q.Hash + 1)
					state := candidates[s.Pick(now, q)].State
					state.Begin()
					state.End()
					state.Observe(now, time.Millisecond, false)
				}
			})
		}
	}
}

func BenchmarkRefresh(b *testing.B) {
	for _, a := range []Algorithm{LeastRequest, RingHash} {
		b.Run(names()[a]+"/1000", func(b *testing.B) {
			candidates := equal(1000)
			s := New(Config{Algorithm: a, PanicThreshold: 0.5}, candidates)
			candidates[5].State.SetUsable(0, false)
			b.ReportAllocs()
			for b.Loop() {
				s.Refresh()
			}
		})
	}
}
