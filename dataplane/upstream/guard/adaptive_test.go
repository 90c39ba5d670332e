package guard

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is an upstream as a queue: so many servers, each request taking an
// exponentially distributed share of time around a mean, first come first served
// (M/M/c). It runs on a clock of its own.
type model struct {
	a       *Adaptive
	bounds  Bounds
	random  *rand.Rand
	servers int
	service time.Duration
	now     time.Duration
	busy    int
	queue   []job
	leaving departures
}

type job struct{ arrived time.Duration }

type departure struct {
	at time.Duration
	job
}

// departures is a heap by time. It is typed, since container/heap boxes each of the
// millions that the tests make.
type departures []departure

func (d *departures) push(one departure) {
	h := append(*d, one)
	i := len(h) - 1
	for ; i > 0 && one.at < h[(i-1)/2].at; i = (i - 1) / 2 {
		h[i] = h[(i-1)/2]
	}
	h[i] = one
	*d = h
}

func (d *departures) pop() departure {
	h := *d
	first, last := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	i := 0
	for child := 1; child < len(h); child = 2*i + 1 {
		if child+1 < len(h) && h[child+1].at < h[child].at {
			child++
		}
		if last.at <= h[child].at {
			break
		}
		h[i], i = h[child], child
	}
	if len(h) > 0 {
		h[i] = last
	}
	*d = h
	return first
}

// tally is what a run brought, by criticality.
type tally struct {
	offered, admitted [3]int
	served            int
	latencies         []time.Duration
}

func (r *tally) quantile(q float64) time.Duration {
	slices.Sort(r.latencies)
	return r.latencies[int(q*float64(len(r.latencies)-1))]
}

func newModel(servers int, service time.Duration) *model {
	return &model{
		a: &Adaptive{}, bounds: Bounds{Min: 10, Max: 1000}, random: rand.New(rand.NewPCG(1, 2)), servers: servers, service: service,
	}
}

// capacity is how many requests a second the model serves at most.
func (m *model) capacity() float64 { return float64(m.servers) / m.service.Seconds() }

// run offers so many requests a second for a while, the criticality of each drawn.
func (m *model) run(d time.Duration, perSecond float64, class func() Criticality) *tally {
	r := &tally{}
	end := m.now + d
	next := m.now
	for {
		next += time.Duration(m.random.ExpFloat64() / perSecond * float64(time.Second))
		for len(m.leaving) > 0 && m.leaving[0].at <= min(next, end) {
			m.leave(r)
		}
		if next > end {
			m.now = end
			return r
		}
		m.now = next
		c := class()
		r.offered[c]++
		if !m.a.Enter(m.bounds, c) {
			continue
		}
		r.admitted[c]++
		m.queue = append(m.queue, job{m.now})
		m.start()
	}
}

func (m *model) start() {
	for m.busy < m.servers && len(m.queue) > 0 {
		m.busy++
		// Half of it is fixed: real services are not memoryless.
		took := time.Duration((0.5 + 0.5*m.random.ExpFloat64()) * float64(m.service))
		m.leaving.push(departure{m.now + took, m.queue[0]})
		m.queue = m.queue[1:]
	}
}

func (m *model) leave(r *tally) {
	d := m.leaving.pop()
	m.now = d.at
	m.busy--
	latency := d.at - d.arrived
	r.served++
	r.latencies = append(r.latencies, latency)
	m.a.Done(m.bounds, m.now, latency)
	m.start()
}

func always(c Criticality) func() Criticality { return func() Criticality { return c } }

// With far more offered than it can serve the upstream stays busy, and those that
// are admitted are served nearly as fast as if it were not.
func TestAdaptiveConvergesUnderOverload(t *testing.T) {
	t.Parallel()
	for _, servers := range []int{20, 80} {
		m := newModel(servers, 20*time.Millisecond)
		m.run(10*time.Second, 0.5*m.capacity(), always(Normal))
		m.run(10*time.Second, 3*m.capacity(), always(Normal))
		r := m.run(40*time.Second, 3*m.capacity(), always(Normal))
		served := float64(r.served) / 40 / m.capacity()
		t.Logf("%d servers: limit %d, %.1f %% of capacity, p50 %v, p99 %v", servers, m.a.Limit(m.bounds), 100*served, r.quantile(0.5), r.quantile(0.99))
		if served < 0.93 {
			t.Errorf("%d servers: %.2f of the capacity is used: expected 0.93 at least", servers, served)
		}
		if p := r.quantile(0.5); p > 50*time.Millisecond {
			t.Errorf("%d servers: p50 is %v under overload: expected at most 50ms", servers, p)
		}
		if limit := m.a.Limit(m.bounds); limit < int64(servers)*8/10 || limit > int64(servers)*3 {
			t.Errorf("%d servers: limit %d: expected it near them", servers, limit)
		}
	}
}

// Without overload nothing is shed.
func TestAdaptiveShedsNothingWithinCapacity(t *testing.T) {
	t.Parallel()
	m := newModel(50, 20*time.Millisecond)
	m.run(30*time.Second, 0.7*m.capacity(), always(Normal))
	r := m.run(100*time.Second, 0.7*m.capacity(), always(Normal))
	if shed := r.offered[Normal] - r.admitted[Normal]; float64(shed) > 0.001*float64(r.offered[Normal]) {
		t.Errorf("%d of %d are shed at 70 %% of the capacity", shed, r.offered[Normal])
	}
}

// An upstream that loses capacity gets less, and again more when it is back.
func TestAdaptiveFollowsCapacityDownAndUp(t *testing.T) {
	t.Parallel()
	m := newModel(100, 20*time.Millisecond)
	full := m.capacity()
	m.run(60*time.Second, 0.9*full, always(Normal))
	m.servers = 25
	m.run(20*time.Second, 0.9*full, always(Normal))
	low := m.run(60*time.Second, 0.9*full, always(Normal))
	limit := m.a.Limit(m.bounds)
	t.Logf("at a quarter: limit %d, p50 %v", limit, low.quantile(0.5))
	if limit > 75 || low.quantile(0.5) > 60*time.Millisecond {
		t.Errorf("at a quarter of the capacity: limit %d, p50 %v: expected at most 75 and 60ms", limit, low.quantile(0.5))
	}
	m.servers = 100
	m.run(20*time.Second, 0.9*full, always(Normal))
	back := m.run(60*time.Second, 0.9*full, always(Normal))
	if share := float64(back.admitted[Normal]) / float64(back.offered[Normal]); share < 0.97 {
		t.Errorf("%.3f are admitted after recovery: expected 0.97 at least", share)
	}
}

// When every request takes longer for a reason that is not load, the new latency
// becomes the base and the limit comes back.
func TestAdaptiveLearnsANewBase(t *testing.T) {
	t.Parallel()
	m := newModel(100, 10*time.Millisecond)
	rate := 2500.0 // 25 busy
	m.run(60*time.Second, rate, always(Normal))
	m.service = 40 * time.Millisecond
	rate = 1500 // 60 busy
	m.run(90*time.Second, rate, always(Normal))
	r := m.run(60*time.Second, rate, always(Normal))
	if share := float64(r.admitted[Normal]) / float64(r.offered[Normal]); share < 0.97 {
		t.Errorf("%.3f are admitted at a new latency: expected 0.97 at least, limit %d", share, m.a.Limit(m.bounds))
	}
}

// The less critical is shed first.
func TestAdaptiveShedsByCriticality(t *testing.T) {
	t.Parallel()
	m := newModel(50, 20*time.Millisecond)
	mixed := func() Criticality {
		switch x := m.random.Float64(); {
		case x < 0.3:
			return Critical
		case x < 0.6:
			return Normal
		}
		return Sheddable
	}
	m.run(10*time.Second, 0.5*m.capacity(), mixed)
	m.run(20*time.Second, 2*m.capacity(), mixed)
	r := m.run(30*time.Second, 2*m.capacity(), mixed)
	share := func(c Criticality) float64 { return float64(r.admitted[c]) / float64(r.offered[c]) }
	t.Logf("admitted: critical %.3f, normal %.3f, sheddable %.3f", share(Critical), share(Normal), share(Sheddable))
	if share(Critical) < 0.97 || share(Normal) < share(Sheddable)+0.2 || share(Critical) < share(Normal) {
		t.Errorf("admitted: critical %.3f, normal %.3f, sheddable %.3f", share(Critical), share(Normal), share(Sheddable))
	}
}

// Whatever it is told, the limit stays within its bounds, and what was admitted
// can always leave.
func TestAdaptiveStaysWithinItsBounds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var a Adaptive
		low := rapid.Int64Range(1, 100).Draw(t, "min")
		b := Bounds{low, low + rapid.Int64Range(0, 1000).Draw(t, "more")}
		now := time.Duration(0)
		in := 0
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			now += time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "wait"))
			switch rapid.IntRange(0, 3).Draw(t, "do") {
			case 0, 1:
				if a.Enter(b, Criticality(rapid.IntRange(0, 2).Draw(t, "class"))) {
					in++
				}
			case 2:
				if in > 0 {
					in--
					a.Done(b, now, time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "latency")))
				}
			case 3:
				if in > 0 {
					in--
					a.Leave()
				}
			}
			limit := a.Limit(b)
			if limit < b.Min || limit > b.Max {
				t.Fatalf("limit %d is not within %d and %d", limit, b.Min, b.Max)
			}
			if got := a.Len(); got != int64(in) || got > int64(math.Ceil(criticalShare*float64(b.Max)))+1 {
				t.Fatalf("%d in flight, %d counted", in, got)
			}
		}
	})
}

func FuzzAdaptive(f *testing.F) {
	f.Add(int64(10), int64(100), []byte{0, 1, 2, 3, 255, 128})
	f.Fuzz(func(t *testing.T, low, high int64, steps []byte) {
		if low < 1 || high < low || high > 1<<31 {
			t.Skip()
		}
		var a Adaptive
		b := Bounds{low, high}
		now := time.Duration(0)
		for _, s := range steps {
			now += time.Duration(s) * 7 * time.Millisecond
			if a.Enter(b, Criticality(s%3)) {
				a.Done(b, now, time.Duration(s)*time.Duration(s)*time.Millisecond)
			}
			if limit := a.Limit(b); limit < low || limit > high {
				t.Fatalf("limit %d is not within %d and %d", limit, low, high)
			}
		}
		if a.Len() != 0 {
			t.Fatalf("%d in flight, expected none", a.Len())
		}
	})
}

// Many at once: counts stay exact and the race detector is content.
func TestAdaptiveIsSafeForConcurrentUse(t *testing.T) {
	var a Adaptive
	b := Bounds{1, 20}
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for i := range 5000 {
				if a.Enter(b, Criticality(i%3)) {
					a.Done(b, time.Duration(i)*time.Millisecond, time.Duration(worker+1)*time.Millisecond)
				}
			}
		})
	}
	group.Wait()
	if a.Len() != 0 {
		t.Fatalf("%d in flight, expected none", a.Len())
	}
}
