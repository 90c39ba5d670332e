package route

import "math/bits"

// edit marks the nodes that one Batch made and may still change in place.
type edit struct{ _ byte }

// hamt is a persistent hash trie (P. Bagwell, Ideal Hash Trees, 2001, in the
// compressed form of M. Steindorfer and J. Vinju, 2015): a change copies the
// path to what it changes and shares the rest. Callers hash; equal keys must
// come with equal hashes. The zero hamt is empty.
type hamt[V any] struct {
	root *branch[V]
	size int
}

type branch[V any] struct {
	owner *edit
	// Which of the 32 slots hold a pair, and which a branch; pairs and branches
	// stand in slot order.
	pairMap, branchMap uint32
	pairs              []pair[V]
	branches           []*branch[V]
}

type pair[V any] struct {
	hash  uint64
	key   string
	value V
}

// Below maxShift the hash is used up and a branch is a plain list of pairs.
const (
	stride   = 5
	maxShift = 60
)

func slot(hash uint64, shift uint) (bit uint32) { return 1 << (hash >> shift & (1<<stride - 1)) }

func index(set, bit uint32) int { return bits.OnesCount32(set & (bit - 1)) }

func (m *hamt[V]) get(hash uint64, key string) (v V, ok bool) {
	b := m.root
	for shift := uint(0); b != nil; shift += stride {
		if shift >= maxShift {
			if i := b.find(hash, key); i >= 0 {
				return b.pairs[i].value, true
			}
			return v, false
		}
		bit := slot(hash, shift)
		if b.pairMap&bit != 0 {
			p := &b.pairs[index(b.pairMap, bit)]
			if p.hash == hash && p.key == key {
				return p.value, true
			}
			return v, false
		}
		if b.branchMap&bit == 0 {
			return v, false
		}
		b = b.branches[index(b.branchMap, bit)]
	}
	return v, false
}

// find looks a pair up in a list of them.
func (b *branch[V]) find(hash uint64, key string) int {
	for i := range b.pairs {
		if b.pairs[i].hash == hash && b.pairs[i].key == key {
			return i
		}
	}
	return -1
}

func (m *hamt[V]) set(e *edit, hash uint64, key string, value V) {
	added := false
	m.root = m.root.set(e, 0, pair[V]{hash, key, value}, &added)
	if added {
		m.size++
	}
}

// mutable returns b, or a copy of it that e owns.
func (b *branch[V]) mutable(e *edit) *branch[V] {
	switch {
	case b == nil:
		return &branch[V]{owner: e}
	case b.owner == e:
		return b
	}
	c := *b
	c.owner = e
	c.pairs = append(make([]pair[V], 0, len(b.pairs)+1), b.pairs...)
	c.branches = append(make([]*branch[V], 0, len(b.branches)+1), b.branches...)
	return &c
}

func (b *branch[V]) set(e *edit, shift uint, p pair[V], added *bool) *branch[V] {
	b = b.mutable(e)
	if shift >= maxShift {
		if i := b.find(p.hash, p.key); i >= 0 {
			b.pairs[i].value = p.value
			return b
		}
		*added = true
		b.pairs = append(b.pairs, p)
		return b
	}
	bit := slot(p.hash, shift)
	switch i := index(b.pairMap, bit); {
	case b.branchMap&bit != 0:
		j := index(b.branchMap, bit)
		b.branches[j] = b.branches[j].set(e, shift+stride, p, added)
	case b.pairMap&bit == 0:
		*added = true
		b.pairMap |= bit
		b.pairs = insert(b.pairs, i, p)
	case b.pairs[i].hash == p.hash && b.pairs[i].key == p.key:
		b.pairs[i].value = p.value
	default:
		// Two pairs want the slot: both move into a branch of their own.
		var below *branch[V]
		ignored := false
		below = below.set(e, shift+stride, b.pairs[i], &ignored)
		below = below.set(e, shift+stride, p, added)
		b.pairMap &^= bit
		b.pairs = remove(b.pairs, i)
		b.branchMap |= bit
		b.branches = insert(b.branches, index(b.branchMap, bit), below)
	}
	return b
}

func (m *hamt[V]) delete(e *edit, hash uint64, key string) {
	if _, ok := m.get(hash, key); !ok {
		return
	}
	m.root = m.root.delete(e, 0, hash, key)
	m.size--
}

// delete removes a pair that is there. A branch of one pair dissolves into its
// parent, so that equal contents have equal shapes.
func (b *branch[V]) delete(e *edit, shift uint, hash uint64, key string) *branch[V] {
	b = b.mutable(e)
	bit := slot(hash, min(shift, 63))
	switch {
	case shift >= maxShift:
		b.pairs = remove(b.pairs, b.find(hash, key))
	case b.pairMap&bit != 0:
		b.pairs = remove(b.pairs, index(b.pairMap, bit))
		b.pairMap &^= bit
	default:
		j := index(b.branchMap, bit)
		below := b.branches[j].delete(e, shift+stride, hash, key)
		if len(below.branches) > 0 || len(below.pairs) > 1 {
			b.branches[j] = below
			return b
		}
		b.branches = remove(b.branches, j)
		b.branchMap &^= bit
		if len(below.pairs) == 1 {
			b.pairMap |= bit
			b.pairs = insert(b.pairs, index(b.pairMap, bit), below.pairs[0])
		}
	}
	if len(b.pairs) == 0 && len(b.branches) == 0 && shift == 0 {
		return nil
	}
	return b
}

func insert[E any](s []E, i int, e E) []E {
	s = append(s, e)
	copy(s[i+1:], s[i:])
	s[i] = e
	return s
}

func remove[E any](s []E, i int) []E {
	var zero E
	copy(s[i:], s[i+1:])
	s[len(s)-1] = zero
	return s[:len(s)-1]
}
