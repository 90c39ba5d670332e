package slab

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func keyOf(n int) [2]uint64 {
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(n)))
	return [2]uint64{binary.LittleEndian.Uint64(sum[:]), binary.LittleEndian.Uint64(sum[8:])}
}

func put(m *Map, n int, value uint64) {
	k := keyOf(n)
	m.Update(k[:], func([]uint64) []uint64 { return []uint64{k[0], k[1], value} })
}

func remove(m *Map, n int) {
	k := keyOf(n)
	m.Update(k[:], func([]uint64) []uint64 { return nil })
}

func get(m *Map, n int) (uint64, bool) {
	k := keyOf(n)
	s, ok := m.Find(k[:])
	if !ok {
		return 0, false
	}
	return s.Word(2), true
}

// A naive map is the oracle.
func TestMapEqualsMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, want := New(2, 3), map[int]uint64{}
		// Few keys meet often; with one shard's worth of seeds they also collide.
		keys := rapid.IntRange(0, rapid.SampledFrom([]int{3, 50, 5000}).Draw(t, "keys"))
		steps := rapid.IntRange(0, 400).Draw(t, "steps")
		for range steps {
			n := keys.Draw(t, "n")
			switch rapid.IntRange(0, 9).Draw(t, "op") {
			case 0, 1:
				remove(m, n)
				delete(want, n)
			case 2:
				odd := rapid.Uint64Range(0, 1).Draw(t, "odd")
				before := len(want)
				maps.DeleteFunc(want, func(_ int, v uint64) bool { return v%2 == odd })
				if got := m.Filter(func(r []uint64) bool { return r[2]%2 != odd }); got != before-len(want) {
					t.Fatalf("Filter removed %d, want %d", got, before-len(want))
				}
			default:
				v := rapid.Uint64Range(0, 9).Draw(t, "v")
				put(m, n, v)
				want[n] = v
			}
		}
		same(t, m, want)
	})
}

type fataler interface {
	Helper()
	Fatalf(string, ...any)
}

func same(t fataler, m *Map, want map[int]uint64) {
	t.Helper()
	if m.Len() != len(want) {
		t.Fatalf("Len %d, want %d", m.Len(), len(want))
	}
	byKey := map[[2]uint64]uint64{}
	for n, v := range want {
		if got, ok := get(m, n); !ok || got != v {
			t.Fatalf("key %d: %d %v, want %d", n, got, ok, v)
		}
		byKey[keyOf(n)] = v
	}
	seen := map[[2]uint64]uint64{}
	for r := range m.All {
		seen[[2]uint64{r[0], r[1]}] = r[2]
	}
	if !maps.Equal(seen, byKey) {
		t.Fatalf("All yielded %d records, want %d", len(seen), len(byKey))
	}
	if _, ok := get(m, -1); ok {
		t.Fatalf("found a key that was never put")
	}
}

// All keys in one shard, so that groups overflow and probes wrap.
func TestMapCollisions(t *testing.T) {
	m := New(1, 2)
	m.seed = 1
	var keys []uint64
	for i := range uint64(500) {
		keys = append(keys, i) // hash = key: shard 0, group 0
	}
	for _, k := range keys {
		m.Update([]uint64{k}, func([]uint64) []uint64 { return []uint64{k, ^k} })
	}
	for _, k := range keys[:250] {
		m.Update([]uint64{k}, func([]uint64) []uint64 { return nil })
	}
	for i, k := range keys {
		s, ok := m.Find([]uint64{k})
		if ok != (i >= 250) || ok && s.Word(1) != ^k {
			t.Fatalf("key %d: %v", k, ok)
		}
	}
}

// Replacing the same few records for ever must not grow the map.
func TestMapStaysSmall(t *testing.T) {
	m := New(2, 3)
	for i := range 20000 {
		put(m, i%40, uint64(i))
	}
	if m.Len() != 40 || m.Bytes() > 256*3*8*groupSize*4 {
		t.Fatalf("%d records take %d bytes", m.Len(), m.Bytes())
	}
	for i := range 20000 {
		put(m, i, 0)
	}
	m.Filter(func([]uint64) bool { return false })
	if empty := shards * 8 * (1 + 3*groupSize); m.Len() != 0 || m.Bytes() > empty {
		t.Fatalf("%d bytes remain after all was removed, want at most %d", m.Bytes(), empty)
	}
}

// While a record is replaced, readers find its old or its new form and nothing
// else; a record that nobody touches is always found.
func TestMapConcurrent(t *testing.T) {
	m := New(2, 3)
	const stable, churned = 300, 50
	for n := range stable + churned {
		put(m, n, uint64(n)<<32)
	}
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for w := range 2 {
		writers.Go(func() {
			for i := range 1000 {
				put(m, stable+i%churned, uint64(stable+i%churned)<<32|uint64(i))
				n := stable + churned + w*1000 + i
				put(m, n, uint64(n)<<32)
				remove(m, n-10*w-5)
				put(m, n-10*w-5, uint64(n-10*w-5)<<32)
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for n := 0; ; n = (n + 1) % (stable + churned - 20) {
				select {
				case <-stop:
					return
				default:
				}
				if v, ok := get(m, n); !ok || v>>32 != uint64(n) {
					t.Errorf("key %d: %x %v", n, v, ok)
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
}

func TestMapDoesNotAllocateToRead(t *testing.T) {
	m := New(2, 3)
	put(m, 1, 1)
	hit, miss := keyOf(1), keyOf(2)
	if n := testing.AllocsPerRun(100, func() {
		m.Find(hit[:])
		m.Find(miss[:])
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func TestMapRefusesChangedKey(t *testing.T) {
	m := New(2, 3)
	k := keyOf(1)
	defer func() {
		if recover() == nil {
			t.Fatal("an edit changed the key")
		}
		put(m, 1, 7) // the lock is free again
	}()
	m.Update(k[:], func([]uint64) []uint64 { return slices.Repeat([]uint64{1}, 3) })
}
