package balance

import (
	"testing"
	"time"
)

// FuzzSet reads a program of operations and holds every pick to what may be
// picked.
func FuzzSet(f *testing.F) {
	f.Add(uint8(0), []byte("0123456789"))
	f.Add(uint8(3), []byte("\x00\xff\x10zzzzz"))
	f.Add(uint8(4), []byte{4, 1, 2, 3, 0, 0, 9, 200, 201, 202})
	f.Fuzz(func(t *testing.T, mode uint8, program []byte) {
		candidates := endpoints(1, 0, 2, 7, 1, 3)
		for i := range candidates {
			candidates[i].Zone, candidates[i].Source, candidates[i].Priority = string(rune('a'+i%3)), i%2, uint16(i/4)
		}
		cfg := Config{Algorithm: Algorithm(mode % 5), Rand: seeded(uint64(mode)), PanicThreshold: float64(mode>>5) / 7}
		if mode&8 != 0 {
			cfg.SlowStart, cfg.Zone = time.Second, "b"
		}
		s := New(cfg, candidates)
		var tried []*State
		for n, op := range program {
			now := time.Duration(n) * 50 * time.Millisecond
			state := candidates[int(op>>3)%len(candidates)].State
			switch op & 7 {
			case 0, 1:
				state.SetUsable(now, op&1 == 0)
			case 2:
				s.Refresh()
			case 3:
				state.Observe(now, time.Duration(op)*time.Millisecond, op&8 != 0)
			case 4:
				tried = append(tried, state)
			case 5:
				tried = nil
			default:
				i := s.Pick(now, &Query{Hash: mix(uint64(op)), Affinity: uint64(op >> 4), Tried: tried})
				if i >= len(candidates) || i >= 0 && candidates[i].Weight == 0 {
					t.Fatalf("picked %d", i)
				}
				if i < 0 && cfg.PanicThreshold > 0 {
					t.Fatal("gave up where it should panic")
				}
				if i >= 0 {
					candidates[i].State.Begin()
				}
			}
		}
	})
}
