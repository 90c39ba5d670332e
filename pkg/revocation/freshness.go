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
// revocation: the proof behind the last heartbeat at which it held the newest,
// whose age counts as well as the time since it was heard. It counts on the
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

// enter moves to an epoch, in which revisions start anew, and says whether what
// carries this epoch counts: an older epoch's does not. Staleness goes on
// counting from when the node last was current. f.mu is held: what counts and what
// is noted are one step, since the bus may enter the next epoch at any moment.
func (f *Freshness) enter(epoch uint64) bool {
	if epoch > f.epoch {
		f.epoch, f.held, f.progress, f.waiting = epoch, 0, 0, 0
	}
	return epoch == f.epoch
}

// Beat is what a control plane says of what is current.
type Beat struct {
	Epoch uint64
	// Head is the revision of the newest revocation, Progress the revision up to
	// which the sender has seen the store.
	Head, Progress int64
	// Age is how old the proof of it was when the beat was sent.
	Age time.Duration
}

// Heard notes a heartbeat that arrived now, and says whether the node lacks
// something that it announces. One of an older epoch counts for nothing.
func (f *Freshness) Heard(b Beat, now time.Time) (lacks bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.enter(b.Epoch) {
		return false
	}
	lacks = b.Head > f.held
	quiet := !f.heard.IsZero() && now.Sub(f.heard) > silence
	if now.After(f.heard) {
		f.heard = now
	}
	switch {
	case !f.settled.IsZero() && !now.Before(f.settled):
		f.settled = time.Time{}
	case !f.settled.IsZero():
		return lacks
	case quiet:
		f.settled = now.Add(settling)
		return lacks
	}
	if b.Progress < f.progress || b.Progress < f.held || b.Progress < b.Head {
		return lacks
	}
	f.progress = b.Progress
	at := now.Add(-max(0, b.Age))
	if !lacks {
		f.advance(at)
		return false
	}
	if f.waiting == len(f.pending) {
		copy(f.pending[:], f.pending[1:])
		f.waiting--
	}
	f.pending[f.waiting] = beat{b.Head, at}
	f.waiting++
	return true
}

// Holds notes that the node now holds every revocation up to a revision of an
// epoch. What it proves dates from the heartbeat that announced that revision, not
// from now. In an older epoch than the node is in it proves nothing.
func (f *Freshness) Holds(epoch uint64, revision int64, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.enter(epoch) {
		f.hold(revision, now)
	}
}

// Follows notes that the node now holds the revocations of a revision, given
// that the one before it is previous. It says false, and notes nothing, when the
// node lacks some in between; the stream will bring them. Of an older epoch it
// notes nothing, and nothing is lacking.
func (f *Freshness) Follows(epoch uint64, previous, revision int64, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.enter(epoch) {
		return true
	}
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

// Held returns the newest epoch that the node has heard of, and the revision of
// it up to which the node holds every revocation.
func (f *Freshness) Held() (epoch uint64, revision int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.epoch, f.held
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
