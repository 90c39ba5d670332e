package limit

import (
	"math"
	"testing"
	"time"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
)

// FuzzSpend holds one node against the naive bucket: it grants exactly what that
// grants, and so never more than capacity + rate·t.
func FuzzSpend(f *testing.F) {
	f.Add(uint16(100), uint16(50), []byte{1, 1, 200, 3, 0, 9, 255, 1})
	f.Add(uint16(1), uint16(1), []byte{0, 1, 255, 1, 255, 1, 0, 0})
	f.Fuzz(func(t *testing.T, rate, burst uint16, ops []byte) {
		r := Rate{PerSecond: float64(rate) / 10, Burst: float64(burst)}
		l, k := alone(), KeyOf("k")
		level, now, spent := r.Burst, time.Duration(0), int64(0)
		for ; len(ops) >= 2; ops = ops[2:] {
			// Times may step back, by what a caller's reading is late.
			step := time.Duration(int8(ops[0])) * 7 * time.Millisecond
			cost := int64(ops[1] % 8)
			if step > 0 {
				level = min(r.Burst, level+r.PerSecond*step.Seconds())
				now += step
			}
			d := l.Spend(k, r, cost, at(now+min(0, step)))
			want := cost == 0 || level >= float64(cost)-1e-6
			if d.Granted != want && math.Abs(level-float64(cost)) > 1e-6 {
				t.Fatalf("at %v with %v left: cost %d granted %v", now, level, cost, d.Granted)
			}
			if d.Remaining < 0 || d.RetryAfter < 0 || d.Reset < 0 || d.Granted != (d.RetryAfter == 0) {
				t.Fatalf("%+v", d)
			}
			if d.Granted {
				level -= float64(cost)
				spent += cost
			}
			if allowed := r.Burst + r.PerSecond*now.Seconds(); float64(spent) > allowed+1e-3 {
				t.Fatalf("at %v spent %d, allowed %v", now, spent, allowed)
			}
		}
	})
}

// fuzzCluster is nodes over a bus whose every message the fuzzer delivers,
// doubles, delays or loses, and what it must know to name the error.
type fuzzCluster struct {
	nodes []*Limiter
	sent  [][]*busv1.Spent // by node: all it published
	spent []int64
	known [][]int64 // [at][of]: spent by `of` that reached `at`
	heard [][]time.Duration
	now   time.Duration
	key   Key
	names []string
}

func newFuzzCluster(n int, r Rate) *fuzzCluster {
	c := &fuzzCluster{sent: make([][]*busv1.Spent, n), spent: make([]int64, n), key: KeyOf("k"), names: []string{"a", "b", "c", "d"}[:n]}
	for i := range n {
		c.known = append(c.known, make([]int64, n))
		c.heard = append(c.heard, make([]time.Duration, n))
		c.nodes = append(c.nodes, New(Config{Node: c.names[i], Boot: 1, Start: start,
			Publish: func(m *busv1.Spent) error { c.sent[i] = append(c.sent[i], m); return nil }}))
	}
	for i := range n {
		c.nodes[i].Spend(c.key, r, 0, at(0))
		c.nodes[i].Tick(at(0))
		for to := range n {
			c.deliver(i, to, 0)
		}
	}
	return c
}

// deliver brings the message `back` before the last of one node to another.
func (c *fuzzCluster) deliver(from, to, back int) {
	if from == to || len(c.sent[from]) == 0 {
		return
	}
	m := c.sent[from][max(0, len(c.sent[from])-1-back)]
	c.nodes[to].Receive(c.names[from], 1, m, at(c.now))
	c.heard[to][from] = c.now
	for _, total := range m.GetTotals() {
		c.known[to][from] = max(c.known[to][from], total.GetTotal())
	}
}

// unseen is what others spent and node i has not heard of.
func (c *fuzzCluster) unseen(i int) (sum int64) {
	for j := range c.nodes {
		if j != i {
			sum += c.spent[j] - c.known[i][j]
		}
	}
	return sum
}

// FuzzCluster: whatever the bus does, all nodes together never grant more than
// capacity + rate·t + the declared error, which is what a node had not heard of
// when it decided, and what a wrong prediction may move between two reports.
func FuzzCluster(f *testing.F) {
	f.Add(uint8(3), uint16(1000), uint16(100), []byte("0123456789abcdefghijklmnopqrstuvwxyz"))
	f.Add(uint8(2), uint16(10), uint16(5), []byte{0, 0, 1, 1, 1, 2, 5, 3, 7, 4, 4, 4, 0, 0, 200, 3, 250, 4})
	f.Fuzz(func(t *testing.T, n uint8, rate, burst uint16, ops []byte) {
		r := Rate{PerSecond: 1 + float64(rate%5000), Burst: 1 + float64(burst%2000)}
		c := newFuzzCluster(2+int(n%3), r)
		var most, all int64
		for i := 0; i+1 < len(ops) && i < 2000; i += 2 {
			node := int(ops[i]) % len(c.nodes)
			arg := int(ops[i+1])
			switch ops[i] / 4 % 5 {
			case 0, 1: // a burst of requests
				for range arg%40 + 1 {
					unseen := c.unseen(node)
					if c.nodes[node].Spend(c.key, r, 1, at(c.now)).Granted {
						c.spent[node]++
						all++
						most = max(most, unseen)
					}
				}
			case 2: // time passes; no link stays silent so long that it counts as cut
				c.now += time.Duration(arg) * 400 * time.Microsecond
				for i := range c.nodes {
					c.nodes[i].Tick(at(c.now))
					for to := range c.nodes {
						if c.now-c.heard[to][i] > 200*time.Millisecond {
							c.deliver(i, to, 0)
						}
					}
				}
			case 3:
				c.deliver(node, arg%len(c.nodes), 0)
			case 4: // late or again
				c.deliver(node, arg%len(c.nodes), arg/8)
			}
			if float64(most) > r.Burst+debtTime.Seconds()*r.PerSecond {
				return // beyond the cap debt is forgiven, by design
			}
			predicted := r.PerSecond * announce.Seconds()
			evicted := uint64(0)
			for _, l := range c.nodes {
				evicted += l.Stats().Evicted
			}
			allowed := r.Burst + (1+drift)*r.PerSecond*c.now.Seconds() + float64(most) + predicted*min(1, c.now.Seconds()/announce.Seconds()) + float64(evicted)*r.Burst + 1
			if float64(all) > allowed {
				t.Fatalf("at %v spent %d, allowed %.1f (unseen %d)", c.now, all, allowed, most)
			}
		}
	})
}
