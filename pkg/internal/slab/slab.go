// Package slab holds millions of fixed-size records without pointers, so that
// the garbage collector has nothing to scan, and lets them be read without a
// lock while they change. It knows words, not what they mean.
//
// It is an open-addressing table with one-byte tags, eight to a group (as in
// abseil's Swiss tables), split into shards that grow on their own, so that no
// write waits for a copy of the whole. A slot is written once, before its tag
// is published, and never reused until its shard is rebuilt: a reader that saw
// a tag reads a whole record.
package slab

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
)

const (
	shards    = 256
	groupSize = 8
	// A group's worth of slots stays free for every eight: the table is rebuilt
	// when more than 7/8 are used, so every probe meets an empty slot.
	groupLoad = 7

	tagEmpty = 0x00
	tagDead  = 0x01
	tagLive  = 0x80 // plus seven bits of the hash

	lows  = 0x0101010101010101
	highs = 0x8080808080808080
)

// Map is a set of records of a fixed number of words, the first of which are
// the key. Keys must be uniformly distributed, as those of a cryptographic hash
// are. Safe for concurrent use; readers take no lock.
type Map struct {
	key, width int
	seed       uint64
	length     atomic.Int64
	shards     [shards]shard
}

type shard struct {
	table atomic.Pointer[table]

	// Owned by writers.
	mu   sync.Mutex
	live int
	used int // live and dead
}

type table struct {
	tags  []uint64 // one word of eight tags per group
	words []uint64 // width words per slot
}

// New makes an empty map of records of width words whose first key words are
// the key; 0 < key <= width.
func New(key, width int) *Map {
	if key <= 0 || width < key {
		panic("slab: a record needs a key and no less than its key")
	}
	// A secret odd factor keeps whoever can choose keys from choosing slots.
	return &Map{key: key, width: width, seed: rand.Uint64() | 1}
}

// Slot is a record that was found. It never changes.
type Slot struct {
	table *table
	at    int
}

// Word returns the record's word i.
func (s Slot) Word(i int) uint64 { return atomic.LoadUint64(&s.table.words[s.at+i]) }

// Find returns the record with the key. It does not allocate.
func (m *Map) Find(key []uint64) (Slot, bool) {
	h := m.hash(key[0])
	t := m.shards[h>>56].table.Load()
	if t == nil {
		return Slot{}, false
	}
	if at := m.find(t, h, key); at >= 0 {
		return Slot{t, at * m.width}, true
	}
	return Slot{}, false
}

// Update calls edit with the record of the key, or nil when there is none, and
// stores what it returns; nil removes the record, the same record leaves it.
// The key cannot change. No other write to this key happens meanwhile, and edit
// must not use the map.
func (m *Map) Update(key []uint64, edit func(old []uint64) []uint64) {
	h := m.hash(key[0])
	s := &m.shards[h>>56]
	s.mu.Lock()
	defer s.mu.Unlock()
	t, at := s.table.Load(), -1
	var old []uint64
	if t != nil {
		if at = m.find(t, h, key); at >= 0 {
			old = t.words[at*m.width:][:m.width:m.width]
			old = slices.Clone(old)
		}
	}
	next := edit(old)
	if next == nil && old == nil || old != nil && slices.Equal(old, next) {
		return
	}
	if next != nil {
		if !slices.Equal(next[:m.key], key) || len(next) != m.width {
			panic("slab: an edit changed the key or the width")
		}
		// The new record goes in before the old one goes out, and behind it in
		// probing order: a reader finds the old one or the new one, never none.
		if grown := m.insert(s, h, next); grown {
			t = s.table.Load()
			if old != nil {
				at = m.find(t, h, key)
			}
		}
		s.live++
		m.length.Add(1)
	}
	if old != nil {
		m.kill(s, t, at)
	}
}

// Filter removes the records that keep refuses and returns how many. Keep must
// neither retain the slice nor use the map.
func (m *Map) Filter(keep func(rec []uint64) bool) int {
	removed := 0
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		before := s.live
		if t := s.table.Load(); t != nil {
			for slot := range len(t.tags) * groupSize {
				if t.tag(slot) >= tagLive && !keep(t.words[slot*m.width:][:m.width:m.width]) {
					m.kill(s, t, slot)
				}
			}
			if s.live < before/2 || s.live == 0 {
				m.rebuild(s)
			}
		}
		removed += before - s.live
		s.mu.Unlock()
	}
	return removed
}

// All yields every record that is there throughout, and perhaps some that come
// or go meanwhile. The slice is reused for the next.
func (m *Map) All(yield func(rec []uint64) bool) {
	rec := make([]uint64, m.width)
	for i := range m.shards {
		t := m.shards[i].table.Load()
		if t == nil {
			continue
		}
		for slot := range len(t.tags) * groupSize {
			if t.tag(slot) < tagLive {
				continue
			}
			for j := range rec {
				rec[j] = atomic.LoadUint64(&t.words[slot*m.width+j])
			}
			if !yield(rec) {
				return
			}
		}
	}
}

// Len returns the number of records.
func (m *Map) Len() int { return int(m.length.Load()) }

// Bytes returns how much memory the tables take.
func (m *Map) Bytes() int {
	n := 0
	for i := range m.shards {
		if t := m.shards[i].table.Load(); t != nil {
			n += 8 * (cap(t.tags) + cap(t.words))
		}
	}
	return n
}

func (m *Map) hash(word uint64) uint64 {
	hi, lo := bits.Mul64(word, m.seed)
	return hi ^ lo
}

// find returns the slot of the key, or -1.
func (m *Map) find(t *table, h uint64, key []uint64) int {
	groups := len(t.tags)
	pattern := (h&0x7f | tagLive) * lows
	g := start(h, groups)
	for range groups {
		tags := atomic.LoadUint64(&t.tags[g])
		// Bytes equal to the tag become zero; the usual trick may also flag the byte
		// above one, which comparing keys sorts out.
		x := tags ^ pattern
		for match := (x - lows) & ^x & highs; match != 0; match &= match - 1 {
			slot := g*groupSize + bits.TrailingZeros64(match)/8
			if t.equal(slot*m.width, key) {
				return slot
			}
		}
		if (tags-lows)&^tags&highs != 0 { // an empty slot ends the probe
			return -1
		}
		if g++; g == groups {
			g = 0
		}
	}
	return -1
}

func (t *table) equal(at int, key []uint64) bool {
	for i, w := range key {
		if atomic.LoadUint64(&t.words[at+i]) != w {
			return false
		}
	}
	return true
}

func (t *table) tag(slot int) byte {
	return byte(atomic.LoadUint64(&t.tags[slot/groupSize]) >> (slot % groupSize * 8))
}

// setTag publishes a slot; the shard's lock keeps other writers out.
func (t *table) setTag(slot int, tag byte) {
	shift := slot % groupSize * 8
	word := t.tags[slot/groupSize]&^(0xff<<shift) | uint64(tag)<<shift
	atomic.StoreUint64(&t.tags[slot/groupSize], word)
}

func start(h uint64, groups int) int {
	hi, _ := bits.Mul64(h<<8, uint64(groups))
	return int(hi)
}

// insert adds a record whose key is not there, or will go. It says whether the
// table had to be rebuilt.
func (m *Map) insert(s *shard, h uint64, rec []uint64) (grown bool) {
	t := s.table.Load()
	if t == nil || s.used+1 > len(t.tags)*groupLoad {
		m.rebuild(s)
		t, grown = s.table.Load(), true
	}
	m.place(t, h, rec)
	s.used++
	return grown
}

func (m *Map) place(t *table, h uint64, rec []uint64) {
	g := start(h, len(t.tags))
	for {
		tags := t.tags[g]
		if empty := (tags - lows) &^ tags & highs; empty != 0 {
			slot := g*groupSize + bits.TrailingZeros64(empty)/8
			for i, w := range rec {
				atomic.StoreUint64(&t.words[slot*m.width+i], w)
			}
			t.setTag(slot, byte(h&0x7f)|tagLive)
			return
		}
		if g++; g == len(t.tags) {
			g = 0
		}
	}
}

func (m *Map) kill(s *shard, t *table, slot int) {
	t.setTag(slot, tagDead)
	s.live--
	m.length.Add(-1)
}

// rebuild copies the live records into a table with room for half as many
// again, which leaves dead slots behind and bounds what is wasted.
func (m *Map) rebuild(s *shard) {
	groups := (s.live+s.live/2)/groupLoad + 1
	next := &table{
		tags:  make([]uint64, groups),
		words: make([]uint64, groups*groupSize*m.width),
	}
	if old := s.table.Load(); old != nil {
		for slot := range len(old.tags) * groupSize {
			if old.tag(slot) >= tagLive {
				rec := old.words[slot*m.width:][:m.width]
				m.place(next, m.hash(rec[0]), rec)
			}
		}
	}
	s.used = s.live
	s.table.Store(next)
}
