package revocation

import (
	"crypto/sha256"
	"encoding/binary"
	"runtime"
	"strconv"
	"testing"
)

func million(b *testing.B) *Set {
	b.Helper()
	s := NewSet()
	for i := range 1_000_000 {
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i)))
		k := Key(sum[:16])
		k[15] = k[15]&0xf0 | byte(jti)<<1
		s.Add(Entry{Key: k, Before: Always, Expires: int64(2_000_000_000 + i%3600)})
	}
	return s
}

// Memory and lookups at a million entries.
func BenchmarkMillion(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := million(b)
	runtime.GC()
	runtime.ReadMemStats(&after)
	mb := float64(after.HeapAlloc-before.HeapAlloc) / 1e6
	ids := make([]string, 4096)
	for i := range ids {
		ids[i] = "0b6ff7b0-93b6-4b7c-8a7e-" + strconv.Itoa(100000000000+i)
	}
	keys := make([]Key, 0, 1<<16)
	for e := range s.All() {
		if keys = append(keys, e.Key); len(keys) == cap(keys) {
			break
		}
	}
	b.Run("Miss", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok := s.Revoked(&Subject{JTI: ids[i%len(ids)]}); ok {
				b.Fatal("hit")
			}
		}
		b.ReportMetric(mb, "MB")
	})
	b.Run("Hit", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if !s.holds(keys[i*7919%len(keys)], 1) {
				b.Fatal("missed")
			}
		}
	})
	b.Run("Token", func(b *testing.B) {
		b.ReportAllocs()
		x := &Subject{Session: "session", Subject: "alice", Client: "app", Issuer: "https://issuer.example"}
		for i := 0; b.Loop(); i++ {
			x.JTI = ids[i%len(ids)]
			if _, ok := s.Revoked(x); ok {
				b.Fatal("hit")
			}
		}
	})
	b.Run("Add", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			s.Add(Entry{Key: KeyOf(session, "", strconv.Itoa(i)), Before: Always})
		}
	})
	runtime.KeepAlive(s)
}
