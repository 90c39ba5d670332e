// Package sim runs real limiters of many nodes against each other in virtual
// time, over a bus that delays, loses, doubles and reorders, and measures what
// they admit together against one bucket that saw every request. It must not
// know how a limiter works: it uses its exported methods only. Runs with the
// same Config give the same Result.
package sim

import (
	"bytes"
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"portcullis.dev/portcullis/dataplane/limit"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Config is one scenario: nodes that share one key.
type Config struct {
	Nodes       int     // default 10
	Rate        float64 // R, cost units per second; default 1000
	Burst       float64 // B; default Rate / 10
	OnPartition configv1.OnPartition
	Offered     float64       // requests offered on all nodes, as a multiple of Rate; default 10
	Skew        float64       // the part of them that the busiest tenth of the nodes (at least one) gets; 0 is uniform
	Even        bool          // arrivals at even distances instead of as a Poisson process
	Shift       time.Duration // how often the busiest tenth moves on to the next nodes; 0 is never
	Duration    time.Duration // default 5 s
	Delay       time.Duration // from publish to arrival; default 500 µs
	Jitter      time.Duration // up to this much more, each message for itself, which reorders
	Loss        float64       // part of the messages that does not arrive
	Duplicate   float64       // part that arrives twice
	Seed        uint64

	// Partition cuts the first Cut nodes off from the others, but for nothing
	// when its span is empty.
	Partition Span
	Cut       int
	// Crash stops node 0 without a word; at the span's end it starts anew.
	Crash Span
	// HandOver replaces node 0 while it runs: at the span's start the last node, which
	// was not there, starts as its successor, and gets a part of the requests beside
	// it; at the end node 0 leaves.
	HandOver Span
	// Warm is how long from the start the worst second does not look; default 0:
	// it sees the burst, too.
	Warm time.Duration
}

// Span is a part of the run.
type Span struct{ From, Until time.Duration }

func (s Span) holds(t time.Duration) bool { return t >= s.From && t < s.Until }

// Result is what a run measured.
type Result struct {
	// WorstSecondRatio is the largest quotient of what was admitted in any second
	// (of every position, not only whole ones) and what one bucket allows in it:
	// R, and what it held when the second began.
	WorstSecondRatio float64
	// AdmittedRatio is what all nodes admitted, divided by what one bucket would
	// have admitted of the same requests.
	AdmittedRatio float64
	// LeastShare and MostShare are the extremes over nodes of (part of its
	// requests that a node admitted) / (part that all nodes admitted).
	LeastShare, MostShare float64
	Offered, Admitted     int
	Messages, Totals      int // published
	PerSecond             []int
}

// String is one line for a table.
func (r Result) String() string {
	return fmt.Sprintf("worst second %.3f, admitted %.3f, shares %.2f-%.2f, %d of %d, %d messages",
		r.WorstSecondRatio, r.AdmittedRatio, r.LeastShare, r.MostShare, r.Admitted, r.Offered, r.Messages)
}

type kind uint8

const (
	arrival kind = iota
	ticking
	once // a tick that plans no other
	delivery
	crash
	rejoin
	succeed
	depart
	shifting
)

type event struct {
	at   time.Duration
	seq  int // of scheduling: breaks ties
	kind kind
	node int // where it happens
	from int // sender of a delivery
	life uint64
	msg  *busv1.Spent
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

type node struct {
	name              string
	limiter           *limit.Limiter
	life              uint64 // boot number; ticks of an earlier life are void
	down              bool
	offered, admitted int
}

type run struct {
	Config
	now    time.Duration
	rng    *rand.Rand
	queue  events
	seq    int
	nodes  []node
	busy   int // first of the busiest tenth
	key    limit.Key
	rate   limit.Rate
	ideal  ideal
	result Result
}

// ideal is the one bucket, and the level it had after each of its changes.
type ideal struct {
	level    float64
	at       time.Duration
	admitted int
}

var epoch = time.Unix(1_700_000_000, 0) // virtual time has no monotonic part

// Run runs the scenario.
func Run(c Config) Result {
	r := &run{Config: defaults(c)}
	r.rng = rand.New(rand.NewPCG(r.Seed, 0x9e3779b97f4a7c15))
	r.key = limit.KeyOf("sim", fmt.Sprint(r.Seed))
	r.rate = limit.Rate{PerSecond: r.Rate, Burst: r.Burst, OnPartition: r.OnPartition, ID: 1}
	r.ideal.level = r.Burst
	r.nodes = make([]node, r.Nodes)
	r.result.PerSecond = make([]int, int(r.Duration/time.Second)+1)
	for i := range r.nodes {
		if i == r.Nodes-1 && r.HandOver.Until > 0 {
			r.nodes[i] = node{name: r.nodes[0].name, life: r.nodes[0].life, down: true}
		} else {
			r.start(i)
		}
		r.plan(event{at: r.gap(i), kind: arrival, node: i})
	}
	if r.Crash.Until > r.Crash.From {
		r.plan(event{at: r.Crash.From, kind: crash})
		r.plan(event{at: r.Crash.Until, kind: rejoin})
	}
	if r.HandOver.Until > 0 {
		r.plan(event{at: r.HandOver.From, kind: succeed, node: r.Nodes - 1})
		r.plan(event{at: r.HandOver.Until, kind: depart})
	}
	if r.Shift > 0 {
		r.plan(event{at: r.Shift, kind: shifting})
	}
	m := newMeter(r.Rate, r.Warm)
	for len(r.queue) > 0 {
		e := heap.Pop(&r.queue).(event)
		if e.at > r.Duration {
			break
		}
		r.now = e.at
		r.handle(e, m)
	}
	return r.finish(m)
}

func defaults(c Config) Config {
	if c.Nodes == 0 {
		c.Nodes = 10
	}
	if c.Rate == 0 {
		c.Rate = 1000
	}
	if c.Burst == 0 {
		c.Burst = c.Rate / 10
	}
	if c.Offered == 0 {
		c.Offered = 10
	}
	if c.Duration == 0 {
		c.Duration = 5 * time.Second
	}
	if c.Delay == 0 {
		c.Delay = 500 * time.Microsecond
	}
	return c
}

func (r *run) plan(e event) {
	r.seq++
	e.seq = r.seq
	heap.Push(&r.queue, e)
}

// start gives node i a new limiter, as a process that starts.
func (r *run) start(i int) {
	n := &r.nodes[i]
	n.name = cmp.Or(n.name, fmt.Sprintf("node-%d", i))
	n.life++
	n.down = false
	n.limiter = limit.New(limit.Config{
		Node: n.name, Boot: n.life, Start: epoch.Add(r.now), MaxKeys: 1024,
		Publish: func(m *busv1.Spent) error { r.publish(i, m); return nil },
	})
	// Nodes do not tick in step.
	phase := time.Duration(r.rng.Int64N(int64(time.Millisecond)))
	r.plan(event{at: r.now + phase, kind: ticking, node: i, life: n.life})
}

// weight is the part of all requests that node i gets.
func (r *run) weight(i int) float64 {
	if r.Skew == 0 || r.Nodes == 1 {
		return 1 / float64(r.Nodes)
	}
	few := max(1, r.Nodes/10)
	if (i-r.busy+r.Nodes)%r.Nodes < few {
		return r.Skew / float64(few)
	}
	return (1 - r.Skew) / float64(r.Nodes-few)
}

// gap is the time to node i's next request.
func (r *run) gap(i int) time.Duration {
	mean := 1 / (r.weight(i) * r.Offered * r.Rate)
	if r.Even {
		return time.Duration(mean * float64(time.Second))
	}
	return time.Duration(r.rng.ExpFloat64() * mean * float64(time.Second))
}

func (r *run) publish(from int, m *busv1.Spent) {
	r.result.Messages++
	r.result.Totals += len(m.GetTotals())
	for to := range r.nodes {
		if to == from || r.Partition.holds(r.now) && (from < r.Cut) != (to < r.Cut) {
			continue
		}
		copies := 1
		if r.rng.Float64() < r.Duplicate {
			copies = 2
		}
		for range copies {
			if r.rng.Float64() < r.Loss {
				continue
			}
			at := r.now + r.Delay
			if r.Jitter > 0 {
				at += time.Duration(r.rng.Int64N(int64(r.Jitter)))
			}
			r.plan(event{at: at, kind: delivery, node: to, from: from, life: r.nodes[from].life, msg: m})
		}
	}
}

func (r *run) handle(e event, m *meter) {
	n := &r.nodes[e.node]
	switch e.kind {
	case arrival:
		r.arrive(e.node, m)
		r.plan(event{at: r.now + r.gap(e.node), kind: arrival, node: e.node})
	case ticking:
		if !n.down && n.life == e.life {
			r.tick(e.node)
		}
	case once:
		if !n.down && n.life == e.life {
			n.limiter.Tick(epoch.Add(r.now))
		}
	case delivery:
		if !n.down {
			n.limiter.Receive(r.nodes[e.from].name, e.life, e.msg, epoch.Add(r.now))
		}
	case crash:
		n.down = true
	case rejoin:
		r.start(e.node)
	case succeed:
		r.start(e.node)
		var state bytes.Buffer
		if err := errors.Join(r.nodes[0].limiter.WriteState(&state, epoch.Add(r.now)), n.limiter.ReadState(&state, epoch.Add(r.now))); err != nil {
			panic(err) // a buffer does not fail
		}
	case depart:
		n.limiter.Leave(epoch.Add(r.now))
		n.down = true
	case shifting:
		r.busy = (r.busy + max(1, r.Nodes/10)) % r.Nodes
		r.plan(event{at: r.now + r.Shift, kind: shifting})
	}
}

func (r *run) tick(i int) {
	n := &r.nodes[i]
	wait := n.limiter.Tick(epoch.Add(r.now))
	r.plan(event{at: r.now + wait, kind: ticking, node: i, life: n.life})
}

// arrive is one request at node i. A load balancer takes requests to a node that
// is down to another.
func (r *run) arrive(i int, m *meter) {
	for r.nodes[i].down && r.Nodes > 1 {
		i = (i + 1 + r.rng.IntN(r.Nodes-1)) % r.Nodes
	}
	n := &r.nodes[i]
	before := r.ideal.refill(r.now, r.Rate, r.Burst)
	m.level(r.now, before)
	r.ideal.spend()
	n.offered++
	r.result.Offered++
	was := n.limiter.Urgent()
	if !n.limiter.Spend(r.key, r.rate, 1, epoch.Add(r.now)).Granted {
		return
	}
	n.admitted++
	r.result.Admitted++
	r.result.PerSecond[r.now/time.Second]++
	m.admit(r.now)
	if !was && n.limiter.Urgent() {
		// What Run's wake does. The tick in the queue comes on top.
		if wait := n.limiter.Tick(epoch.Add(r.now)); n.limiter.Urgent() {
			r.plan(event{at: r.now + wait, kind: once, node: i, life: n.life})
		}
	}
}

func (d *ideal) refill(now time.Duration, rate, burst float64) float64 {
	d.level = min(burst, d.level+rate*(now-d.at).Seconds())
	d.at = now
	return d.level
}

func (d *ideal) spend() {
	if d.level >= 1 {
		d.level--
		d.admitted++
	}
}

func (r *run) finish(m *meter) Result {
	out := r.result
	out.WorstSecondRatio = m.worst
	out.AdmittedRatio = float64(out.Admitted) / float64(max(1, r.ideal.admitted))
	all := float64(out.Admitted) / float64(max(1, out.Offered))
	for i := range r.nodes {
		n := &r.nodes[i]
		if n.offered == 0 || all == 0 {
			continue
		}
		share := float64(n.admitted) / float64(n.offered) / all
		if i == 0 || share < out.LeastShare {
			out.LeastShare = share
		}
		out.MostShare = max(out.MostShare, share)
	}
	return out
}
