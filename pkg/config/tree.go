package config

import (
	"iter"
	"math/rand/v2"
)

// ordered is what a tree's keys can do.
type ordered[K any] interface{ Compare(K) int }

// tree is an immutable sorted map: a treap whose changes copy the path to the
// root and share the rest. The zero tree is empty. A txn changes nodes that it
// has copied itself in place, so that a batch copies each node once.
type tree[K ordered[K], V any] struct {
	root *node[K, V]
	size int
}

type node[K ordered[K], V any] struct {
	key         K
	value       V
	left, right *node[K, V]
	owner       *txn
	priority    uint32
}

// txn marks the nodes that one batch of changes has made. Once the batch is
// published nobody holds its txn any more and its nodes are immutable.
type txn struct{ _ byte }

func (t tree[K, V]) get(k K) (v V, ok bool) {
	for n := t.root; n != nil; {
		switch c := k.Compare(n.key); {
		case c < 0:
			n = n.left
		case c > 0:
			n = n.right
		default:
			return n.value, true
		}
	}
	return v, false
}

func (t *tree[K, V]) put(x *txn, k K, v V) {
	root, grew := t.root.put(x, k, v)
	t.root = root
	if grew {
		t.size++
	}
}

func (t *tree[K, V]) remove(x *txn, k K) bool {
	if _, ok := t.get(k); !ok {
		return false
	}
	t.root = t.root.remove(x, k)
	t.size--
	return true
}

// from yields entries in order from the first key that is not before k.
func (t tree[K, V]) from(k K) iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { t.root.from(k, yield) }
}

func (t tree[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { t.root.all(yield) }
}

func (n *node[K, V]) mine(x *txn) *node[K, V] {
	if n.owner == x {
		return n
	}
	c := *n
	c.owner = x
	return &c
}

func (n *node[K, V]) put(x *txn, k K, v V) (*node[K, V], bool) {
	if n == nil {
		return &node[K, V]{key: k, value: v, owner: x, priority: rand.Uint32()}, true
	}
	c := k.Compare(n.key)
	n = n.mine(x)
	var grew bool
	switch {
	case c == 0:
		n.key, n.value = k, v
	case c < 0:
		n.left, grew = n.left.put(x, k, v)
		if l := n.left; l.priority > n.priority {
			n.left, l.right = l.right, n
			return l, grew
		}
	default:
		n.right, grew = n.right.put(x, k, v)
		if r := n.right; r.priority > n.priority {
			n.right, r.left = r.left, n
			return r, grew
		}
	}
	return n, grew
}

func (n *node[K, V]) remove(x *txn, k K) *node[K, V] {
	c := k.Compare(n.key)
	if c == 0 {
		return merge(x, n.left, n.right)
	}
	n = n.mine(x)
	if c < 0 {
		n.left = n.left.remove(x, k)
	} else {
		n.right = n.right.remove(x, k)
	}
	return n
}

// merge joins two treaps of which all keys of a are before those of b.
func merge[K ordered[K], V any](x *txn, a, b *node[K, V]) *node[K, V] {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.priority > b.priority:
		a = a.mine(x)
		a.right = merge(x, a.right, b)
		return a
	default:
		b = b.mine(x)
		b.left = merge(x, a, b.left)
		return b
	}
}

func (n *node[K, V]) from(k K, yield func(K, V) bool) bool {
	if n == nil {
		return true
	}
	if c := k.Compare(n.key); c > 0 {
		return n.right.from(k, yield)
	}
	return n.left.from(k, yield) && yield(n.key, n.value) && n.right.all(yield)
}

func (n *node[K, V]) all(yield func(K, V) bool) bool {
	return n == nil || n.left.all(yield) && yield(n.key, n.value) && n.right.all(yield)
}
