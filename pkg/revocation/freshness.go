package revocation

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// silence is how long without a heartbeat makes the next ones suspect: what
	// comes first may have waited in a buffer while the process was frozen.
	silence = time.Second
	// settling is how long a backlog of heartbeats may take to drain. One beat
	// interval is 250 ms.
	settling = 200 * time.Millisecond
)

// Freshness keeps how long ago the node last was certain to hold every
// revocation: the last heartbeat at which it held the newest. It counts on the
// monotonic clock, so times must come from time.Now; stepping the wall clock
// changes nothing. Safe for concurrent use; Staleness and Ready take no lock.
//
// A heartbeat proves nothing when its sender has seen less of the store than
// another sender or than the node itself has, since it may be cut off. Nor do
// the first ones after a second of silence, until 200 ms of them have come.
type Freshness struct {
	base time.Time
	// Nanoseconds from base to when the node last was current; never when it has
	// not been.
	current atomic.Int64

	mu       sync.Mutex
	epoch    uint64
	held     int64
	progress int64
	heard    time.Time // the last heartbeat; zero before the first
	settled  time.Time // while settling, when it ends; else zero
	// Heartbeats of a head that the node does not hold yet, oldest first.
	pending [8]beat
	waiting int
}

type beat struct {
	head int64
	at   time.Time
}

const never = math.MinInt64

// NewFreshness starts the bookkeeping of a node that has heard nothing.
func NewFreshness() *Freshness {
	f := &Freshness{base: time.Now()}
	f.current.Store(never)
	return f
}

// Enter moves to an epoch, in which revisions start anew, and says whether what
// carries this epoch counts: an older epoch's does not. Staleness goes on
// counting from when the node last was current. A node that holds something from
// an earlier run enters its epoch before it calls Holds.
func (f *Freshness) Enter(epoch uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if epoch < f.epoch {
		return false
	}
	if epoch > f.epoch {
		// The first epoch that is heard of is the one that the node is in already.
		if f.epoch != 0 {
			f.held, f.progress, f.waiting = 0, 0, 0
		}
		f.epoch = epoch
	}
	return true
}

// Heard notes a heartbeat that arrived now: head is the newest revocation's
// revision, progress the revision up to which its sender has seen the store.
func (f *Freshness) Heard(head, progress int64, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	quiet := !f.heard.IsZero() && now.Sub(f.heard) > silence
	if now.After(f.heard) {
		f.heard = now
	}
	switch {
	case !f.settled.IsZero() && !now.Before(f.settled):
		f.settled = time.Time{}
	case !f.settled.IsZero():
		return
	case quiet:
		f.settled = now.Add(settling)
		return
	}
	if progress < f.progress || progress < f.held || progress < head {
		return
	}
	f.progress = progress
	if head <= f.held {
		f.advance(now)
		return
	}
	if f.waiting == len(f.pending) {
		copy(f.pending[:], f.pending[1:])
		f.waiting--
	}
	f.pending[f.waiting] = beat{head, now}
	f.waiting++
}

// Holds notes that the node now holds every revocation up to a revision. What
// it proves dates from the heartbeat that announced that revision, not from now.
func (f *Freshness) Holds(revision int64, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hold(revision, now)
}

// Follows notes that the node now holds the revocations of a revision, given
// that the one before it is previous. It says false, and notes nothing, when the
// node lacks some in between; the stream will bring them.
func (f *Freshness) Follows(previous, revision int64, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if previous > f.held || previous > revision {
		return false
	}
	f.hold(revision, now)
	return true
}

func (f *Freshness) hold(revision int64, now time.Time) {
	if revision <= f.held {
		return
	}
	f.held = revision
	keep := f.pending[:0]
	for _, b := range f.pending[:f.waiting] {
		if b.head > revision {
			keep = append(keep, b)
		} else if !b.at.After(now) {
			f.advance(b.at)
		}
	}
	f.waiting = len(keep)
}

// Held returns the revision up to which the node holds every revocation.
func (f *Freshness) Held() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held
}

// advance moves the last certain moment forward, never back.
func (f *Freshness) advance(at time.Time) {
	if d := int64(at.Sub(f.base)); d > f.current.Load() {
		f.current.Store(d)
	}
}

// Staleness returns how long ago the node last was current, at least zero; the
// longest Duration when it has not been since it started.
func (f *Freshness) Staleness(now time.Time) time.Duration {
	at := f.current.Load()
	if at == never {
		return math.MaxInt64
	}
	return max(0, now.Sub(f.base)-time.Duration(at))
}

// Ready says whether the node has been current since it started.
func (f *Freshness) Ready() bool { return f.current.Load() != never }
