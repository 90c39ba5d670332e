package limit

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"math/bits"
	"time"
)

// Spend takes cost units from the bucket of k, or refuses. It never blocks on
// anything but a short critical section, never fails, and does not allocate for a
// key that it knows. A limit with onPartition strict is treated as split: see
// SpendStrict.
func (l *Limiter) Spend(k Key, r Rate, cost int64, now time.Time) Decision {
	t := l.since(now)
	s := &l.shards[shardOf(k)]
	s.mu.Lock()
	m := l.members.Load()
	e, i := l.entry(s, k, r, m, t)
	if e == nil {
		s.mu.Unlock()
		return l.overflow(r, cost, now)
	}
	granted := cost <= 0 || e.grants(float64(cost))
	if cost > 0 {
		l.settle(s, e, i, m, cost, granted, t)
	}
	d := e.decide(granted, float64(cost), m.share(e))
	s.mu.Unlock()
	return d
}

// SpendAll takes every item's cost, or none. The decision is that of the item at
// the returned index: the first that refuses, or else the one with the smallest
// part of its burst left. With no items it grants, at index -1.
func (l *Limiter) SpendAll(items []Item, now time.Time) (Decision, int) {
	switch len(items) {
	case 0:
		return Decision{Granted: true}, -1
	case 1:
		return l.Spend(items[0].Key, items[0].Rate, items[0].Cost, now), 0
	}
	var held uint64
	for i := range items {
		held |= 1 << shardOf(items[i].Key)
	}
	t := l.since(now)
	// In ascending order, so that two callers cannot wait for each other.
	for h := held; h != 0; h &= h - 1 {
		l.shards[bits.TrailingZeros64(h)].mu.Lock()
	}
	d, at, spill := l.spendHeld(items, t)
	for h := held; h != 0; h &= h - 1 {
		l.shards[bits.TrailingZeros64(h)].mu.Unlock()
	}
	if spill {
		return l.spillAll(items, now)
	}
	return d, at
}

// spendHeld is SpendAll with the items' shards locked. It reports spill when an
// item has no room in the table, and then has changed nothing.
func (l *Limiter) spendHeld(items []Item, t time.Duration) (d Decision, at int, spill bool) {
	m := l.members.Load()
	for i := range items {
		it := &items[i]
		s := &l.shards[shardOf(it.Key)]
		e, _ := l.entry(s, it.Key, it.Rate, m, t)
		if e == nil {
			l.undo(items[:i])
			return Decision{}, 0, true
		}
		if it.Cost <= 0 {
			continue
		}
		if !e.grants(float64(it.Cost)) {
			l.undo(items[:i])
			_, n := s.get(it.Key)
			// Only the limit that refuses was asked; the others' demand is what
			// reaches them.
			l.settle(s, e, n, m, it.Cost, false, t)
			return e.decide(false, float64(it.Cost), m.share(e)), i, false
		}
		e.spend(it.Cost) // at once, since two items may share a bucket
	}
	least := 2.0
	for i := range items {
		it := &items[i]
		s := &l.shards[shardOf(it.Key)]
		e, n := s.get(it.Key)
		if it.Cost > 0 {
			e.refund(it.Cost)
			l.settle(s, e, n, m, it.Cost, true, t)
		}
	}
	for i := range items {
		e, _ := l.shards[shardOf(items[i].Key)].get(items[i].Key)
		if left := e.level / max(e.burst, 1e-9); i == 0 || left < least {
			least, at = left, i
			d = e.decide(true, float64(items[i].Cost), m.share(e))
		}
	}
	return d, at, false
}

// undo gives back what spendHeld took.
func (l *Limiter) undo(items []Item) {
	for i := range items {
		if it := &items[i]; it.Cost > 0 {
			e, _ := l.shards[shardOf(it.Key)].get(it.Key)
			e.refund(it.Cost)
		}
	}
}

// entry returns k's entry, advanced to t and with the rate r; nil when there is
// no room. The shard is locked.
func (l *Limiter) entry(s *shard, k Key, r Rate, m *membership, t time.Duration) (*entry, int32) {
	e, i := s.get(k)
	if e == nil {
		if e, i = s.add(k, m, t, false); e == nil {
			return nil, -1
		}
	}
	e.refresh(m, t)
	e.open = open(r.OnPartition)
	if !e.local {
		e.found(r, t)
	} else if e.rate != r.PerSecond || e.burst != r.Burst {
		e.setRate(r.PerSecond, r.Burst)
	}
	return e, i
}

// settle books one request, and wakes Run when peers must hear of it now.
func (l *Limiter) settle(s *shard, e *entry, i int32, m *membership, cost int64, granted bool, t time.Duration) {
	e.ask(float64(cost))
	e.used = max(e.used, t)
	if granted {
		e.spend(cost)
		e.draw()
	}
	if l.config.Publish == nil {
		e.sent = e.total // there is nobody to tell
		return
	}
	s.mark(e, i)
	if granted && !e.urgent && m.starts > 1 && e.unsent() >= m.theta(e) {
		s.hurry(e, i)
		if !l.urgent.Swap(true) {
			select {
			case l.wake <- struct{}{}:
			default:
			}
		}
	}
}

// spillKey is the bucket that keys without room share, the same on all nodes.
func spillKey(r Rate) Key {
	b := append(make([]byte, 0, 32), "overflow"...)
	b = binary.LittleEndian.AppendUint64(b, r.ID)
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(r.PerSecond))
	b = binary.LittleEndian.AppendUint64(b, math.Float64bits(r.Burst))
	sum := sha256.Sum256(b)
	return Key(sum[:16])
}

// overflow spends from the bucket that all keys of a limit share while the table
// is full of keys that are in use: refusing more than asked, but never granting
// a caller a fresh bucket for a fresh key.
func (l *Limiter) overflow(r Rate, cost int64, now time.Time) Decision {
	k, t := spillKey(r), l.since(now)
	s := &l.shards[shardOf(k)]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spilled++
	m := l.members.Load()
	if e, _ := s.get(k); e == nil {
		if e, _ = s.add(k, m, t, true); e == nil {
			return Decision{RetryAfter: time.Second, Reset: time.Second}
		}
	}
	e, i := l.entry(s, k, r, m, t)
	granted := cost <= 0 || e.grants(float64(cost))
	if cost > 0 {
		l.settle(s, e, i, m, cost, granted, t)
	}
	return e.decide(granted, float64(cost), m.share(e))
}

// spillAll is SpendAll when the table is full: one item after the other. What an
// earlier one granted stays spent when a later one refuses.
func (l *Limiter) spillAll(items []Item, now time.Time) (d Decision, at int) {
	for i := range items {
		d = l.Spend(items[i].Key, items[i].Rate, items[i].Cost, now)
		if at = i; !d.Granted {
			break
		}
	}
	return d, at
}
