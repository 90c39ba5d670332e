package route

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// A hash of few values sends everything down the same branches, to the lists
// below the last one.
func TestHamtIsAMapEvenWhenHashesCollide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.SampledFrom([]uint64{0, 1, 1 << 62, 1<<62 | 1<<10 | 1, 0xffff}).Draw(t, "hash bits")
		key := rapid.StringMatching(`[a-e]{1,3}`)
		hash := func(k string) uint64 {
			h := uint64(14695981039346656037)
			for i := range len(k) {
				h = (h ^ uint64(k[i])) * 1099511628211
			}
			return h & bits
		}
		var m hamt[int]
		want := map[string]int{}
		for i := range rapid.IntRange(0, 60).Draw(t, "changes") {
			k := key.Draw(t, "key")
			old, oldWant := m, len(want)
			if rapid.IntRange(0, 2).Draw(t, "delete") == 0 {
				m.delete(new(edit), hash(k), k)
				delete(want, k)
			} else {
				m.set(new(edit), hash(k), k, i)
				want[k] = i
			}
			if old.size != oldWant || m.size != len(want) {
				t.Fatalf("size %d, want %d", m.size, len(want))
			}
		}
		for k, v := range want {
			if got, ok := m.get(hash(k), k); !ok || got != v {
				t.Fatalf("%q: %d %v, want %d", k, got, ok, v)
			}
		}
		var again hamt[int]
		for k, v := range want {
			again.set(new(edit), hash(k), k, v)
		}
		if bits == 0xffff && !reflect.DeepEqual(shapeOf(m.root), shapeOf(again.root)) {
			t.Fatal("the shape depends on the history")
		}
	})
}

func shapeOf(b *branch[int]) any {
	if b == nil {
		return nil
	}
	s := []any{b.pairMap, b.branchMap, len(b.pairs)}
	for _, c := range b.branches {
		s = append(s, shapeOf(c))
	}
	return s
}
