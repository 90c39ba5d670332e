package limit

import (
	"context"
	"math"
	"time"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
)

const (
	batch      = 512  // totals in one message, about 35 KB
	sweepKeys  = 8192 // table slots looked at in one tick
	pubsPerRun = 64   // batches in one tick; what is left waits for the next
)

// Receive takes in what one start of a node published: sender and boot name it.
// Messages of a start that counts no more (see member.go) and malformed totals are
// dropped and counted, its own are ignored. The caller has authenticated the message. now is as in Spend. The
// message is not kept.
func (l *Limiter) Receive(sender string, boot uint64, msg *busv1.Spent, now time.Time) {
	id := startID{sender, boot}
	if sender == "" || id == (startID{l.config.Node, l.config.Boot}) {
		return
	}
	t := l.since(now)
	l.mu.Lock()
	p, ok := l.arrive(id, t)
	l.mu.Unlock()
	if !ok {
		l.counted.dropped.Add(uint64(len(msg.GetTotals())))
		return
	}
	for _, total := range msg.GetTotals() {
		if k, rep, ok := reportOf(total, msg.GetNow()); ok && l.hear(k, p, rep, t) {
			l.counted.received.Add(1)
		} else {
			l.counted.dropped.Add(1)
		}
	}
	if msg.GetLeaving() {
		l.leave(id, t)
	}
}

// reportOf validates one total.
func reportOf(m *busv1.Total, sent int64) (Key, report, bool) {
	r := report{total: m.GetTotal(), demand: m.GetRate(), missing: m.GetMissing(),
		since: time.Duration(m.GetSince()), sent: time.Duration(sent)}
	finite := func(v float64) bool { return !math.IsNaN(v) && v >= 0 && v < 1e15 }
	if len(m.GetKey()) != len(Key{}) || r.total < 0 || r.since < 0 || r.sent < r.since ||
		!finite(r.demand) || !finite(r.missing) {
		return Key{}, report{}, false
	}
	return Key(m.GetKey()), r, true
}

func (l *Limiter) hear(k Key, p int32, rep report, t time.Duration) bool {
	s := &l.shards[shardOf(k)]
	s.mu.Lock()
	defer s.mu.Unlock()
	m := l.members.Load()
	e, _ := s.get(k)
	if e == nil {
		if e, _ = s.add(k, m, t, false); e == nil {
			return false
		}
	}
	e.hear(m, p, rep, t)
	return true
}

// Run publishes this node's totals until ctx ends, and then says that the node
// leaves. It returns nil once it has.
func (l *Limiter) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			l.Leave(time.Now())
			return nil
		case <-l.wake:
		case <-timer.C:
		}
		timer.Reset(l.Tick(time.Now()))
	}
}

// Leave tells the other nodes that this one stops on purpose.
func (l *Limiter) Leave(now time.Time) {
	l.tickMu.Lock()
	defer l.tickMu.Unlock()
	if l.config.Publish == nil {
		return
	}
	t := l.since(now)
	l.flush(l.collect(t, true), t)
	l.send(&busv1.Spent{Now: int64(t), Leaving: true})
}

// Tick does what is due at now and returns after how long to call it again,
// unless a Spend wakes Run before. Only Run and simulations call it.
func (l *Limiter) Tick(now time.Time) time.Duration {
	l.tickMu.Lock()
	defer l.tickMu.Unlock()
	t := l.since(now)
	if wait := l.flushed + minGap - t; wait > 0 {
		return wait
	}
	l.urgent.Store(false)
	whole := t-l.ticked >= tick
	if whole {
		l.ticked = t
		l.mu.Lock()
		l.lose(t)
		l.mu.Unlock()
	}
	totals := l.collect(t, whole)
	if whole {
		totals = l.sweep(totals, t)
	}
	if l.config.Publish != nil {
		l.flush(totals, t)
		if t-l.flushed >= announce {
			l.send(&busv1.Spent{Now: int64(t)})
			l.flushed = t
		}
	}
	return max(minGap, l.ticked+tick-t)
}

// Urgent reports whether a total waits to be published before the next tick.
func (l *Limiter) Urgent() bool { return l.urgent.Load() }

// pending is a total about to be sent, and what to restore if it cannot be.
type pending struct {
	key    Key
	total  busTotal
	before wasSent
}

type busTotal struct {
	total         int64
	rate, missing float64
	since         time.Duration
}

type wasSent struct {
	total  int64
	demand float64
	admit  float64
	at     time.Duration
}

// collect takes what peers must hear of from the shards' lists: what is urgent,
// and in a whole tick what else changed.
func (l *Limiter) collect(t time.Duration, whole bool) []pending {
	var out []pending
	for n := range l.shards {
		s := &l.shards[n]
		s.mu.Lock()
		m := l.members.Load()
		for i := s.urgent; i >= 0 && len(out) < batch*pubsPerRun; i = s.urgent {
			e := s.at(i)
			s.urgent, e.urgent = e.later, false
			e.refresh(m, t)
			out = append(out, e.tell(m, t))
		}
		if whole {
			out = s.changed(out, m, t)
		}
		s.mu.Unlock()
	}
	return out
}

// changed takes what peers should hear of from the list of dirty entries, and
// leaves there what may wait.
func (s *shard) changed(out []pending, m *membership, t time.Duration) []pending {
	i := s.dirty
	s.dirty = -1
	for i >= 0 {
		e := s.at(i)
		at := i
		i = e.next
		e.dirty = false
		e.refresh(m, t)
		if len(out) < batch*pubsPerRun && !e.urgent && e.publish(m, t) {
			out = append(out, e.tell(m, t))
		}
		if e.total != e.sent || e.urgent {
			s.mark(e, at)
		}
	}
	return out
}

// sweep visits a part of the table: tells again what is due, forgets what may be.
func (l *Limiter) sweep(out []pending, t time.Duration) []pending {
	parts := shards / 5 // the whole table in five ticks, when it is small
	if a := l.members.Load().audience; a != l.audienceSwept {
		parts, l.audienceSwept = shards, a
	}
	for left, n := sweepKeys, 0; left > 0 && n < parts && len(out) < batch*pubsPerRun; n++ {
		s := &l.shards[l.swept]
		l.swept = (l.swept + 1) % shards
		s.mu.Lock()
		m := l.members.Load()
		for range min(int(s.used), left) {
			left--
			e, i := s.step()
			if e == nil || s.drop(e, i, m, t) {
				continue
			}
			e.refresh(m, t)
			if l.config.Publish != nil && !e.urgent && e.announces(m, t) {
				out = append(out, e.tell(m, t))
			}
		}
		s.mu.Unlock()
	}
	return out
}

// tell notes that the entry's state is being sent, and returns it.
func (e *entry) tell(m *membership, t time.Duration) pending {
	p := pending{key: e.key,
		total:  busTotal{e.total, e.demand, max(0, e.burst-e.level), e.born},
		before: wasSent{e.sent, e.sentDemand, e.sentAdmit, e.sentAt}}
	e.sent, e.sentDemand, e.sentAdmit, e.sentAt = e.total, e.demand, e.admit, t
	e.told = m.audience
	return p
}

// flush publishes the totals in batches.
func (l *Limiter) flush(totals []pending, t time.Duration) {
	for len(totals) > 0 {
		part := totals[:min(batch, len(totals))]
		totals = totals[len(part):]
		values := make([]busv1.Total, len(part))
		msg := &busv1.Spent{Now: int64(t), Totals: make([]*busv1.Total, len(part))}
		for i := range part {
			p, v := &part[i], &values[i]
			v.Key, v.Total, v.Rate = p.key[:], p.total.total, p.total.rate
			v.Missing, v.Since = p.total.missing, int64(p.total.since)
			msg.Totals[i] = v
		}
		l.flushed = t
		if l.send(msg) {
			l.counted.sent.Add(uint64(len(part)))
		} else {
			l.unsend(part)
		}
	}
}

func (l *Limiter) send(msg *busv1.Spent) bool {
	if err := l.config.Publish(msg); err != nil {
		l.counted.failed.Add(1)
		return false
	}
	return true
}

// unsend makes what could not be published wait for the next tick.
func (l *Limiter) unsend(part []pending) {
	for i := range part {
		p := &part[i]
		s := &l.shards[shardOf(p.key)]
		s.mu.Lock()
		if e, n := s.get(p.key); e != nil {
			e.sent, e.sentDemand = p.before.total, p.before.demand
			e.sentAdmit, e.sentAt = p.before.admit, p.before.at
			s.mark(e, n)
		}
		s.mu.Unlock()
	}
}
