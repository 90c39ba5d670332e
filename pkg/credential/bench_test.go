package credential

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"

	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Memory, load and lookups at a million keys of 1,000 applications.
func BenchmarkMillion(b *testing.B) {
	var messages []*controlv1.CredentialRecords
	var some [][32]byte
	for i := range 100 {
		var batch []Credential
		for j := range 10_000 {
			n := i*10_000 + j
			sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(n)))
			id := revocation.Key(sum[8:24])
			id[15] = byte(kind) << 1
			batch = append(batch, Credential{
				SHA256: sum, ID: id, Workspace: "shop", Application: fmt.Sprint("app-", n%1000), Expires: 2_000_000_000,
			})
			if n%16 == 0 {
				some = append(some, sum)
			}
		}
		messages = append(messages, Pack(batch, nil))
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	s := NewSet()
	for _, r := range messages {
		if err := s.Apply(r); err != nil {
			b.Fatal(err)
		}
	}
	load := time.Since(start)
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(messages)
	if s.Len() != 1_000_000 {
		b.Fatalf("%d credentials", s.Len())
	}
	b.Run("Lookup", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, ok := s.Lookup(&some[i*7919%len(some)]); !ok {
				b.Fatal("missed")
			}
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB")
		b.ReportMetric(load.Seconds(), "s/load")
	})
	b.Run("Put", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			s.Put(numbered(i))
		}
	})
	runtime.KeepAlive(s)
}

func BenchmarkParse(b *testing.B) {
	key, _, _, err := Generate()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := Parse(key); !ok {
			b.Fatal("refused")
		}
	}
}
