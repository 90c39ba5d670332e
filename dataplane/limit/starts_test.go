package limit

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
)

// still refills so slowly that what is missing is what was spent.
var still = Rate{PerSecond: 1e-6, Burst: 1e6}

// process is one start of node "n", or the other node.
type process struct {
	*Limiter
	id    startID
	spent int64          // admitted here
	said  int64          // of these, in a message that all got
	late  []*busv1.Spent // to be delivered
}

// startsModel is one node whose processes come and go, beside another node.
type startsModel struct {
	all, live []*process // live[0] is the other node
	boot      uint64
	now       time.Duration
	admitted  int64
	key       Key
}

func newStartsModel() *startsModel {
	m := &startsModel{key: KeyOf("k")}
	m.add("other")
	m.add("n")
	return m
}

func (m *startsModel) add(name string) *process {
	m.boot++
	p := &process{id: startID{name, m.boot}}
	p.Limiter = New(Config{Node: name, Boot: m.boot, Start: at(m.now), Publish: func(msg *busv1.Spent) error {
		p.late = append(p.late, msg)
		return nil
	}})
	m.all, m.live = append(m.all, p), append(m.live, p)
	return p
}

// deliver brings what a process has published to all that live, oddly.
func (m *startsModel) deliver(t *rapid.T, p *process) {
	sent := p.late
	if len(sent) > 1 && !sent[len(sent)-1].GetLeaving() && rapid.Bool().Draw(t, "reorder") {
		slices.Reverse(sent)
	}
	if len(sent) > 0 && rapid.Bool().Draw(t, "again") {
		sent = append(slices.Clone(sent), sent[0])
	}
	p.late = nil
	for _, msg := range sent {
		for _, to := range m.live {
			to.Receive(p.id.name, p.id.boot, msg, at(m.now))
		}
		for _, total := range msg.GetTotals() {
			p.said = max(p.said, total.GetTotal())
		}
	}
}

// pass lets time go by.
func (m *startsModel) pass(t *rapid.T, d time.Duration) {
	for end := m.now + d; m.now < end; {
		m.now += 10 * time.Millisecond
		for _, p := range m.live {
			p.Tick(at(m.now))
		}
		for _, p := range m.all {
			m.deliver(t, p)
		}
	}
}

// counted is what a process takes to be spent.
func (m *startsModel) counted(p *process) float64 {
	return still.Burst - left(p.Limiter, m.key, still, p.since(at(m.now)))
}

func (m *startsModel) spend(p *process, n int) {
	for range n {
		if p.Spend(m.key, still, 1, at(m.now)).Granted {
			p.spent++
			m.admitted++
		}
	}
}

// Over any interleaving of starts, failures and drains of one node, what anybody
// counts is what was admitted: never more, and never less by more than what nobody
// has told.
func TestStartsAreCountedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newStartsModel()
		for _, p := range m.live {
			m.settle(t, p)
		}
		m.pass(t, 300*time.Millisecond)
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			p := m.live[rapid.IntRange(0, len(m.live)-1).Draw(t, "process")]
			switch rapid.SampledFrom([]string{"spend", "spend", "spend", "succeed", "fail", "leave", "wait"}).Draw(t, "step") {
			case "spend":
				m.spend(p, rapid.IntRange(1, 5000).Draw(t, "cost"))
			case "succeed":
				if p.id.name == "n" && len(m.live) < maxStarts {
					next := m.add("n")
					var state bytes.Buffer
					if err := p.WriteState(&state, at(m.now)); err != nil {
						t.Fatal(err)
					}
					if err := next.ReadState(&state, at(m.now)); err != nil {
						t.Fatal(err)
					}
					m.settle(t, next)
				}
			case "fail":
				if p.id.name == "n" && len(m.live) > 2 {
					p.late = nil // what it had not sent is lost
					m.live = slices.DeleteFunc(m.live, func(o *process) bool { return o == p })
				}
			case "leave":
				if p.id.name == "n" && len(m.live) > 2 {
					p.Leave(at(m.now))
					m.deliver(t, p)
					m.live = slices.DeleteFunc(m.live, func(o *process) bool { return o == p })
				}
			case "wait":
				m.pass(t, time.Duration(rapid.IntRange(1, 120).Draw(t, "wait"))*10*time.Millisecond)
			}
			m.check(t, false)
			m.pass(t, 10*time.Millisecond)
		}
		m.pass(t, 500*time.Millisecond)
		m.check(t, true)
	})
}

// settle lets all hear of a process's count from its start. One that is heard of
// late may miss what was on its way then, which is in the declared error.
func (m *startsModel) settle(t *rapid.T, p *process) {
	m.pass(t, 10*time.Millisecond)
	m.spend(p, 1)
	m.pass(t, 200*time.Millisecond)
}

// check holds what all count against what was admitted; settled: all is told that
// will be.
func (m *startsModel) check(t *rapid.T, settled bool) {
	untold := int64(0)
	for _, p := range m.all {
		if !slices.Contains(m.live, p) || !settled {
			untold += p.spent - p.said
		}
	}
	for _, p := range m.live {
		got := m.counted(p)
		if got > float64(m.admitted)+1 {
			t.Fatalf("%v counts %.1f, admitted were %d", p.id, got, m.admitted)
		}
		if settled && got < float64(m.admitted-untold)-1 {
			t.Fatalf("%v counts %.1f of %d, of which %d were never told", p.id, got, m.admitted, untold)
		}
	}
	st := m.live[0].Stats()
	if st.Known > 2 || settled && st.Nodes != 2 {
		t.Fatalf("two nodes are counted as %d, visible %d", st.Known, st.Nodes)
	}
}
