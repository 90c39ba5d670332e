package limit

import (
	"encoding/binary"
	"sync"
	"time"
)

const (
	shards    = 64 // so that a set of shards is one uint64
	slabBits  = 8
	slabSize  = 1 << slabBits
	reachFull = 16 // entries looked at for one to evict when the table is full
	spareRoom = 4  // entries a shard may have beyond its share, for overflow buckets, as a divisor
)

// shard is a part of the key table. Entries live in slabs that never move, and
// the lists go through them, so that spending allocates nothing.
type shard struct {
	mu      sync.Mutex
	index   map[Key]int32
	slabs   [][]entry
	used    int32 // entries that were ever taken from the slabs
	free    int32 // list of freed ones
	dirty   int32 // list of those with news, or that had a request
	urgent  int32 // list of those of which peers must hear before the next tick
	hand    int32 // where the sweep stands
	limit   int   // keys
	seed    uint64
	evicted uint64
	spilled uint64
	_       [64]byte // keeps neighbours' locks off one cache line
}

func (s *shard) init(limit int, seed uint64) {
	s.seed = seed
	s.index = make(map[Key]int32)
	s.free, s.dirty, s.urgent, s.limit = -1, -1, -1, limit
}

// shardOf uses bytes of the key that are uniform, keys being hashes.
func shardOf(k Key) int { return int(binary.LittleEndian.Uint64(k[8:]) % shards) }

func (s *shard) at(i int32) *entry { return &s.slabs[i>>slabBits][i&(slabSize-1)] }

// get returns the entry of k, if there is one.
func (s *shard) get(k Key) (*entry, int32) {
	if i, ok := s.index[k]; ok {
		return s.at(i), i
	}
	return nil, -1
}

// add makes the entry of k, which must not be there. It returns nil when the
// shard is full of keys that must not be forgotten; spare allows it the room kept
// for overflow buckets.
func (s *shard) add(k Key, m *membership, now time.Duration, spare bool) (*entry, int32) {
	limit := s.limit
	if spare {
		limit += max(1, limit/spareRoom)
	}
	if len(s.index) >= limit && !s.evict(m, now) {
		return nil, -1
	}
	i := s.free
	if i >= 0 {
		s.free = s.at(i).next
	} else {
		i = s.used
		s.used++
		if int(i)>>slabBits == len(s.slabs) {
			s.slabs = append(s.slabs, make([]entry, slabSize))
		}
	}
	e := s.at(i)
	remotes := e.remotes[:0] // reused with the entry
	*e = entry{key: k, remotes: remotes, next: -1, later: -1, live: true, used: now, members: m}
	e.at = now
	e.dice = s.seed ^ binary.LittleEndian.Uint64(k[:])
	s.index[k] = i
	return e, i
}

// evict frees one of the next entries under the hand that may be forgotten.
func (s *shard) evict(m *membership, now time.Duration) bool {
	for range reachFull {
		e, i := s.step()
		if e != nil && s.drop(e, i, m, now) {
			return true
		}
	}
	return false
}

// step moves the hand to the next entry in use; nil when the slot is free.
func (s *shard) step() (*entry, int32) {
	if s.used == 0 {
		return nil, -1
	}
	s.hand = (s.hand + 1) % s.used
	e := s.at(s.hand)
	if !e.live {
		return nil, -1
	}
	return e, s.hand
}

// drop frees the entry if it may be forgotten.
func (s *shard) drop(e *entry, i int32, m *membership, now time.Duration) bool {
	if e.dirty {
		return false
	}
	e.refresh(m, now)
	if !e.idle(now) {
		return false
	}
	delete(s.index, e.key)
	e.live = false
	e.next, s.free = s.free, i
	s.evicted++
	return true
}

// mark puts the entry into the list that the next tick looks at.
func (s *shard) mark(e *entry, i int32) {
	if !e.dirty {
		e.dirty = true
		e.next, s.dirty = s.dirty, i
	}
}

// hurry puts an entry that is marked into the list that the next publication
// takes, tick or not.
func (s *shard) hurry(e *entry, i int32) {
	e.urgent = true
	e.later, s.urgent = s.urgent, i
}
