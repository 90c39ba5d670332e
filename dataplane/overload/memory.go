package overload

import "runtime/metrics"

// reader reads how much memory is in use in earnest. What the runtime holds in all
// is no measure: between two collections it grows up to the limit by design, also
// when most of it is garbage. In use is what the last collection found alive, and
// all that is not heap (stacks, runtime, goroutines).
type reader struct{ samples []metrics.Sample }

const (
	live = iota
	total
	released
	objects
	unused
	free
)

func newReader() *reader {
	r := &reader{samples: make([]metrics.Sample, 6)}
	for i, name := range [...]string{
		live: "/gc/heap/live:bytes", total: "/memory/classes/total:bytes", released: "/memory/classes/heap/released:bytes",
		objects: "/memory/classes/heap/objects:bytes", unused: "/memory/classes/heap/unused:bytes", free: "/memory/classes/heap/free:bytes",
	} {
		r.samples[i].Name = name
	}
	return r
}

// inUse returns bytes.
func (r *reader) inUse() uint64 {
	metrics.Read(r.samples)
	at := func(i int) uint64 { return r.samples[i].Value.Uint64() }
	heap := at(released) + at(objects) + at(unused) + at(free)
	// The classes are not read in one instant.
	return at(live) + max(at(total), heap) - heap
}
