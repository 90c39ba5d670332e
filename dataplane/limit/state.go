package limit

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// What one start of a node hands to the next, in gob: what each bucket holds, and
// what is known of whom, so that what either hears from then on is told from what
// it has counted. The first value says who writes.
type (
	stateHead struct {
		Node   string
		Boot   uint64
		Now    time.Duration // on the writer's clock
		Starts []stateStart
	}
	stateStart struct {
		Name string
		Boot uint64
		Age  time.Duration // since it was heard
	}
	stateBucket struct {
		Key                        Key
		Rate, Burst, Level, Demand float64
		Total                      int64
		Since                      time.Duration // on the writer's clock
		Open                       bool
		Remotes                    []stateRemote
	}
	stateRemote struct {
		Start           int // in the head's Starts
		Total           int64
		Demand, Missing float64
		Since, Sent     time.Duration // on its clock
	}
	// stateShard is a part of the buckets; the last one has none.
	stateShard struct{ Buckets []stateBucket }
)

// WriteState writes all that a successor needs to go on where this start is. What
// is spent meanwhile is in the totals that it publishes next.
func (l *Limiter) WriteState(w io.Writer, now time.Time) error {
	t := l.since(now)
	out := gob.NewEncoder(w)
	head := stateHead{Node: l.config.Node, Boot: l.config.Boot, Now: t}
	l.mu.Lock()
	for i := range l.peers {
		p := &l.peers[i]
		head.Starts = append(head.Starts, stateStart{p.name, p.boot, t - time.Duration(p.heard.Load())})
	}
	l.mu.Unlock()
	if err := out.Encode(head); err != nil {
		return err
	}
	for i := range l.shards {
		if part := l.shards[i].state(l.members.Load(), head.Starts, t); len(part.Buckets) > 0 {
			if err := out.Encode(part); err != nil {
				return err
			}
		}
	}
	return out.Encode(stateShard{})
}

// state returns the buckets in use.
func (s *shard) state(m *membership, starts []stateStart, t time.Duration) (out stateShard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range s.index {
		e := s.at(i)
		if !e.local {
			continue // its peers tell of it
		}
		e.refresh(m, t)
		b := stateBucket{Key: e.key, Rate: e.rate, Burst: e.burst, Level: e.level, Demand: e.demand, Total: e.total, Since: e.born, Open: e.open}
		for _, r := range e.remotes {
			if p := m.peers[r.peer]; p.life == r.life && int(r.peer) < len(starts) && starts[r.peer].Name == p.name {
				b.Remotes = append(b.Remotes, stateRemote{int(r.peer), r.total, r.demand, r.missing, r.since, r.sent})
			}
		}
		out.Buckets = append(out.Buckets, b)
	}
	return out
}

// ReadState takes over what WriteState wrote in the process before, whose start is
// a peer from then on. It is for a Limiter that nothing was spent from. What it
// cannot use it leaves out; what it has read before an error holds.
func (l *Limiter) ReadState(r io.Reader, now time.Time) error {
	t := l.since(now)
	in := gob.NewDecoder(r)
	var head stateHead
	if err := in.Decode(&head); err != nil {
		return fmt.Errorf("the buckets of the process before: %w", err)
	}
	if head.Node != l.config.Node || head.Boot == l.config.Boot {
		return errors.New("the buckets of the process before are those of another node")
	}
	slots := l.meet(head, t)
	for {
		var part stateShard
		if err := in.Decode(&part); err != nil {
			return fmt.Errorf("the buckets of the process before: %w", err)
		}
		if len(part.Buckets) == 0 {
			return nil
		}
		for i := range part.Buckets {
			l.restore(&part.Buckets[i], head.Now, slots, t)
		}
	}
}

// meet makes peers of the starts that the writer knew, and of itself, the last.
// Those that it did not, get slot -1.
func (l *Limiter) meet(head stateHead, t time.Duration) (slots []int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range append(head.Starts, stateStart{Name: head.Node, Boot: head.Boot}) {
		id := startID{s.Name, s.Boot}
		slot, ok := int32(-1), false
		if s.Name != "" && id != (startID{l.config.Node, l.config.Boot}) {
			if slot, ok = l.arrive(id, t); !ok {
				slot = -1
			}
		}
		if slot >= 0 {
			// It may be silent already.
			l.peers[slot].heard.Store(int64(t - max(0, s.Age)))
		}
		slots = append(slots, slot)
	}
	return slots
}

// restore makes a bucket what it was in the process before.
func (l *Limiter) restore(b *stateBucket, sent time.Duration, slots []int32, t time.Duration) {
	for _, v := range []float64{b.Rate, b.Burst, b.Demand, -min(0, b.Level)} {
		if math.IsNaN(v) || v < 0 || v > 1e15 {
			return
		}
	}
	s := &l.shards[shardOf(b.Key)]
	s.mu.Lock()
	defer s.mu.Unlock()
	m := l.members.Load()
	e, _ := s.get(b.Key)
	if e == nil {
		if e, _ = s.add(b.Key, m, t, false); e == nil {
			return
		}
	}
	e.remotes, e.others = e.remotes[:0], 0
	e.local, e.open, e.born, e.used, e.at, e.allowance = true, b.Open, t, t, t, 1
	e.burst, e.level = 0, 0
	e.setRate(b.Rate, b.Burst)
	e.level = b.Level
	e.clamp()
	own := stateRemote{len(slots) - 1, b.Total, b.Demand, max(0, b.Burst-b.Level), b.Since, sent}
	for _, r := range append(b.Remotes, own) {
		if r.Start < 0 || r.Start >= len(slots) || slots[r.Start] < 0 {
			continue
		}
		e.know(m, slots[r.Start], report{r.Total, r.Demand, r.Missing, r.Since, r.Sent}, t)
	}
}

// know notes what a start has told, as counted in the level.
func (e *entry) know(m *membership, slot int32, rep report, t time.Duration) {
	if rep.total < 0 || !(rep.demand >= 0) || rep.since < 0 || rep.sent < rep.since {
		return
	}
	p := &m.peers[slot]
	i, found := e.place(slot)
	r := remote{peer: slot, life: p.life, epoch: p.epoch, at: t, admit: e.admit, report: rep}
	if found {
		e.remotes[i] = r
		return
	}
	e.remotes = slices.Insert(e.remotes, i, r)
	e.others += rep.demand
}
