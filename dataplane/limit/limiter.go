package limit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
)

// Config is what a Limiter needs. Node must be set.
type Config struct {
	// Node is this node's name, Boot a number that changes with its every start.
	Node string
	Boot uint64
	// Publish sends this node's totals to all others; it must not block, and may
	// keep the message. An error means that nothing was sent: the totals are
	// sent again. nil: this node is alone.
	Publish func(*busv1.Spent) error
	// AskOwner asks another node to decide (Limiter.Answer there). nil: limits
	// with onPartition strict behave as split.
	AskOwner func(ctx context.Context, node string, ask *busv1.Ask) (*busv1.Answer, error)
	// AskTimeout bounds one question; default 10 ms.
	AskTimeout time.Duration
	// MaxKeys bounds the key table, at about 350 bytes a key; default 524,288.
	MaxKeys int
	// ForgetAfter is how long a silent node counts among the nodes last known;
	// default 10 minutes. Limiter.Forget is for callers that know sooner.
	ForgetAfter time.Duration
	// Start is the origin of the limiter's clock, at most the first time it is
	// given; default time.Now(). Times that carry Go's monotonic reading make
	// steps of the wall clock invisible.
	Start time.Time
}

// Limiter is one node's buckets. All methods are safe for concurrent use.
type Limiter struct {
	config  Config
	shards  [shards]shard
	members atomic.Pointer[membership]
	wake    chan struct{} // cap 1: a total is urgent

	// Owned by Tick, under its lock.
	tickMu  sync.Mutex
	ticked  time.Duration // last whole tick
	flushed time.Duration // last publication
	swept   int           // shard the sweep stands in
	// audienceSwept is the audience that the last sweep saw.
	audienceSwept uint32

	mu       sync.Mutex
	peers    []peer
	slots    map[startID]int32 // of peers
	ended    map[string]*ended
	audience uint32

	urgent  atomic.Bool
	strict  askState
	counted counters
}

type counters struct {
	sent, received, dropped, failed, asked, unanswered atomic.Uint64
}

// Stats is what a Limiter counted since it was made.
type Stats struct {
	Keys       int    // in the table now
	Nodes      int    // visible now, this one included
	Known      int    // nodes counted among those last known, this one included
	Evicted    uint64 // idle keys forgotten
	Spilled    uint64 // requests that shared an overflow bucket, the table being full
	Sent       uint64 // totals published
	Received   uint64 // totals taken in
	Dropped    uint64 // totals refused: malformed, of an ended boot, or no room
	Failed     uint64 // publications that failed
	Asked      uint64 // questions to owners
	Unanswered uint64 // of these, without an answer in time
}

// New returns a Limiter. Until Run is called, totals are taken in but not sent.
func New(c Config) *Limiter {
	if c.AskTimeout <= 0 {
		c.AskTimeout = 10 * time.Millisecond
	}
	if c.MaxKeys <= 0 {
		c.MaxKeys = 1 << 19
	}
	if c.ForgetAfter <= 0 {
		c.ForgetAfter = 10 * time.Minute
	}
	if c.Start.IsZero() {
		c.Start = time.Now()
	}
	l := &Limiter{config: c, wake: make(chan struct{}, 1), slots: make(map[startID]int32), ended: make(map[string]*ended), ticked: -tick, flushed: -announce}
	seed := rendezvous(c.Node, Key{}) // nodes must not draw alike
	for i := range l.shards {
		l.shards[i].init((c.MaxKeys+shards-1)/shards, seed)
	}
	l.mu.Lock()
	l.remember()
	l.mu.Unlock()
	return l
}

// since puts a time on the limiter's clock. It is never negative.
func (l *Limiter) since(now time.Time) time.Duration { return max(0, now.Sub(l.config.Start)) }

// Stats returns the counts.
func (l *Limiter) Stats() Stats {
	m := l.members.Load()
	st := Stats{Nodes: m.visible, Known: m.known,
		Sent: l.counted.sent.Load(), Received: l.counted.received.Load(), Dropped: l.counted.dropped.Load(),
		Failed: l.counted.failed.Load(), Asked: l.counted.asked.Load(), Unanswered: l.counted.unanswered.Load()}
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		st.Keys += len(s.index)
		st.Evicted += s.evicted
		st.Spilled += s.spilled
		s.mu.Unlock()
	}
	return st
}

var errNoOwner = errors.New("limit: no owner could be asked")
