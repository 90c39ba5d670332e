package main

import (
	"testing"
	"time"
)

func TestSliceOf(t *testing.T) {
	before := usage{cpu: 3 * time.Second, system: 2 * time.Second}
	after := usage{cpu: 6 * time.Second, system: 4 * time.Second, resident: 7}
	got := sliceOf(before, after, sample{requests: 100_000, rate: 25_000, p50: time.Millisecond, p99: 2 * time.Millisecond})
	if want := (slice{Requests: 100_000, Lasted: 4 * time.Second, CPU: 3 * time.Second, System: 2 * time.Second, P50: time.Millisecond, P99: 2 * time.Millisecond, Resident: 7}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A round's figure is of all its requests: a slice with few of them counts little.
func TestCellOf(t *testing.T) {
	got := cellOf([]slice{
		{Requests: 90_000, Lasted: time.Second, CPU: 900 * time.Millisecond, System: 450 * time.Millisecond, P50: time.Millisecond, P99: 9 * time.Millisecond, Resident: 5},
		{Requests: 10_000, Lasted: time.Second, CPU: 600 * time.Millisecond, System: 50 * time.Millisecond, P50: 3 * time.Millisecond, P99: 4 * time.Millisecond, Resident: 6},
		{Requests: 50_000, Lasted: 500 * time.Millisecond, CPU: 500 * time.Millisecond, System: 250 * time.Millisecond, P50: 2 * time.Millisecond, P99: 5 * time.Millisecond, Resident: 7},
	})
	got.CPU, got.System = float64(int(got.CPU*1000)), float64(int(got.System*1000))
	if got.CPU != 13_333 || got.System != 5_000 || got.Busy != 0.8 || got.Rate != 60_000 || got.P50 != 2000 || got.P99 != 5000 || got.Resident != 7 || len(got.Slices) != 3 {
		t.Errorf("%+v", got)
	}
}
