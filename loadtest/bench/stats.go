package main

import (
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// quantile returns the value below which a part q of the sorted values lies, by
// the nearest rank.
func quantile[T any](sorted []T, q float64) T {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// median sorts values and returns the middle one.
func median[T float64 | time.Duration](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}

// cpuTime is what this process has used of the processors, user and system, all
// threads and the collector included.
func cpuTime() (time.Duration, error) {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0, err
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()), nil
}

// loadAverage says how busy the machine is, whoever makes it so: a figure that is
// short on a busy machine is worth measuring again.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(data))[:3], " ")
}

// heapOf returns what make leaves on the heap, in bytes, and what it made, which
// must stay reachable until here.
func heapOf[T any](make func() (T, error)) (T, float64, error) {
	before := liveHeap()
	made, err := make()
	after := liveHeap()
	runtime.KeepAlive(made)
	return made, float64(after) - float64(before), err
}

func liveHeap() uint64 {
	// Twice: finalizers and pools free in the second round.
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// allocations returns the heap allocations per call of f, as whole ones, the way
// testing.AllocsPerRun counts them: alone on one processor, after a first call
// that fills caches.
func allocations(runs int, f func()) float64 {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64((after.Mallocs - before.Mallocs) / uint64(runs))
}

// timePerCall returns the processor time per call of f over so many calls.
func timePerCall(calls int, f func(i int)) (time.Duration, error) {
	before, err := cpuTime()
	if err != nil {
		return 0, err
	}
	for i := range calls {
		f(i)
	}
	after, err := cpuTime()
	return (after - before) / time.Duration(calls), err
}
