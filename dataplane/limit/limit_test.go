package limit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Unix(1_000_000, 0)

func at(d time.Duration) time.Time { return start.Add(d) }

func alone() *Limiter { return New(Config{Node: "a", Start: start}) }

func TestKeyOf(t *testing.T) {
	if KeyOf("ab", "c") == KeyOf("a", "bc") || KeyOf("a") == KeyOf("a", "") {
		t.Error("keys of different parts are equal")
	}
	first, second := KeyOf("route", "limit", "x"), KeyOf("route", "limit", "x")
	if first != second {
		t.Error("keys of equal parts differ")
	}
	long := string(make([]byte, 5000))
	if KeyOf(long) == KeyOf(long[1:]) {
		t.Error("keys of long parts are equal")
	}
	route, name, key := "shop/orders", "burst", "client-1234567890"
	if n := testing.AllocsPerRun(100, func() { KeyOf(route, name, key) }); n != 0 {
		t.Errorf("KeyOf allocates %v times", n)
	}
}

func TestSpendTable(t *testing.T) {
	r := Rate{PerSecond: 10, Burst: 5, ID: 1}
	l, k := alone(), KeyOf("k")
	for _, step := range []struct {
		at   time.Duration
		cost int64
		want Decision
	}{
		{0, 3, Decision{Granted: true, Remaining: 2, Reset: 300 * time.Millisecond}},
		{0, 3, Decision{Remaining: 2, RetryAfter: 100 * time.Millisecond, Reset: 300 * time.Millisecond}},
		{0, 2, Decision{Granted: true, Reset: 500 * time.Millisecond}},
		{50 * time.Millisecond, 1, Decision{Remaining: 0.5, RetryAfter: 50 * time.Millisecond, Reset: 450 * time.Millisecond}},
		{100 * time.Millisecond, 1, Decision{Granted: true, Reset: 500 * time.Millisecond}},
		// The wall clock, or a caller's older reading, stepping back changes nothing.
		{20 * time.Millisecond, 1, Decision{RetryAfter: 100 * time.Millisecond, Reset: 500 * time.Millisecond}},
		{200 * time.Millisecond, 0, Decision{Granted: true, Remaining: 1, Reset: 400 * time.Millisecond}},
		{200 * time.Millisecond, -7, Decision{Granted: true, Remaining: 1, Reset: 400 * time.Millisecond}},
		{time.Hour, 6, Decision{Remaining: 5, RetryAfter: Forever}},
		{time.Hour, 5, Decision{Granted: true, Reset: 500 * time.Millisecond}},
	} {
		got := l.Spend(k, r, step.cost, at(step.at))
		near := func(a, b time.Duration) bool { return (a - b).Abs() < time.Microsecond }
		if got.Granted != step.want.Granted || math.Abs(got.Remaining-step.want.Remaining) > 1e-6 ||
			!near(got.RetryAfter, step.want.RetryAfter) || !near(got.Reset, step.want.Reset) {
			t.Errorf("at %v cost %d: %+v, want %+v", step.at, step.cost, got, step.want)
		}
	}
}

func TestOddRates(t *testing.T) {
	l := alone()
	never := Rate{PerSecond: 0, Burst: 2}
	for i, want := range []bool{true, true, false} {
		if d := l.Spend(KeyOf("never"), never, 1, at(time.Duration(i)*time.Hour)); d.Granted != want {
			t.Errorf("request %d without refill: granted %v", i, d.Granted)
		} else if !want && d.RetryAfter != Forever {
			t.Errorf("retry after %v, want Forever", d.RetryAfter)
		}
	}
	if d := l.Spend(KeyOf("none"), Rate{}, 1, at(0)); d.Granted {
		t.Error("a limit of nothing granted something")
	}
}

// A changed limit keeps what was spent.
func TestRateChanges(t *testing.T) {
	l, k := alone(), KeyOf("k")
	l.Spend(k, Rate{PerSecond: 1, Burst: 10}, 8, at(0))
	if d := l.Spend(k, Rate{PerSecond: 1, Burst: 20}, 0, at(0)); math.Abs(d.Remaining-12) > 1e-9 {
		t.Errorf("remaining %v after the burst grew to 20, want 12", d.Remaining)
	}
	if d := l.Spend(k, Rate{PerSecond: 1, Burst: 5}, 1, at(0)); d.Granted || d.RetryAfter < 3*time.Second {
		t.Errorf("after the burst fell to 5: %+v, want 3 units of debt", d)
	}
}

func TestSpendAll(t *testing.T) {
	l := alone()
	burst := Item{Key: KeyOf("burst"), Rate: Rate{PerSecond: 1, Burst: 3}, Cost: 1}
	hour := Item{Key: KeyOf("hour"), Rate: Rate{PerSecond: 0.1, Burst: 5}, Cost: 1}
	items := []Item{hour, burst}
	for i := range 3 {
		d, n := l.SpendAll(items, at(0))
		if !d.Granted || n != 1 {
			t.Errorf("request %d: %+v from item %d, want granted, nearest the burst", i, d, n)
		}
	}
	for range 10 {
		if d, n := l.SpendAll(items, at(0)); d.Granted || n != 1 {
			t.Fatalf("%+v from item %d, want refused by the burst", d, n)
		}
	}
	if d := l.Spend(hour.Key, hour.Rate, 0, at(0)); math.Abs(d.Remaining-2) > 1e-9 {
		t.Errorf("%v left of the hour, want 2: refusals must not spend", d.Remaining)
	}
	twice := []Item{{Key: KeyOf("x"), Rate: Rate{Burst: 3}, Cost: 2}, {Key: KeyOf("x"), Rate: Rate{Burst: 3}, Cost: 2}}
	if d, n := l.SpendAll(twice, at(0)); d.Granted || n != 1 {
		t.Errorf("%+v from item %d: two items of one bucket spent more than it has", d, n)
	}
	if d, n := l.SpendAll(nil, at(0)); !d.Granted || n != -1 {
		t.Errorf("no items: %+v, %d", d, n)
	}
}

// Under concurrent use, with reports arriving and ticks running, no more is
// granted than the bucket has, and SpendAll does not deadlock.
func TestConcurrent(t *testing.T) {
	l := New(Config{Node: "a", Start: start, Publish: func(*busv1.Spent) error { return nil }})
	items := make([]Item, 8)
	for i := range items {
		items[i] = Item{Key: KeyOf("k", fmt.Sprint(i)), Rate: Rate{PerSecond: 0, Burst: 1000}, Cost: 1}
	}
	var granted atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for i := range 2000 {
				now := at(time.Duration(i) * time.Millisecond)
				mine := append([]Item(nil), items...)
				rng.Shuffle(len(mine), func(i, j int) { mine[i], mine[j] = mine[j], mine[i] })
				if d, _ := l.SpendAll(mine[:4], now); d.Granted {
					granted.Add(4)
				}
				if l.Spend(items[g].Key, items[g].Rate, 1, now).Granted {
					granted.Add(1)
				}
				if i%50 == 0 {
					l.Tick(now)
					l.Receive("b", 1, &busv1.Spent{Now: int64(i) + 1}, now)
					l.Stats()
				}
			}
		})
	}
	wg.Wait()
	if got := granted.Load(); got != 8000 {
		t.Errorf("granted %d of 8 buckets of 1000 that do not refill", got)
	}
}

func TestSpendAllocatesNothing(t *testing.T) {
	l := New(Config{Node: "a", Start: start, Publish: func(*busv1.Spent) error { return nil }})
	l.Receive("b", 1, &busv1.Spent{Now: 1}, at(0))
	r := Rate{PerSecond: 1000, Burst: 100}
	items := []Item{{Key: KeyOf("a"), Rate: r, Cost: 1}, {Key: KeyOf("b"), Rate: r, Cost: 1}, {Key: KeyOf("c"), Rate: Rate{PerSecond: 1, Burst: 10}, Cost: 1}}
	now := at(0)
	run := func() {
		now = now.Add(10 * time.Microsecond)
		l.Spend(items[0].Key, r, 1, now)
		l.SpendAll(items, now)
	}
	run()
	if n := testing.AllocsPerRun(1000, run); n != 0 {
		t.Errorf("Spend and SpendAll allocate %v times", n)
	}
}

func BenchmarkSpend(b *testing.B) {
	l := New(Config{Node: "a"})
	k, r := KeyOf("k"), Rate{PerSecond: 1e9, Burst: 1e9}
	b.ReportAllocs()
	for b.Loop() {
		l.Spend(k, r, 1, time.Now())
	}
}

func BenchmarkSpendManyKeys(b *testing.B) {
	l := New(Config{Node: "a"})
	keys := make([]Key, 100_000)
	for i := range keys {
		keys[i] = KeyOf("k", fmt.Sprint(i))
	}
	r := Rate{PerSecond: 100, Burst: 100}
	now := time.Now()
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		l.Spend(keys[i%len(keys)], r, 1, now)
		i++
	}
}

func BenchmarkReceive(b *testing.B) {
	l := New(Config{Node: "a", Start: start})
	const n = 100
	msg := &busv1.Spent{}
	for i := range n {
		k := KeyOf("k", fmt.Sprint(i))
		l.Spend(k, Rate{PerSecond: 100, Burst: 100}, 1, at(0))
		msg.Totals = append(msg.Totals, &busv1.Total{Key: k[:], Rate: 5})
	}
	now := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		now += int64(tick)
		msg.Now = now
		for _, t := range msg.Totals {
			t.Total++
		}
		l.Receive("b", 1, msg, at(time.Duration(now)))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/total")
}
