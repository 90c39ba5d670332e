// Package overload keeps a node alive when its memory runs out: it says when new
// connections are to be refused and which requests are to be shed, the least
// critical first. It knows neither connections nor requests; who serves them asks.
package overload

import (
	"context"
	"log/slog"
	"math"
	"runtime/debug"
	"sync/atomic"
	"time"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Level is how short memory is. Each includes those below it.
type Level int32

const (
	// Normal refuses nothing.
	Normal Level = iota
	// RefuseConnections lets nobody new in: a balancer tries elsewhere.
	RefuseConnections
	// ShedSheddable, ShedNormal and ShedAll refuse requests of routes up to that
	// criticality.
	ShedSheddable
	ShedNormal
	ShedAll
)

// String says what is refused, for people.
func (l Level) String() string {
	switch l {
	case RefuseConnections:
		return "new connections"
	case ShedSheddable:
		return "new connections and sheddable requests"
	case ShedNormal:
		return "new connections and all but critical requests"
	case ShedAll:
		return "everything"
	}
	return ""
}

// thresholds are the shares of the limit at which each level begins. Between a
// heap of 80 % of the limit and the limit itself the collector runs ever more
// often: a process that goes on taking work there spends its time collecting, and
// is killed in the end.
var thresholds = [...]float64{RefuseConnections: 0.80, ShedSheddable: 0.85, ShedNormal: 0.90, ShedAll: 0.95}

// hysteresis is how far below its threshold a level ends, so that it does not
// come and go with every request that ends.
const hysteresis = 0.03

// next is the level after one look: up at once, down one step at a time.
func next(at Level, share float64) Level {
	up := at
	for l := at + 1; l <= ShedAll && share >= thresholds[l]; l++ {
		up = l
	}
	if up == at && at > Normal && share < thresholds[at]-hysteresis {
		return at - 1
	}
	return up
}

// every is how often memory is looked at. A look costs microseconds.
const every = 100 * time.Millisecond

// Manager watches the process's memory. The zero Manager watches nothing until
// Run; Level and its like may be called by anybody, and cost one atomic load.
type Manager struct {
	// Log gets each change of level; nil discards. Set before Run.
	Log *slog.Logger

	level atomic.Int32
	share atomic.Uint64
}

// Level returns the level now.
func (m *Manager) Level() Level { return Level(m.level.Load()) }

// Share returns how much of the memory limit is in use, 0 to 1 and above; 0 when
// there is no limit.
func (m *Manager) Share() float64 { return math.Float64frombits(m.share.Load()) }

// Refuses reports whether new connections are to be refused.
func (m *Manager) Refuses() bool { return m.Level() >= RefuseConnections }

// Sheds reports whether a request of a route of the criticality is to be refused.
func (m *Manager) Sheds(c configv1.Criticality) bool {
	switch level := m.Level(); c {
	case configv1.Criticality_CRITICALITY_SHEDDABLE:
		return level >= ShedSheddable
	case configv1.Criticality_CRITICALITY_CRITICAL:
		return level >= ShedAll
	default:
		return level >= ShedNormal
	}
}

// Run watches until ctx ends. Without a memory limit (GOMEMLIMIT) there is nothing
// to be near to, and nothing is ever refused.
func (m *Manager) Run(ctx context.Context) error {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		<-ctx.Done()
		return nil
	}
	memory := newReader()
	return m.watch(ctx, func() float64 { return float64(memory.inUse()) / float64(limit) })
}

func (m *Manager) watch(ctx context.Context, share func() float64) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			m.level.Store(int32(Normal))
			return nil
		case <-tick.C:
			m.look(share())
		}
	}
}

func (m *Manager) look(share float64) {
	m.share.Store(math.Float64bits(share))
	before := m.Level()
	after := next(before, share)
	if after == before {
		return
	}
	m.level.Store(int32(after))
	if m.Log == nil {
		return
	}
	if after > before {
		m.Log.Warn("memory runs short", "refusing", after.String(), "of_limit", share)
		return
	}
	m.Log.Info("memory is less short", "refusing", after.String(), "of_limit", share)
}
