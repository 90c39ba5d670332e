package health

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func outlier() *Outlier {
	return &Outlier{
		Consecutive: 5, Ratio: 0.5, MinRequests: 20, Interval: 10 * time.Second,
		Ejection: 10 * time.Second, MaxEjection: 35 * time.Second, MaxEjected: 0.5,
	}
}

// at is a time so many seconds after a fixed one.
func at(seconds float64) time.Time {
	return time.Unix(1_700_000_000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

// A trace is read letter by letter: s a success, f a failure; the last failure is
// to eject, or none is.
func TestOutlierEjectsBy(t *testing.T) {
	for _, c := range []struct {
		name, trace string
		step        float64 // seconds between two letters
		ejects      bool
	}{
		{"consecutive failures", "fffff", 0.1, true},
		{"one too few", "ffff", 0.1, false},
		{"a success in between", "ffffsffff", 0.1, false},
		{"the ratio, with enough requests", "fsfsfsfsfsfsfsfsfsfsf", 0.1, true},
		{"the ratio, with one request too few", "fsfsfsfsfsfsfsfsfsf", 0.1, false},
		{"less than the ratio", "sfssfssfssfssfssfssfssfssfssf", 0.1, false},
		{"the ratio, but over intervals", "sfsfsfsfsfsfsfsfsfsfsfsfsfsfsfsf", 1.2, false},
		{"consecutive failures, over intervals", "fffff", 60, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r record
			s := outlier()
			for i, letter := range c.trace {
				now := at(float64(i) * c.step)
				if letter == 's' {
					r.succeed(s, now, 1)
					continue
				}
				if got, want := r.fail(s, now), c.ejects && i == len(c.trace)-1; got != want {
					t.Fatalf("letter %d of %s: ejects %t, expected %t", i, c.trace, got, want)
				}
			}
		})
	}
}

// Successes of before do not hide what fails now.
func TestOutlierForgetsOldSuccesses(t *testing.T) {
	var r record
	s := outlier()
	s.Consecutive = 100
	r.fail(s, at(0))
	r.succeed(s, at(1000), 1_000_000)
	for i := range 40 {
		if r.fail(s, at(1000+float64(i)*0.01)) {
			return
		}
	}
	t.Fatal("40 failures in a row are hidden by successes of before")
}

func TestEjectionsGrowAndAreForgiven(t *testing.T) {
	var r record
	s := outlier()
	now := 0.0
	eject := func() float64 {
		r.eject(s, at(now))
		out := r.until.Sub(at(now)).Seconds()
		now += out
		r.readmit(at(now))
		return out
	}
	for i, want := range []float64{10, 20, 30, 35, 35} {
		if got := eject(); got != want {
			t.Errorf("ejection %d lasts %v s, expected %v", i+1, got, want)
		}
	}
	now += 31 // three whole intervals forgive three of five
	if got := eject(); got != 30 {
		t.Errorf("after 31 s without an ejection it lasts %v s, expected 30", got)
	}
	now += 1000
	if got := eject(); got != 10 {
		t.Errorf("after a long time it lasts %v s, expected 10", got)
	}
}

// The record agrees with a dumb one that keeps every event.
func TestOutlierAgreesWithAnOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := outlier()
		s.Consecutive = uint32(rapid.IntRange(1, 6).Draw(t, "consecutive"))
		s.MinRequests = uint32(rapid.IntRange(1, 12).Draw(t, "min"))
		s.Ratio = float64(rapid.IntRange(1, 10).Draw(t, "ratio")) / 10
		var r record
		type event struct {
			at     time.Time
			failed bool
		}
		var events []event
		opened := time.Time{}
		now := at(0)
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 4000).Draw(t, "ms")) * time.Millisecond)
			failed := rapid.Bool().Draw(t, "failed")
			if opened.IsZero() || now.Sub(opened) >= s.Interval {
				opened = now
				// What came before does not count for the ratio; a success that opens an
				// interval does not either.
				for i := range events {
					events[i].at = time.Time{}
				}
				if !failed {
					events = append(events, event{time.Time{}, false})
					r.succeed(s, now, 1)
					continue
				}
			}
			events = append(events, event{now, failed})
			if !failed {
				r.succeed(s, now, 1)
				continue
			}
			streak, requests, failures := 0, 0, 0
			for i := len(events) - 1; i >= 0 && events[i].failed; i-- {
				streak++
			}
			for _, e := range events {
				if !e.at.IsZero() {
					requests++
					if e.failed {
						failures++
					}
				}
			}
			want := streak >= int(s.Consecutive) || requests >= int(s.MinRequests) && float64(failures) >= s.Ratio*float64(requests)
			if got := r.fail(s, now); got != want {
				t.Fatalf("ejects %t, expected %t: %d in a row, %d of %d", got, want, streak, failures, requests)
			}
		}
	})
}

func TestRoomIsAShareButAlwaysOne(t *testing.T) {
	s := outlier()
	for endpoints, want := range map[int]int{1: 1, 2: 1, 3: 1, 4: 2, 10: 5} {
		if got := s.room(endpoints); got != want {
			t.Errorf("%d of %d may be out, expected %d", got, endpoints, want)
		}
	}
	s.MaxEjected = 0
	if s.room(100) != 1 {
		t.Error("with a share of 0 none may be out, expected one")
	}
}

func TestVerdictNeedsThresholds(t *testing.T) {
	c := &Check{Healthy: 2, Unhealthy: 3}
	var v verdict
	out := false
	for i, step := range []struct{ well, out bool }{
		{false, false},
		{false, false},
		{true, false},
		{false, false},
		{false, false},
		{false, true},
		{true, true},
		{false, true},
		{true, true},
		{true, false},
		{true, false},
	} {
		if out = v.note(c, step.well, out); out != step.out {
			t.Fatalf("step %d: out %t, expected %t", i, out, step.out)
		}
	}
}
