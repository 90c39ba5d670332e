package health

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// clinic answers checks as a test wants.
type clinic struct {
	mu    sync.Mutex
	sick  map[string]error
	asked map[string][]time.Time
	slow  time.Duration
}

func newClinic() *clinic { return &clinic{sick: map[string]error{}, asked: map[string][]time.Time{}} }

func (c *clinic) probe(ctx context.Context, _ *Check, t Target) error {
	c.mu.Lock()
	c.asked[t.Address] = append(c.asked[t.Address], time.Now())
	err, slow := c.sick[t.Address], c.slow
	c.mu.Unlock()
	if slow > 0 {
		select {
		case <-time.After(slow):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func (c *clinic) set(address string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sick[address] = err
}

func (c *clinic) times(address string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.asked[address])
}

func check() *Check {
	return &Check{Interval: 5 * time.Second, Timeout: 2 * time.Second, Healthy: 2, Unhealthy: 3}
}

// monitored runs f with a monitor that is running.
func monitored(t *testing.T, f func(m *Monitor, c *clinic)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newClinic()
		m := New(Config{Probe: c.probe})
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		running.Go(func() { _ = m.Run(ctx) })
		f(m, c)
		cancel()
		running.Wait()
	})
}

func add(g *Group, addresses ...string) []*Endpoint {
	var out []*Endpoint
	for _, a := range addresses {
		out = append(out, g.Add(Target{Address: a}))
	}
	return out
}

func drop(endpoints []*Endpoint) {
	for _, e := range endpoints {
		e.Drop()
	}
}

// begin uses the group for endpoints.
func begin(g *Group, s Settings, changed func(), addresses ...string) []*Endpoint {
	g.Use(s, changed)
	return add(g, addresses...)
}

func only(t *testing.T, g *Group) Status {
	t.Helper()
	out, _ := g.Out()
	if len(out) != 1 {
		t.Fatalf("%d endpoints are out, expected one: %v", len(out), out)
	}
	return out[0]
}

func TestChecksTakeOutAndBringBack(t *testing.T) {
	monitored(t, func(m *Monitor, c *clinic) {
		g := m.Group()
		c.set("b:1", fmt.Errorf("dial: %w", syscall.ECONNREFUSED))
		var told atomic.Int64
		endpoints := begin(g, Settings{Check: check()}, func() { told.Add(1) }, "a:1", "b:1")
		if !endpoints[0].Usable() || !endpoints[1].Usable() {
			t.Fatal("an endpoint is not usable before its first check")
		}
		synctest.Wait()
		if c.times("a:1") != 1 {
			t.Fatal("the first check is not at once")
		}
		time.Sleep(20 * time.Second) // four checks
		if !endpoints[0].Usable() || endpoints[1].Usable() {
			t.Fatal("a: expected usable, b: expected out")
		}
		status := only(t, g)
		if status.Address != "b:1" || status.Reason != ByCheck || status.Detail != "connection refused" || time.Since(status.Since) > 15*time.Second {
			t.Fatalf("%+v", status)
		}
		if told.Load() != 1 {
			t.Fatalf("a change is told %d times", told.Load())
		}
		c.set("b:1", nil)
		time.Sleep(15 * time.Second)
		if !endpoints[1].Usable() || told.Load() != 2 {
			t.Fatal("b is not back")
		}
	})
}

// Checks keep their interval, spread by jitter, and one that hangs is cut off.
func TestChecksKeepTheirInterval(t *testing.T) {
	monitored(t, func(m *Monitor, c *clinic) {
		c.slow = time.Hour
		endpoints := begin(m.Group(), Settings{Check: check()}, nil, "a:1", "b:1")
		time.Sleep(500 * time.Second)
		if n := c.times("a:1"); n < 95 || n > 106 {
			t.Errorf("%d checks in 100 intervals", n)
		}
		if endpoints[0].Usable() {
			t.Error("an endpoint that hangs is usable")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		together := 0
		for i := 1; i < min(len(c.asked["a:1"]), len(c.asked["b:1"])); i++ {
			if c.asked["a:1"][i].Equal(c.asked["b:1"][i]) {
				together++
			}
		}
		if together > 3 {
			t.Errorf("%d of 100 checks come together: expected them spread", together)
		}
	})
}

// What is known outlives the configuration it was found under.
func TestHealthSurvivesASwap(t *testing.T) {
	monitored(t, func(m *Monitor, c *clinic) {
		g := m.Group()
		settings := Settings{Check: check(), Outlier: outlier()}
		first := g.Use(settings, nil)
		before := add(g, "a:1", "b:1")
		c.set("a:1", errors.New("status 503"))
		for range 5 {
			before[1].Failed(time.Now(), 500, nil)
		}
		time.Sleep(16 * time.Second)
		time.Sleep(4 * time.Second)
		for range 5 {
			before[1].Failed(time.Now(), 500, nil)
		}
		if before[0].Usable() || before[1].Usable() {
			t.Fatal("expected both out")
		}
		asked := c.times("a:1")
		again := settings
		again.Check = check()
		second := g.Use(again, nil)
		after := add(g, "b:1", "a:1", "new:1")
		first.End()
		first.End()
		drop(before)
		if after[0] != before[1] || after[1] != before[0] || after[0].Usable() || after[1].Usable() || !after[2].Usable() {
			t.Fatal("the swap has changed what is known")
		}
		synctest.Wait()
		if c.times("a:1") != asked || c.times("new:1") != 1 {
			t.Fatalf("a is asked %d times at once, new %d", c.times("a:1")-asked, c.times("new:1"))
		}
		second.End()
		drop(after)
		if _, all := g.Out(); all != 0 {
			t.Fatalf("%d endpoints are left", all)
		}
		asked = c.times("a:1")
		time.Sleep(time.Minute)
		if c.times("a:1") != asked {
			t.Fatal("an endpoint that nobody names is checked")
		}
	})
}

// Settings that are taken back leave those before them; what no setting vouches
// for is forgotten.
func TestTheNewestSettingsHold(t *testing.T) {
	monitored(t, func(m *Monitor, c *clinic) {
		g := m.Group()
		c.set("a:1", errors.New("x"))
		live := g.Use(Settings{Check: check()}, nil)
		e := add(g, "a:1")[0]
		time.Sleep(20 * time.Second)
		if e.Usable() {
			t.Fatal("expected out")
		}
		staged := g.Use(Settings{}, nil)
		if !e.Usable() {
			t.Fatal("out by a check that is not made any more")
		}
		asked := c.times("a:1")
		time.Sleep(time.Minute)
		if c.times("a:1") != asked {
			t.Fatal("checked without a check")
		}
		staged.End()
		defer live.End()
		time.Sleep(20 * time.Second)
		if e.Usable() {
			t.Fatal("the settings before are not back")
		}
	})
}

func TestOutliersGoOutAndComeBack(t *testing.T) {
	monitored(t, func(m *Monitor, _ *clinic) {
		g := m.Group()
		endpoints := begin(g, Settings{Outlier: outlier()}, nil, "a:1", "b:1", "c:1")
		for range 5 {
			endpoints[0].Failed(time.Now(), 0, context.DeadlineExceeded)
		}
		if status := only(t, g); status.Reason != ByOutlier || status.Detail != "timeout" || status.Address != "a:1" {
			t.Fatalf("%+v", status)
		}
		for range 50 {
			endpoints[1].Failed(time.Now(), 503, nil)
		}
		if !endpoints[1].Usable() {
			t.Fatal("two of three are out: expected half at most")
		}
		time.Sleep(9 * time.Second)
		if endpoints[0].Usable() {
			t.Fatal("back too early")
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !endpoints[0].Usable() || g.Ejections() != 1 {
			t.Fatal("not back after its time")
		}
		for range 5 {
			endpoints[0].Failed(time.Now(), 500, nil)
			endpoints[0].Succeeded(time.Now())
		}
		if !endpoints[0].Usable() {
			t.Fatal("out although successes stand between")
		}
		for range 5 {
			endpoints[0].Failed(time.Now(), 500, nil)
		}
		time.Sleep(19 * time.Second)
		if endpoints[0].Usable() {
			t.Fatal("the second ejection is not longer")
		}
	})
}

func TestUnresolvedIsSaidFirst(t *testing.T) {
	m := New(Config{})
	g := m.Group()
	e := begin(g, Settings{Outlier: outlier()}, nil, "a:1")[0]
	for range 5 {
		e.Failed(time.Now(), 500, nil)
	}
	e.SetResolved(time.Now(), errors.New("no such host"))
	if s := only(t, g); s.Reason != Unresolved || s.Detail != "no such host" {
		t.Fatalf("%+v", s)
	}
	e.SetResolved(time.Now(), nil)
	if s := only(t, g); s.Reason != ByOutlier || s.Detail != "status 500" {
		t.Fatalf("%+v", s)
	}
}

// Successes cost no allocation, and failures do not until one ejects.
func TestObservingAllocatesNothing(t *testing.T) {
	e := begin(New(Config{}).Group(), Settings{Outlier: outlier()}, nil, "a:1")[0]
	now := time.Now()
	if n := testing.AllocsPerRun(1000, func() {
		e.Succeeded(now)
		e.Failed(now, 500, nil)
		e.Succeeded(now)
		e.Succeeded(now)
		_ = e.Usable()
	}); n != 0 {
		t.Fatalf("%v allocations: expected none", n)
	}
}

func TestManyAtOnce(t *testing.T) {
	m := New(Config{Probe: func(context.Context, *Check, Target) error { return nil }})
	ctx, cancel := context.WithCancel(context.Background())
	var running, workers sync.WaitGroup
	running.Go(func() { _ = m.Run(ctx) })
	g := m.Group()
	for i := range 4 {
		workers.Go(func() {
			for range 200 {
				u := g.Use(Settings{Check: check(), Outlier: outlier()}, nil)
				for j, e := range add(g, "a:1", "b:1", fmt.Sprintf("c:%d", i)) {
					e.Succeeded(time.Now())
					if j == i%3 {
						e.Failed(time.Now(), 502, nil)
					}
					e.Drop()
				}
				g.Out()
				u.End()
			}
		})
	}
	workers.Wait()
	cancel()
	running.Wait()
	if _, all := g.Out(); all != 0 {
		t.Fatalf("%d endpoints are left", all)
	}
}
