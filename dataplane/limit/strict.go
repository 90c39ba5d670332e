package limit

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"time"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// askPause is how long an owner that did not answer is not asked again, so that
// a dead one costs one request in many its timeout, not every one.
const askPause = 250 * time.Millisecond

// askState remembers which owners did not answer.
type askState struct {
	mu    sync.Mutex
	quiet map[string]time.Duration // until when
}

// SpendStrict is SpendAll for limits with onPartition strict: each such item is
// decided by its key's owner, which is asked over the bus and answers within
// Config.AskTimeout or is taken as out of reach; the item is then decided here,
// as split. So it may block for AskTimeout per strict item, and no longer than
// ctx. Items of other kinds, and keys that this node owns, are decided here.
//
// All or nothing, too: what was granted before a refusal is given back, at owners
// by another question. One that does not hear it keeps it spent.
func (l *Limiter) SpendStrict(ctx context.Context, items []Item, now time.Time) (Decision, int) {
	var stack [8]Item
	var from [8]int
	local, index := stack[:0], from[:0]
	var away []int
	t := l.since(now)
	for i := range items {
		if items[i].Cost > 0 && items[i].Rate.OnPartition == configv1.OnPartition_ON_PARTITION_STRICT && l.remote(items[i].Key, t) {
			away = append(away, i)
			continue
		}
		local, index = append(local, items[i]), append(index, i)
	}
	d, at := l.SpendAll(local, now)
	if at >= 0 {
		at = index[at]
	}
	if !d.Granted {
		return d, at
	}
	var granted []int
	for _, i := range away {
		it := &items[i]
		own, here := l.ask(ctx, it, now)
		if !own.Granted {
			l.giveBack(ctx, local, items, granted, t)
			return own, i
		}
		if here {
			local = append(local, *it)
		} else {
			granted = append(granted, i)
		}
		if at < 0 || own.Remaining*items[at].Rate.Burst < d.Remaining*it.Rate.Burst {
			d, at = own, i
		}
	}
	return d, at
}

// giveBack returns what the local items and those granted away took.
func (l *Limiter) giveBack(ctx context.Context, local, items []Item, away []int, t time.Duration) {
	for i := range local {
		if it := &local[i]; it.Cost > 0 {
			l.credit(it.Key, it.Cost)
		}
	}
	for _, i := range away {
		it := items[i]
		it.Cost = -it.Cost
		// Unheard, it stays spent: the error that refuses.
		_, _ = l.askOwner(ctx, &it, t)
	}
}

// credit gives cost back to a bucket of this node. Totals of peers stay right:
// they ignore a smaller total until it has grown past what they knew.
func (l *Limiter) credit(k Key, cost int64) {
	s := &l.shards[shardOf(k)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, _ := s.get(k); e != nil && e.local {
		e.refund(min(cost, e.total))
		e.clamp()
	}
}

// remote reports whether another node decides for k and may be asked.
func (l *Limiter) remote(k Key, t time.Duration) bool {
	node := l.Owner(k)
	return node != l.config.Node && l.config.AskOwner != nil && !l.strict.isQuiet(node, t)
}

// ask has an item decided by its owner, or here when that fails.
func (l *Limiter) ask(ctx context.Context, it *Item, now time.Time) (d Decision, here bool) {
	answer, err := l.askOwner(ctx, it, l.since(now))
	if err != nil {
		return l.Spend(it.Key, it.Rate, it.Cost, now), true
	}
	d = l.peek(it, l.since(now))
	d.Granted, d.RetryAfter = answer.GetGranted(), 0
	if !d.Granted {
		d.Remaining = 0
		d.RetryAfter = max(time.Millisecond, min(Forever, time.Duration(answer.GetRetryAfter())))
	}
	return d, false
}

// peek describes the bucket of an item without spending.
func (l *Limiter) peek(it *Item, t time.Duration) Decision {
	s := &l.shards[shardOf(it.Key)]
	s.mu.Lock()
	defer s.mu.Unlock()
	m := l.members.Load()
	e, _ := l.entry(s, it.Key, it.Rate, m, t)
	if e == nil {
		return Decision{}
	}
	return e.decide(false, float64(it.Cost), m.share(e))
}

// askOwner returns the owner's answer, or an error when this node must decide:
// because it is the owner, or because the owner is out of reach.
func (l *Limiter) askOwner(ctx context.Context, it *Item, t time.Duration) (*busv1.Answer, error) {
	node := l.Owner(it.Key)
	if node == l.config.Node || l.config.AskOwner == nil || l.strict.isQuiet(node, t) {
		return nil, errNoOwner
	}
	ctx, cancel := context.WithTimeout(ctx, l.config.AskTimeout)
	defer cancel()
	l.counted.asked.Add(1)
	answer, err := l.config.AskOwner(ctx, node, &busv1.Ask{Key: it.Key[:], Cost: it.Cost, Rate: it.Rate.PerSecond, Capacity: it.Rate.Burst})
	if err != nil {
		l.counted.unanswered.Add(1)
		l.strict.hush(node, t+askPause)
		return nil, fmt.Errorf("%w: %s: %w", errNoOwner, node, err)
	}
	return answer, nil
}

// Answer decides for a node that asks, as this key's owner. It never fails: a
// malformed question is refused.
func (l *Limiter) Answer(ask *busv1.Ask, now time.Time) *busv1.Answer {
	r, c := ask.GetRate(), ask.GetCapacity()
	if len(ask.GetKey()) != len(Key{}) || !(r >= 0 && c >= 0) || math.IsInf(r, 0) || math.IsInf(c, 0) {
		return &busv1.Answer{RetryAfter: int64(Forever)}
	}
	if cost := ask.GetCost(); cost < 0 {
		l.credit(Key(ask.GetKey()), -max(cost, -math.MaxInt64))
		return &busv1.Answer{Granted: true}
	}
	d := l.Spend(Key(ask.GetKey()), Rate{PerSecond: r, Burst: c, OnPartition: configv1.OnPartition_ON_PARTITION_STRICT}, ask.GetCost(), now)
	return &busv1.Answer{Granted: d.Granted, RetryAfter: int64(d.RetryAfter)}
}

// Owner returns the node that decides for k under onPartition strict: of the
// nodes in sight, this one included, the one with the highest rendezvous hash.
func (l *Limiter) Owner(k Key) string {
	m := l.members.Load()
	best, weight := l.config.Node, rendezvous(l.config.Node, k)
	for i := range m.peers {
		p := &m.peers[i]
		if !p.visible || p.name == l.config.Node {
			continue
		}
		if w := rendezvous(p.name, k); w > weight || w == weight && p.name > best {
			best, weight = p.name, w
		}
	}
	return best
}

func rendezvous(node string, k Key) uint64 {
	var stack [128]byte
	sum := sha256.Sum256(append(append(stack[:0], k[:]...), node...))
	return binary.BigEndian.Uint64(sum[:])
}

func (a *askState) isQuiet(node string, t time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	until, ok := a.quiet[node]
	if ok && t >= until {
		delete(a.quiet, node)
	}
	return ok && t < until
}

func (a *askState) hush(node string, until time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.quiet == nil {
		a.quiet = make(map[string]time.Duration)
	}
	a.quiet[node] = until
}
