package overload

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	sheddable = configv1.Criticality_CRITICALITY_SHEDDABLE
	normal    = configv1.Criticality_CRITICALITY_NORMAL
	unset     = configv1.Criticality_CRITICALITY_UNSPECIFIED
	critical  = configv1.Criticality_CRITICALITY_CRITICAL
)

func TestTheLeastCriticalGoesFirst(t *testing.T) {
	m := &Manager{}
	for _, c := range []struct {
		share                                      float64
		refuses, sheddable, unset, normal, critcal bool
	}{
		{0.5, false, false, false, false, false},
		{0.81, true, false, false, false, false},
		{0.86, true, true, false, false, false},
		{0.91, true, true, true, true, false},
		{0.96, true, true, true, true, true},
		{1.20, true, true, true, true, true},
	} {
		m.look(c.share)
		if m.Refuses() != c.refuses || m.Sheds(sheddable) != c.sheddable || m.Sheds(unset) != c.unset || m.Sheds(normal) != c.normal || m.Sheds(critical) != c.critcal {
			t.Errorf("at %v: level %d (%s)", c.share, m.Level(), m.Level())
		}
		if m.Share() != c.share {
			t.Errorf("share %v", m.Share())
		}
	}
	for _, want := range []Level{ShedNormal, ShedSheddable, RefuseConnections, Normal, Normal} {
		if m.look(0.1); m.Level() != want {
			t.Errorf("on the way down: %d, want %d", m.Level(), want)
		}
	}
}

// Up at once, never two steps down at once, and no change within the hysteresis.
func TestSteps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := Level(rapid.IntRange(int(Normal), int(ShedAll)).Draw(t, "level"))
		share := rapid.Float64Range(0, 1.5).Draw(t, "share")
		after := next(at, share)
		for l := RefuseConnections; l <= ShedAll; l++ {
			if share >= thresholds[l] && l > at && after < l {
				t.Fatalf("%d at %v: %d", at, share, after)
			}
			if share < thresholds[l] && l > at && after >= l {
				t.Fatalf("%d at %v: %d", at, share, after)
			}
		}
		if after < at-1 || after < at && share >= thresholds[at]-hysteresis {
			t.Fatalf("%d at %v: %d", at, share, after)
		}
	})
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Manager{}
		var share atomic.Value
		share.Store(0.99)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.watch(ctx, func() float64 { return share.Load().(float64) }) }()
		time.Sleep(every)
		synctest.Wait()
		if m.Level() != ShedAll {
			t.Errorf("after one look: %d", m.Level())
		}
		share.Store(0.2)
		time.Sleep(4 * every)
		synctest.Wait()
		if m.Level() != Normal {
			t.Errorf("after four looks: %d", m.Level())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWithoutALimitNothingIsWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Manager{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		time.Sleep(time.Hour)
		if m.Level() != Normal || m.Share() != 0 {
			t.Error(m.Level(), m.Share())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A real heap near a real limit.
func TestMemoryOfThisProcess(t *testing.T) {
	memory := newReader()
	runtime.GC()
	before := memory.inUse()
	held := make([][]byte, 64)
	for i := range held {
		held[i] = make([]byte, 1<<20)
	}
	runtime.GC()
	full := memory.inUse()
	if full < before+60<<20 || full > before+80<<20 {
		t.Errorf("64 MiB more are held: %d MiB before, %d after", before>>20, full>>20)
	}
	runtime.KeepAlive(held)

	limit := debug.SetMemoryLimit(int64(full + full/20))
	defer debug.SetMemoryLimit(limit)
	m := &Manager{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	for !m.Refuses() {
		runtime.Gosched()
	}
	if m.Share() < 0.8 {
		t.Error(m.Share())
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	runtime.KeepAlive(held)
}
