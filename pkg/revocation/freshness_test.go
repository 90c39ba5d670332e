package revocation

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// freshly runs test under a fake clock.
func freshly(t *testing.T, test func(t *testing.T, f *Freshness)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, NewFreshness()) })
}

func stale(t *testing.T, f *Freshness, want time.Duration) {
	t.Helper()
	if got := f.Staleness(time.Now()); got != want {
		t.Fatalf("staleness %v, want %v", got, want)
	}
}

func held(f *Freshness) int64 {
	_, revision := f.Held()
	return revision
}

func TestFreshness(t *testing.T) {
	const never time.Duration = math.MaxInt64
	const beat = 250 * time.Millisecond
	t.Run("never heard", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Holds(1, 10, time.Now())
			stale(t, f, never)
			if f.Ready() {
				t.Fatal("ready without a heartbeat")
			}
		})
	})
	t.Run("holds the head", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Holds(1, 10, time.Now())
			f.Heard(Beat{1, 10, 12, 0}, time.Now())
			stale(t, f, 0)
			time.Sleep(beat)
			stale(t, f, beat)
			f.Heard(Beat{1, 10, 12, 0}, time.Now())
			stale(t, f, 0)
			if !f.Ready() || held(f) != 10 {
				t.Fatal("not ready")
			}
		})
	})
	t.Run("an empty cluster is current", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Heard(Beat{1, 0, 1, 0}, time.Now())
			stale(t, f, 0)
		})
	})
	t.Run("catching up counts from the heartbeat", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Heard(Beat{1, 10, 10, 0}, time.Now())
			stale(t, f, never)
			time.Sleep(beat)
			f.Heard(Beat{1, 20, 20, 0}, time.Now())
			time.Sleep(beat)
			f.Holds(1, 15, time.Now())
			stale(t, f, 2*beat)
			f.Holds(1, 20, time.Now())
			stale(t, f, beat)
		})
	})
	t.Run("many heads pending", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			for i := range int64(40) {
				f.Heard(Beat{1, 10 + i, 100 + i, 0}, time.Now())
				time.Sleep(beat)
			}
			f.Holds(1, 1000, time.Now())
			stale(t, f, beat)
		})
	})
	t.Run("a sender that lags proves nothing", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Heard(Beat{1, 0, 50, 0}, time.Now())
			time.Sleep(beat)
			f.Heard(Beat{1, 0, 49, 0}, time.Now()) // another one has seen 50
			stale(t, f, beat)
			f.Holds(1, 60, time.Now())
			f.Heard(Beat{1, 0, 55, 0}, time.Now()) // the node itself has seen 60
			stale(t, f, beat)
			f.Heard(Beat{1, 70, 65, 0}, time.Now()) // nonsense
			f.Holds(1, 70, time.Now())
			stale(t, f, beat)
			f.Heard(Beat{1, 70, 70, 0}, time.Now())
			stale(t, f, 0)
		})
	})
	t.Run("heartbeats that waited out a freeze prove nothing", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Heard(Beat{1, 0, 1, 0}, time.Now())
			time.Sleep(time.Minute)
			for range 240 {
				f.Heard(Beat{1, 0, 1, 0}, time.Now())
			}
			stale(t, f, time.Minute)
			time.Sleep(beat)
			f.Heard(Beat{1, 0, 1, 0}, time.Now())
			stale(t, f, 0)
		})
	})
	t.Run("slow heartbeats still count", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			for range 9 {
				f.Heard(Beat{1, 0, 1, 0}, time.Now())
				time.Sleep(2 * time.Second)
			}
			if got := f.Staleness(time.Now()); got > 4*time.Second {
				t.Fatalf("staleness %v", got)
			}
		})
	})
	t.Run("a gap is seen", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Holds(1, 10, time.Now())
			for _, step := range []struct {
				previous, revision int64
				ok                 bool
				held               int64
			}{
				{11, 12, false, 10},
				{10, 12, true, 12},
				{10, 12, true, 12}, // again
				{0, 5, true, 12},
				{20, 15, false, 12},
				{12, 20, true, 20},
			} {
				if ok := f.Follows(1, step.previous, step.revision, time.Now()); ok != step.ok || held(f) != step.held {
					t.Fatalf("%+v: %v, holds %d", step, ok, held(f))
				}
			}
		})
	})
	t.Run("a new epoch starts anew", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Holds(1, 1000, time.Now())
			f.Heard(Beat{1, 1000, 1000, 0}, time.Now())
			time.Sleep(beat)
			if !f.Heard(Beat{2, 7, 7, 0}, time.Now()) {
				t.Fatal("what is held of an epoch counts in the next")
			}
			stale(t, f, beat)
			// What was under way when the bus brought the new epoch.
			f.Holds(1, 5000, time.Now())
			if !f.Follows(1, 1000, 6000, time.Now()) || f.Heard(Beat{1, 9000, 9000, 0}, time.Now()) {
				t.Fatal("the older epoch asks for what it lacks")
			}
			if epoch, revision := f.Held(); epoch != 2 || revision != 0 {
				t.Fatalf("holds %d of epoch %d", revision, epoch)
			}
			stale(t, f, beat)
			f.Holds(2, 7, time.Now())
			stale(t, f, 0)
		})
	})
	t.Run("what is held from an earlier run stays", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Holds(3, 9, time.Now())
			f.Heard(Beat{3, 9, 9, 0}, time.Now())
			stale(t, f, 0)
		})
	})
	t.Run("a proof's age counts", func(t *testing.T) {
		freshly(t, func(t *testing.T, f *Freshness) {
			f.Heard(Beat{1, 0, 1, 900 * time.Millisecond}, time.Now())
			stale(t, f, 900*time.Millisecond)
			f.Heard(Beat{1, 10, 10, 700 * time.Millisecond}, time.Now())
			time.Sleep(beat)
			f.Holds(1, 10, time.Now())
			stale(t, f, 700*time.Millisecond+beat)
			f.Heard(Beat{1, 10, 10, -time.Hour}, time.Now()) // nonsense
			stale(t, f, 0)
		})
	})
}

// A node is never fresher than the last heartbeat that, in a replay of all that
// was said, announced no more than the node then came to hold.
func TestFreshnessNeverFlatters(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := NewFreshness()
		now := f.base
		var held int64
		var beats []beat
		best := time.Time{}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 1500).Draw(t, "ms")) * time.Millisecond)
			r := rapid.Int64Range(0, 30).Draw(t, "revision")
			if rapid.Bool().Draw(t, "heard") {
				age := time.Duration(rapid.IntRange(0, 1000).Draw(t, "age")) * time.Millisecond
				f.Heard(Beat{1, r, rapid.Int64Range(0, 40).Draw(t, "progress"), age}, now)
				beats = append(beats, beat{r, now.Add(-age)})
			} else {
				f.Holds(1, r, now)
				held = max(held, r)
			}
			for _, b := range beats {
				if b.head <= held && b.at.After(best) {
					best = b.at
				}
			}
			got := f.Staleness(now)
			if best.IsZero() && got != math.MaxInt64 || !best.IsZero() && got < now.Sub(best) {
				t.Fatalf("staleness %v, but nothing proves more than %v", got, best.Sub(now))
			}
			if f.Ready() != (got != math.MaxInt64) {
				t.Fatal("Ready and Staleness disagree")
			}
		}
	})
}
