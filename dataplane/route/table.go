// Package route finds the entry for a request's host, path and method: a
// persistent table, generic in what it holds. A change shares all that it does
// not touch with the table before, so that one route of 100,000 costs
// microseconds and a snapshot is a value. The package opens no socket and knows
// nothing of policies and configuration.
package route

import (
	"hash/maphash"
	"slices"
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// Table maps requests to values. It is immutable: any number of goroutines may
// use one, and With and Without return another. The zero Table is empty.
type Table[T any] struct {
	seed maphash.Seed
	// Trees by exact host, and by what follows "*." of a wildcard.
	exact, wild hamt[*node[T]]
	any         *node[T]
	size        int
}

// Len returns the number of entries.
func (t *Table[T]) Len() int { return t.size }

// With returns the table with the value for the pattern, in place of the entry
// of the same identity if there is one. The error wraps ErrPattern.
func (t Table[T]) With(p Pattern, v T) (Table[T], error) {
	b := t.Edit()
	if err := b.Put(p, v); err != nil {
		return t, err
	}
	return b.Table(), nil
}

// Without returns the table without the entry that has the pattern's identity.
func (t Table[T]) Without(p Pattern) Table[T] {
	b := t.Edit()
	b.Delete(p)
	return b.Table()
}

// Edit begins a batch of changes, cheaper than as many tables. t is not affected.
func (t Table[T]) Edit() *Batch[T] {
	if t.seed == (maphash.Seed{}) {
		t.seed = maphash.MakeSeed()
	}
	return &Batch[T]{table: t, edit: new(edit)}
}

// Batch collects changes for a new Table. One goroutine uses it.
type Batch[T any] struct {
	table Table[T]
	edit  *edit
}

// Table returns the table with the changes so far. The batch can go on.
func (b *Batch[T]) Table() Table[T] {
	b.edit = new(edit)
	return b.table
}

// Put is Table.With.
func (b *Batch[T]) Put(p Pattern, v T) error {
	path, params, err := p.check()
	if err != nil {
		return err
	}
	en := entry[T]{slices.Clone(p.Methods), p.Predicates, p.Priority, p.Name, p.Index, params, v}
	b.change(p.Host, func(root *node[T]) *node[T] {
		return root.put(b.edit, b.table.seed, p.Kind, path, en)
	})
	return nil
}

// Delete is Table.Without.
func (b *Batch[T]) Delete(p Pattern) {
	path, _, err := p.check()
	if err != nil {
		return
	}
	b.change(p.Host, func(root *node[T]) *node[T] {
		return root.drop(b.edit, b.table.seed, p.Kind, path, p.Name, p.Index)
	})
}

// change replaces the tree of one host.
func (b *Batch[T]) change(host string, f func(*node[T]) *node[T]) {
	t := &b.table
	if host == "" {
		before := t.any.len()
		t.any = f(t.any)
		t.size += t.any.len() - before
		return
	}
	trees := &t.exact
	if suffix, ok := strings.CutPrefix(host, "*."); ok {
		trees, host = &t.wild, suffix
	}
	h := maphash.String(t.seed, host)
	root, _ := trees.get(h, host)
	before := root.len()
	next := f(root)
	t.size += next.len() - before
	if next == nil {
		trees.delete(b.edit, h, host)
	} else if next != root {
		trees.set(b.edit, h, host, next)
	}
}

func (n *node[T]) len() int {
	if n == nil {
		return 0
	}
	return n.entries
}

// Lookup returns the best entry that matches and that accept, when it is not
// nil, takes. It asks accept in the order of precedence and stops at the first
// yes. host and path are canonical. What a template captured is appended to
// (*params)[:0], percent-decoded. It allocates nothing as long as accept does
// not, params has room, and no captured value is encoded.
func (t *Table[T]) Lookup(host, method, path string, params *[]exchange.Param, accept func(T) bool) (v T, ok bool) {
	*params = (*params)[:0]
	if t.size == 0 {
		return v, false
	}
	q := query{t.seed, method, path, params}
	found := t.search(host, &q, accept)
	if found == nil {
		return v, false
	}
	for i := range *params {
		p := &(*params)[i]
		p.Name, p.Value = found.params[i], exchange.Unescape(p.Value)
	}
	return found.value, true
}

func (t *Table[T]) search(host string, q *query, accept func(T) bool) *entry[T] {
	if t.exact.size > 0 {
		if root, ok := t.exact.get(maphash.String(t.seed, host), host); ok {
			if found := root.search(q, accept); found != nil {
				return found
			}
		}
	}
	if t.wild.size > 0 {
		for rest := host; ; {
			_, suffix, more := strings.Cut(rest, ".")
			if !more {
				break
			}
			if root, ok := t.wild.get(maphash.String(t.seed, suffix), suffix); ok {
				if found := root.search(q, accept); found != nil {
					return found
				}
			}
			rest = suffix
		}
	}
	return t.any.search(q, accept)
}
