package route

import (
	"hash/maphash"
	"slices"
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// node is a place in the tree of path segments of one host. A node that a table
// holds never changes.
type node[T any] struct {
	owner *edit
	kids  hamt[*node[T]]
	// capture continues templates whose next segment is a parameter.
	capture *node[T]
	// leaves hold the entries whose path ends here, by kind, best first.
	leaves [Prefix + 1][]entry[T]
	// How many entries stand at and below this node, and how many of them are
	// templates: the search for templates skips what has none.
	entries, templates int
}

// query is one lookup on its way through the trees. accept travels beside it as
// an argument: in the struct, the caller's closure would be allocated.
type query struct {
	seed   maphash.Seed
	method string
	path   string
	params *[]exchange.Param
}

func (n *node[T]) mutable(e *edit) *node[T] {
	switch {
	case n == nil:
		return &node[T]{owner: e}
	case n.owner == e:
		return n
	}
	c := *n
	c.owner = e
	for k := range c.leaves {
		c.leaves[k] = slices.Clone(c.leaves[k])
	}
	return &c
}

// put inserts or replaces an entry and returns the changed node.
func (n *node[T]) put(e *edit, seed maphash.Seed, kind Kind, path []segment, en entry[T]) *node[T] {
	n = n.mutable(e)
	before, beforeTemplates := 0, 0
	switch {
	case len(path) == 0:
		before = len(n.leaves[kind])
		n.leaves[kind] = putEntry(n.leaves[kind], en)
		n.count(kind, len(n.leaves[kind])-before)
	case path[0].captured:
		if n.capture != nil {
			before, beforeTemplates = n.capture.entries, n.capture.templates
		}
		n.capture = n.capture.put(e, seed, kind, path[1:], en)
		n.entries += n.capture.entries - before
		n.templates += n.capture.templates - beforeTemplates
	default:
		h := maphash.String(seed, path[0].text)
		kid, _ := n.kids.get(h, path[0].text)
		if kid != nil {
			before, beforeTemplates = kid.entries, kid.templates
		}
		next := kid.put(e, seed, kind, path[1:], en)
		if next != kid {
			n.kids.set(e, h, path[0].text, next)
		}
		n.entries += next.entries - before
		n.templates += next.templates - beforeTemplates
	}
	return n
}

// drop removes the entry with the identity and returns the changed node, nil
// when nothing is left of it, n itself when there was no such entry.
func (n *node[T]) drop(e *edit, seed maphash.Seed, kind Kind, path []segment, name string, index int) *node[T] {
	if n == nil {
		return nil
	}
	if len(path) == 0 {
		i := slices.IndexFunc(n.leaves[kind], func(en entry[T]) bool { return en.name == name && en.index == index })
		if i < 0 {
			return n
		}
		n = n.mutable(e)
		n.leaves[kind] = remove(n.leaves[kind], i)
		n.count(kind, -1)
		return n.orNil()
	}
	kid, h := n.capture, uint64(0)
	if !path[0].captured {
		h = maphash.String(seed, path[0].text)
		kid, _ = n.kids.get(h, path[0].text)
	}
	if kid == nil {
		return n
	}
	before := kid.entries
	next := kid.drop(e, seed, kind, path[1:], name, index)
	if next == kid && next.entries == before {
		return n
	}
	n = n.mutable(e)
	n.count(kind, -1)
	switch {
	case path[0].captured:
		n.capture = next
	case next == nil:
		n.kids.delete(e, h, path[0].text)
	default:
		n.kids.set(e, h, path[0].text, next)
	}
	return n.orNil()
}

func (n *node[T]) count(kind Kind, by int) {
	n.entries += by
	if kind == Template {
		n.templates += by
	}
}

func (n *node[T]) orNil() *node[T] {
	if n.entries == 0 {
		return nil
	}
	return n
}

func putEntry[T any](leaf []entry[T], en entry[T]) []entry[T] {
	if i := slices.IndexFunc(leaf, func(o entry[T]) bool { return o.name == en.name && o.index == en.index }); i >= 0 {
		leaf = remove(leaf, i)
	}
	i, _ := slices.BinarySearchFunc(leaf, en, func(a, b entry[T]) int { return a.compare(&b) })
	return insert(leaf, i, en)
}

// search looks through one host's tree in the order of precedence.
func (n *node[T]) search(q *query, accept func(T) bool) *entry[T] {
	if n == nil {
		return nil
	}
	if q.path == "" || q.path[0] != '/' {
		return pick(q, n.leaves[Prefix], accept)
	}
	return n.literal(n, q, q.path, accept)
}

// literal walks the literal segments. At the bottom it tries the exact entries,
// then the templates of the whole tree; on the way back the prefixes, longest
// first. rest is what is left of the path, with its leading slash.
func (n *node[T]) literal(root *node[T], q *query, rest string, accept func(T) bool) *entry[T] {
	var found *entry[T]
	if rest == "" {
		if found = pick(q, n.leaves[Exact], accept); found == nil && root.templates > 0 {
			found = root.template(q, q.path, accept)
		}
	} else {
		text, after := cut(rest)
		if kid := n.kid(q.seed, text); kid != nil {
			found = kid.literal(root, q, after, accept)
		} else if root.templates > 0 {
			found = root.template(q, q.path, accept)
		}
	}
	if found == nil {
		found = pick(q, n.leaves[Prefix], accept)
	}
	return found
}

func (n *node[T]) template(q *query, rest string, accept func(T) bool) *entry[T] {
	if rest == "" {
		return pick(q, n.leaves[Template], accept)
	}
	text, after := cut(rest)
	if kid := n.kid(q.seed, text); kid != nil && kid.templates > 0 {
		if found := kid.template(q, after, accept); found != nil {
			return found
		}
	}
	if n.capture == nil || text == "" {
		return nil
	}
	held := len(*q.params)
	*q.params = append(*q.params, exchange.Param{Value: text})
	found := n.capture.template(q, after, accept)
	if found == nil {
		*q.params = (*q.params)[:held]
	}
	return found
}

func (n *node[T]) kid(seed maphash.Seed, text string) *node[T] {
	if n.kids.size == 0 {
		return nil
	}
	kid, _ := n.kids.get(maphash.String(seed, text), text)
	return kid
}

func pick[T any](q *query, leaf []entry[T], accept func(T) bool) *entry[T] {
	for i := range leaf {
		if en := &leaf[i]; en.allows(q.method) && (accept == nil || accept(en.value)) {
			return en
		}
	}
	return nil
}

// cut splits the first segment off a path that begins with a slash.
func cut(path string) (text, rest string) {
	if i := strings.IndexByte(path[1:], '/'); i >= 0 {
		return path[1 : i+1], path[i+1:]
	}
	return path[1:], ""
}
