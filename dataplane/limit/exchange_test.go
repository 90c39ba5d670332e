package limit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// pair is two limiters on a bus that delivers when told to.
type pair struct {
	a, b     *Limiter
	toA, toB []*busv1.Spent
}

func newPair() *pair {
	p := &pair{}
	p.a = New(Config{Node: "a", Boot: 1, Start: start, Publish: func(m *busv1.Spent) error { p.toB = append(p.toB, m); return nil }})
	p.b = New(Config{Node: "b", Boot: 1, Start: start, Publish: func(m *busv1.Spent) error { p.toA = append(p.toA, m); return nil }})
	p.exchange(0) // they know each other
	return p
}

// exchange ticks both at d and delivers all there is.
func (p *pair) exchange(d time.Duration) {
	p.a.Tick(at(d))
	p.b.Tick(at(d))
	for _, m := range p.toA {
		p.a.Receive("b", 1, m, at(d))
	}
	for _, m := range p.toB {
		p.b.Receive("a", 1, m, at(d))
	}
	p.toA, p.toB = nil, nil
}

var slow = Rate{PerSecond: 0.001, Burst: 100}

func left(l *Limiter, k Key, r Rate, d time.Duration) float64 {
	s := &l.shards[shardOf(k)]
	s.mu.Lock()
	defer s.mu.Unlock()
	e, _ := l.entry(s, k, r, l.members.Load(), d)
	return e.level
}

func wantLeft(t *testing.T, l *Limiter, k Key, r Rate, d time.Duration, want float64) {
	t.Helper()
	if got := left(l, k, r, d); math.Abs(got-want) > 1 {
		t.Errorf("%s has %.2f left at %v, want %.2f", l.config.Node, got, d, want)
	}
}

// Both spend at once: what each reports is debited at the other, into debt.
func TestTotalsAreDebited(t *testing.T) {
	p, k := newPair(), KeyOf("k")
	p.a.Spend(k, slow, 60, at(time.Second))
	p.b.Spend(k, slow, 70, at(time.Second))
	p.exchange(time.Second + tick)
	wantLeft(t, p.a, k, slow, time.Second+tick, -30)
	wantLeft(t, p.b, k, slow, time.Second+tick, -30)
	if d := p.a.Spend(k, slow, 1, at(time.Second+tick)); d.Granted || d.Remaining != 0 {
		t.Errorf("in debt: %+v", d)
	}
}

// Late, doubled and lost messages change nothing once a newer one has come.
func TestTotalsAreIdempotent(t *testing.T) {
	p, k := newPair(), KeyOf("k")
	p.b.Spend(k, slow, 0, at(0))
	var sent []*busv1.Spent
	for i := range 5 {
		d := time.Duration(i+1) * lazy
		p.a.Spend(k, slow, 10, at(d))
		p.a.Tick(at(d + tick))
		sent = append(sent, p.toB...)
		p.toB = nil
	}
	for _, i := range []int{4, 0, 4, 2, 1, 3, 4} { // of five, in this order
		p.b.Receive("a", 1, sent[i], at(6*lazy))
	}
	wantLeft(t, p.b, k, slow, 6*lazy, 50)
}

// A node that comes late learns what is left, from whoever tells first.
func TestLateNodeLearns(t *testing.T) {
	p, k := newPair(), KeyOf("k")
	for i := range 6 {
		d := time.Duration(i+1) * lazy
		p.a.Spend(k, slow, 10, at(d))
		p.b.Spend(k, slow, 5, at(d))
		p.exchange(d + tick)
	}
	c := New(Config{Node: "c", Boot: 1, Start: at(-time.Hour), Publish: func(*busv1.Spent) error { return nil }})
	hello := &busv1.Spent{Now: 1}
	p.a.Receive("c", 1, hello, at(time.Second))
	p.b.Receive("c", 1, hello, at(time.Second))
	p.a.Tick(at(time.Second + tick))
	p.b.Tick(at(time.Second + tick))
	for from, sent := range map[string][]*busv1.Spent{"a": p.toB, "b": p.toA} {
		for _, m := range sent {
			c.Receive(from, 1, m, at(time.Second+tick))
		}
	}
	wantLeft(t, c, k, slow, time.Hour+time.Second+tick, 10)
}

// A node that crashed and came back counts from zero, and is not debited twice.
func TestRejoin(t *testing.T) {
	p, k := newPair(), KeyOf("k")
	p.a.Spend(k, slow, 10, at(100*time.Millisecond))
	p.exchange(200 * time.Millisecond)
	p.b.Spend(k, slow, 0, at(200*time.Millisecond))
	wantLeft(t, p.b, k, slow, 200*time.Millisecond, 90)

	again := func(total int64) *busv1.Spent {
		return &busv1.Spent{Now: int64(time.Millisecond), Totals: []*busv1.Total{{Key: k[:], Total: total}}}
	}
	p.b.Receive("a", 2, again(5), at(300*time.Millisecond))
	p.b.Receive("a", 2, again(5), at(300*time.Millisecond))
	wantLeft(t, p.b, k, slow, 300*time.Millisecond, 85)
	// The first start's, late: what it spent too, and no node more.
	late := &busv1.Spent{Now: int64(time.Second), Totals: []*busv1.Total{{Key: k[:], Total: 12, Since: int64(100 * time.Millisecond)}}}
	p.b.Receive("a", 1, late, at(300*time.Millisecond))
	p.b.Receive("a", 1, late, at(300*time.Millisecond))
	wantLeft(t, p.b, k, slow, 300*time.Millisecond, 83)
	if st := p.b.Stats(); st.Dropped != 0 || st.Known != 2 {
		t.Errorf("stats %+v", st)
	}
	// Once it has left, no more is heard of it.
	p.b.Receive("a", 1, &busv1.Spent{Now: int64(2 * time.Second), Leaving: true}, at(300*time.Millisecond))
	late.Totals[0].Total, late.Now = 20, int64(3*time.Second)
	p.b.Receive("a", 1, late, at(300*time.Millisecond))
	wantLeft(t, p.b, k, slow, 300*time.Millisecond, 83)
	if st := p.b.Stats(); st.Dropped != 1 || st.Known != 2 || st.Nodes != 2 {
		t.Errorf("stats %+v", st)
	}
}

func TestMalformedTotals(t *testing.T) {
	l, k := alone(), KeyOf("k")
	l.Spend(k, slow, 1, at(0))
	bad := []*busv1.Total{
		nil, {}, {Key: k[:15], Total: 5}, {Key: k[:], Total: -1}, {Key: k[:], Total: 1, Rate: math.NaN()},
		{Key: k[:], Rate: math.Inf(1)}, {Key: k[:], Rate: -1}, {Key: k[:], Missing: math.Inf(-1)},
		{Key: k[:], Total: 5, Since: 100}, {Key: k[:], Since: -1},
	}
	l.Receive("b", 1, &busv1.Spent{Now: 5, Totals: bad}, at(0))
	l.Receive("b", 1, nil, at(0))
	l.Receive("a", 0, &busv1.Spent{Totals: []*busv1.Total{{Key: k[:], Total: 50}}}, at(0)) // a's own echo
	if st := l.Stats(); st.Dropped != uint64(len(bad)) || st.Received != 0 {
		t.Errorf("dropped %d, received %d, want %d and 0", st.Dropped, st.Received, len(bad))
	}
	wantLeft(t, l, k, slow, 0, 99)
	// A huge total closes the key for 2 s + B/R and no longer.
	quick := Rate{PerSecond: 10, Burst: 10}
	l.Spend(KeyOf("q"), quick, 1, at(0))
	q := KeyOf("q")
	l.Receive("b", 1, &busv1.Spent{Now: 9, Totals: []*busv1.Total{{Key: q[:], Total: math.MaxInt64}}}, at(0))
	if d := l.Spend(q, quick, 1, at(3200*time.Millisecond)); !d.Granted {
		t.Errorf("3.2 s after a huge debt of 10/s: %+v", d)
	}
}

func TestBoundedPeers(t *testing.T) {
	l := alone()
	for i := range maxPeers + 100 {
		l.Receive(fmt.Sprint("n", i), 1, &busv1.Spent{Now: 1, Totals: []*busv1.Total{{Key: make([]byte, 16)}}}, at(0))
	}
	if st := l.Stats(); st.Known != maxPeers+1 || st.Dropped != 100 {
		t.Errorf("known %d, dropped %d", st.Known, st.Dropped)
	}
}

// split: a lost peer's part is not spent; open: it is. Forget and leaving end it.
func TestPartition(t *testing.T) {
	refill := func(p *pair, on configv1.OnPartition, from, to time.Duration) float64 {
		r := Rate{PerSecond: 10, Burst: 100, OnPartition: on}
		k := KeyOf("k", on.String(), from.String())
		p.a.Spend(k, r, 100, at(from))
		return left(p.a, k, r, to) / (to - from).Seconds()
	}
	p := newPair()
	p.a.Tick(at(1500 * time.Millisecond)) // b silent for more than a second
	if st := p.a.Stats(); st.Nodes != 1 || st.Known != 2 {
		t.Fatalf("stats %+v", st)
	}
	for on, want := range map[configv1.OnPartition]float64{
		configv1.OnPartition_ON_PARTITION_OPEN: 10, configv1.OnPartition_ON_PARTITION_SPLIT: 5,
		configv1.OnPartition_ON_PARTITION_UNSPECIFIED: 5, configv1.OnPartition_ON_PARTITION_STRICT: 5,
	} {
		if got := refill(p, on, 2*time.Second, 4*time.Second); math.Abs(got-want) > 0.1 {
			t.Errorf("%v refills at %.2f/s, want %v", on, got, want)
		}
	}
	p.a.Forget("b")
	if got := refill(p, configv1.OnPartition_ON_PARTITION_SPLIT, 5*time.Second, 6*time.Second); math.Abs(got-10) > 0.1 {
		t.Errorf("refills at %.2f/s once b is forgotten, want 10", got)
	}

	p = newPair()
	p.b.Leave(at(time.Second))
	for _, m := range p.toA {
		p.a.Receive("b", 1, m, at(time.Second))
	}
	if st := p.a.Stats(); st.Known != 1 {
		t.Errorf("known %d after b left", st.Known)
	}
	p.a.Receive("c", 1, &busv1.Spent{Now: 1}, at(time.Second))
	p.a.Tick(at(12 * time.Minute))
	if st := p.a.Stats(); st.Known != 1 {
		t.Errorf("known %d twelve minutes after c was heard", st.Known)
	}
}

// What could not be published is published when it can.
func TestPublishFails(t *testing.T) {
	var fail bool
	var got []*busv1.Spent
	l := New(Config{Node: "a", Start: start, Publish: func(m *busv1.Spent) error {
		if fail {
			return errors.New("down")
		}
		got = append(got, m)
		return nil
	}})
	k := KeyOf("k")
	fail = true
	l.Spend(k, slow, 80, at(0))
	l.Tick(at(tick))
	fail = false
	l.Tick(at(3 * tick))
	if len(got) != 1 || len(got[0].GetTotals()) != 1 || got[0].GetTotals()[0].GetTotal() != 80 {
		t.Errorf("published %v", got)
	}
	if st := l.Stats(); st.Failed == 0 || st.Sent != 1 {
		t.Errorf("stats %+v", st)
	}
}

func TestBatches(t *testing.T) {
	var got []*busv1.Spent
	l := New(Config{Node: "a", Start: start, Publish: func(m *busv1.Spent) error { got = append(got, m); return nil }})
	for i := range 1200 {
		l.Spend(KeyOf(fmt.Sprint(i)), slow, 90, at(0))
	}
	l.Tick(at(tick))
	seen := map[string]bool{}
	for _, m := range got {
		if len(m.GetTotals()) > batch {
			t.Errorf("%d totals in one message", len(m.GetTotals()))
		}
		for _, total := range m.GetTotals() {
			seen[string(total.GetKey())] = true
		}
	}
	if len(seen) != 1200 || len(got) != 3 {
		t.Errorf("%d keys in %d messages, want 1200 in 3", len(seen), len(got))
	}
}

// Run publishes what is urgent within 2 ms, the rest within a tick, lives on by a
// message every 250 ms, and leaves with its last totals.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type sent struct {
			at time.Duration
			m  *busv1.Spent
		}
		begin := time.Now()
		var got []sent
		l := New(Config{Node: "a", Publish: func(m *busv1.Spent) error {
			got = append(got, sent{time.Since(begin), m})
			return nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		time.Sleep(time.Second)
		synctest.Wait()
		if len(got) < 4 || len(got) > 6 {
			t.Errorf("%d messages in an idle second", len(got))
		}
		l.Receive("b", 1, &busv1.Spent{Now: 1}, time.Now())
		time.Sleep(5 * time.Millisecond)
		got = nil
		r, k := Rate{PerSecond: 1000, Burst: 100}, KeyOf("k")
		now := time.Since(begin)
		for range 90 {
			l.Spend(k, r, 1, time.Now())
		}
		time.Sleep(2 * minGap)
		synctest.Wait()
		if len(got) == 0 || got[0].at-now > minGap {
			t.Errorf("an urgent total was not published within %v: %v", minGap, got)
		}
		time.Sleep(tick)
		synctest.Wait()
		for i := 1; i < len(got); i++ {
			if gap := got[i].at - got[i-1].at; gap < minGap {
				t.Errorf("two publications within %v", gap)
			}
		}
		l.Spend(k, r, 1, time.Now())
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		last := got[len(got)-2:]
		if last[0].m.GetTotals()[0].GetTotal() != 91 || !last[1].m.GetLeaving() {
			t.Errorf("the last messages are %v", last)
		}
	})
}
