package limit

import (
	"math"
	"slices"
	"sync/atomic"
	"time"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// maxPeers bounds what a bus full of invented names can make a node remember.
const maxPeers = 1024

// peer is another node. Its fields are guarded by Limiter.mu; heard is atomic.
type peer struct {
	name  string // "" is a free slot
	boot  uint64
	past  [4]uint64 // boots that ended; their late reports are dropped
	life  uint32    // grows with every boot and every reuse of the slot
	epoch uint32    // grows with every return from silence
	heard *atomic.Int64
	seen  bool
}

// membership is one immutable view of the cluster. A new one replaces it when a
// node comes, goes silent, returns or leaves.
type membership struct {
	known    int     // nodes counted, this one included
	visible  int     // of these, heard within a second, this one included
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

// theta is how much a node may leave unsent: its part of εB, or of what is in
// the bucket, when that is far from empty.
func (m *membership) theta(e *entry) float64 {
	return math.Max(1, math.Max(epsilon*e.burst, e.level/4)/float64(m.known))
}

// arrive finds or makes the peer of a message, and says whether the message
// counts. The caller holds l.mu.
func (l *Limiter) arrive(sender string, boot uint64, now time.Duration) (int32, bool) {
	i, ok := l.names[sender]
	if !ok {
		return l.welcome(sender, boot, now)
	}
	p := &l.peers[i]
	if p.boot != boot {
		if slices.Contains(p.past[:], boot) {
			return 0, false
		}
		copy(p.past[1:], p.past[:])
		p.past[0], p.boot = p.boot, boot
		p.life++
		p.seen = false
	}
	p.heard.Store(int64(now))
	if !p.seen {
		p.seen = true
		p.epoch++
		l.audience++
		l.remember()
	}
	return i, true
}

// welcome makes the peer of a sender that nobody knew.
func (l *Limiter) welcome(sender string, boot uint64, now time.Duration) (int32, bool) {
	i := slices.IndexFunc(l.peers, func(p peer) bool { return p.name == "" })
	if i < 0 {
		if len(l.peers) >= maxPeers {
			return 0, false
		}
		i = len(l.peers)
		l.peers = append(l.peers, peer{})
	}
	p := &l.peers[i]
	*p = peer{name: sender, boot: boot, life: p.life + 1, heard: new(atomic.Int64), seen: true}
	p.heard.Store(int64(now))
	l.names[sender] = int32(i)
	l.audience++
	l.remember()
	return int32(i), true
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
			l.part(p)
			changed = true
		}
	}
	if changed {
		l.remember()
	}
}

// remember publishes the peers as a new membership. The caller holds l.mu.
func (l *Limiter) remember() {
	m := &membership{known: 1, visible: 1, audience: l.audience, peers: make([]member, len(l.peers))}
	for i := range l.peers {
		p := &l.peers[i]
		seen := p.seen && p.name != ""
		m.peers[i] = member{name: p.name, life: p.life, epoch: p.epoch, visible: seen, heard: p.heard}
		if p.name != "" {
			m.known++
		}
		if seen {
			m.visible++
		}
	}
	m.part = float64(m.visible) / float64(m.known)
	l.members.Store(m)
}

// Forget takes a node out of the count that limits with onPartition split
// divide by, for a caller that knows it to be gone and not merely out of sight.
// Safe for concurrent use.
func (l *Limiter) Forget(node string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i, ok := l.names[node]; ok {
		l.part(&l.peers[i])
		l.remember()
	}
}

// part frees a peer's slot. The caller holds l.mu.
func (l *Limiter) part(p *peer) {
	delete(l.names, p.name)
	p.name = ""
	p.life++
}

func open(p configv1.OnPartition) bool { return p == configv1.OnPartition_ON_PARTITION_OPEN }
