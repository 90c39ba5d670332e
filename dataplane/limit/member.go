package limit

import (
	"math"
	"slices"
	"sync/atomic"
	"time"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// maxPeers bounds what a bus full of invented names can make a node remember,
// maxStarts that of one name.
const (
	maxPeers  = 1024
	maxStarts = 4
)

// Which starts of a node count.
//
// Totals belong to a start (a process): a name and a boot number. Each start
// counts from zero and is believed by itself, so whatever the order in which the
// starts of one node come, overlap, fail and end, a unit that was admitted is in
// the total of exactly one of them: it is counted once when that total is heard,
// and never twice, since a total is debited by what it has grown.
//
// A start counts from the first message that is heard of it until it says that it
// leaves, is forgotten (ForgetAfter, Forget), or is put aside for the fifth start
// of the same name, the one heard longest ago. From then on what comes of it is
// late, and dropped: what it spent stays debited. A start that falls silent is
// presumed to ask for nothing, but what it tells later still counts. No start ends
// because another comes: a successor that fails leaves its predecessor counted,
// and one that takes over leaves it counted until it has drained.
//
// Nodes are counted by name, however many starts of it there are: a node is known
// while one of its starts is, and visible while one was heard within a second. The
// other starts of a limiter's own name are peers like any, but not further nodes.

// startID names a start.
type startID struct {
	name string
	boot uint64
}

// peer is another start. Its fields are guarded by Limiter.mu; heard is atomic.
type peer struct {
	startID        // name "" is a free slot
	life    uint32 // grows with every reuse of the slot
	epoch   uint32 // grows with every return from silence
	heard   *atomic.Int64
	seen    bool
}

// ended are starts of one name that count no more.
type ended struct {
	boots [8]uint64
	at    time.Duration // of the last
}

// membership is one immutable view of the cluster. A new one replaces it when a
// start comes, goes silent, returns or leaves.
type membership struct {
	known    int     // nodes counted, this one included
	visible  int     // of these, heard within a second, this one included
	starts   int     // starts heard within a second, or nodes known, if more
	part     float64 // visible / known
	audience uint32  // grows when somebody comes who has heard nothing
	peers    []member
}

type member struct {
	name        string
	life, epoch uint32
	visible     bool
	heard       *atomic.Int64 // when it was last heard, on our clock
}

// share is the part of R that this node's side of the cluster may spend.
func (m *membership) share(e *entry) float64 {
	if e.open {
		return 1
	}
	return m.part
}

// theta is how much a start may leave unsent: its part of εB, or of what is in
// the bucket, when that is far from empty.
func (m *membership) theta(e *entry) float64 {
	return math.Max(1, math.Max(epsilon*e.burst, e.level/4)/float64(m.starts))
}

// arrive finds or makes the peer of a message, and says whether the message
// counts. The caller holds l.mu.
func (l *Limiter) arrive(id startID, now time.Duration) (int32, bool) {
	i, ok := l.slots[id]
	if !ok {
		if e := l.ended[id.name]; e != nil && slices.Contains(e.boots[:], id.boot) {
			return 0, false
		}
		return l.welcome(id, now)
	}
	p := &l.peers[i]
	p.heard.Store(int64(now))
	if !p.seen {
		p.seen = true
		p.epoch++
		l.audience++
		l.remember()
	}
	return i, true
}

// welcome makes the peer of a start that nobody knew.
func (l *Limiter) welcome(id startID, now time.Duration) (int32, bool) {
	l.crowd(id.name, now)
	i := slices.IndexFunc(l.peers, func(p peer) bool { return p.name == "" })
	if i < 0 {
		if len(l.peers) >= maxPeers {
			return 0, false
		}
		i = len(l.peers)
		l.peers = append(l.peers, peer{})
	}
	p := &l.peers[i]
	*p = peer{startID: id, life: p.life + 1, heard: new(atomic.Int64), seen: true}
	p.heard.Store(int64(now))
	l.slots[id] = int32(i)
	l.audience++
	l.remember()
	return int32(i), true
}

// crowd makes room for one more start of a name.
func (l *Limiter) crowd(name string, now time.Duration) {
	count, oldest := 0, -1
	for i := range l.peers {
		if l.peers[i].name != name {
			continue
		}
		if count++; oldest < 0 || l.peers[i].heard.Load() < l.peers[oldest].heard.Load() {
			oldest = i
		}
	}
	if count >= maxStarts {
		l.part(&l.peers[oldest], now)
	}
}

// lose marks the peers that fell silent, and forgets those silent for so long
// that they are gone. The caller holds l.mu.
func (l *Limiter) lose(now time.Duration) {
	changed := false
	for i := range l.peers {
		p := &l.peers[i]
		if p.name == "" {
			continue
		}
		quiet := now - time.Duration(p.heard.Load())
		if p.seen && quiet >= silence {
			p.seen, changed = false, true
		}
		if quiet >= l.config.ForgetAfter {
			l.part(p, now)
			changed = true
		}
	}
	for name, e := range l.ended {
		if now-e.at >= l.config.ForgetAfter {
			delete(l.ended, name)
		}
	}
	if changed {
		l.remember()
	}
}

// remember publishes the peers as a new membership. The caller holds l.mu.
func (l *Limiter) remember() {
	m := &membership{audience: l.audience, peers: make([]member, len(l.peers))}
	known, visible := map[string]bool{l.config.Node: true}, map[string]bool{l.config.Node: true}
	m.starts = 1
	for i := range l.peers {
		p := &l.peers[i]
		seen := p.seen && p.name != ""
		m.peers[i] = member{name: p.name, life: p.life, epoch: p.epoch, visible: seen, heard: p.heard}
		if p.name != "" {
			known[p.name] = true
		}
		if seen {
			visible[p.name] = true
			m.starts++
		}
	}
	m.known, m.visible = len(known), len(visible)
	m.starts = max(m.starts, m.known)
	m.part = float64(m.visible) / float64(m.known)
	l.members.Store(m)
}

// Forget takes a node out of the count that limits with onPartition split
// divide by, for a caller that knows it to be gone and not merely out of sight.
// Safe for concurrent use.
func (l *Limiter) Forget(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.peers {
		if p := &l.peers[i]; p.name == node && node != "" {
			l.part(p, time.Duration(p.heard.Load()))
		}
	}
	l.remember()
}

// leave takes one start out, since it has said or is known to have ended.
func (l *Limiter) leave(id startID, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i, ok := l.slots[id]; ok {
		l.part(&l.peers[i], now)
		l.remember()
	}
}

// part frees a peer's slot. The caller holds l.mu.
func (l *Limiter) part(p *peer, now time.Duration) {
	e := l.ended[p.name]
	if e == nil {
		e = &ended{}
		l.ended[p.name] = e
	}
	copy(e.boots[1:], e.boots[:])
	e.boots[0], e.at = p.boot, now
	delete(l.slots, p.startID)
	p.name = ""
	p.life++
}

func open(p configv1.OnPartition) bool { return p == configv1.OnPartition_ON_PARTITION_OPEN }
