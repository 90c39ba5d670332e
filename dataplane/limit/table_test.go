package limit

import (
	"fmt"
	"testing"
	"time"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
)

// The table is bounded; a key that has spent keeps its debt however many others
// come, and what finds no room shares one bucket.
func TestFullTable(t *testing.T) {
	l := New(Config{Node: "a", Start: start, MaxKeys: shards * 4})
	k, r := KeyOf("mine"), Rate{PerSecond: 0.01, Burst: 3, ID: 7}
	for range 3 {
		l.Spend(k, r, 1, at(0))
	}
	granted := 0
	for i := range 5_000 {
		if l.Spend(KeyOf("flood", fmt.Sprint(i)), r, 1, at(time.Duration(i)*time.Millisecond/10)).Granted {
			granted++
		}
	}
	if d := l.Spend(k, r, 1, at(2*time.Second)); d.Granted {
		t.Error("a key in debt was forgotten")
	}
	st := l.Stats()
	if st.Keys > shards*5 || st.Evicted != 0 || st.Spilled == 0 {
		t.Errorf("stats %+v", st)
	}
	if granted > st.Keys+3 {
		t.Errorf("granted %d with %d keys", granted, st.Keys)
	}
	items := []Item{{Key: KeyOf("new"), Rate: r, Cost: 1}, {Key: k, Rate: r, Cost: 1}}
	if d, _ := l.SpendAll(items, at(2*time.Second)); d.Granted {
		t.Error("SpendAll granted from an empty bucket in a full table")
	}
	// Once the flood's buckets are full again, their keys make room.
	if d := l.Spend(KeyOf("after"), r, 1, at(10*time.Minute)); !d.Granted {
		t.Errorf("%+v long after the flood", d)
	}
	if st := l.Stats(); st.Evicted == 0 {
		t.Errorf("stats %+v", st)
	}
}

func TestSweepForgetsIdleKeys(t *testing.T) {
	p := newPair()
	r := Rate{PerSecond: 10, Burst: 10}
	debt := Rate{PerSecond: 0.1, Burst: 10}
	for i := range 1000 {
		p.a.Spend(KeyOf(fmt.Sprint(i)), r, 5, at(0))
	}
	p.a.Spend(KeyOf("slow"), debt, 10, at(0))
	var d time.Duration
	for d = 0; d < 3*time.Second; d += tick {
		p.exchange(d)
	}
	if st := p.a.Stats(); st.Keys != 1 || st.Evicted != 1000 {
		t.Errorf("%d keys after 3 s, %d evicted; want the one in debt", st.Keys, st.Evicted)
	}
	if got := p.b.Stats().Keys; got != 1001 {
		t.Errorf("b knows %d keys by report, want 1001", got)
	}
	// The one in debt is told again, ever more seldom, so b does not forget it.
	for ; d < 45*time.Second; d += 5 * tick {
		p.exchange(d)
	}
	if got := p.b.Stats().Keys; got != 1 {
		t.Errorf("b knows %d keys after 45 s, want 1", got)
	}
	if got := left(p.b, KeyOf("slow"), debt, d); got > 5 {
		t.Errorf("b believes in %.1f left of the key in debt, want 4.5", got)
	}
}

// A key that is forgotten and used again counts anew, and peers take it so.
func TestNewCountReplacesOld(t *testing.T) {
	p, k := newPair(), KeyOf("k")
	r := Rate{PerSecond: 10, Burst: 10}
	p.a.Spend(k, r, 8, at(0))
	p.b.Spend(k, r, 1, at(0))
	old := &busv1.Spent{Now: 1, Totals: []*busv1.Total{{Key: k[:], Total: 9}}}
	var d time.Duration
	for ; d < 4*time.Second; d += tick {
		p.b.Spend(k, r, 1, at(d)) // keeps b's entry
		p.exchange(d)
		if d == 2*time.Second {
			if st := p.a.Stats(); st.Keys != 1 {
				t.Fatalf("a has %d keys", st.Keys)
			}
		}
	}
	for ; d < 8*time.Second; d += tick {
		p.exchange(d)
	}
	if st := p.a.Stats(); st.Keys != 0 && p.a.Stats().Evicted == 0 {
		t.Fatalf("a forgot nothing: %+v", st)
	}
	p.b.Spend(k, r, 1, at(d))
	p.a.Spend(k, r, 6, at(d))
	p.exchange(d + tick)
	p.b.Receive("a", 1, old, at(d+tick)) // the first count's, late
	wantLeft(t, p.b, k, r, d+tick, 3)
}
