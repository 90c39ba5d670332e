package health

import (
	"context"
	"crypto/tls"
	"net"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Target is where an endpoint is.
type Target struct {
	// Address is host:port; together with whether TLS is set it names the endpoint
	// within its group.
	Address string
	// Host is what a check names as Host; "" for the Address.
	Host string
	// TLS of a check; nil is clear text.
	TLS *tls.Config
	// HTTP2 is what an HTTP check speaks, by prior knowledge in clear text.
	HTTP2 bool
	// Dial opens the connections of checks; nil: TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (t *Target) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if t.Dial != nil {
		return t.Dial(ctx, network, address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

type name struct {
	address string
	secure  bool
}

func (t *Target) name() name { return name{t.Address, t.TLS != nil} }

// Group is the health of one upstream's endpoints. It is safe for concurrent use.
type Group struct {
	monitor *Monitor
	// outlier is that of the newest Use; nil: none.
	outlier atomic.Pointer[Outlier]

	mu        sync.Mutex
	endpoints map[name]*Endpoint
	// uses in the order in which they began: what the newest says holds.
	uses  []*Use
	check *Check

	// Guarded by Monitor.mu, which is taken after mu.
	plan plan
}

// Use is one configuration's hold on a group: the settings of the newest hold, and
// those of one that is refused go with it.
type Use struct {
	group    *Group
	settings Settings
	changed  func()
	// Guarded by Group.mu.
	ended bool
}

// Use begins a configuration's hold. changed, which may
// be nil, is called when an endpoint has become usable or no longer is, by
// whoever found out; it must not call the group.
func (g *Group) Use(s Settings, changed func()) *Use {
	g.mu.Lock()
	u := &Use{group: g, settings: s, changed: changed}
	g.uses = append(g.uses, u)
	g.unlock(g.settle())
	return u
}

// unlock releases mu and, when something has changed, tells those who use the
// group.
func (g *Group) unlock(changed bool) {
	var tell []func()
	if changed {
		for _, u := range g.uses {
			if u.changed != nil {
				tell = append(tell, u.changed)
			}
		}
	}
	g.mu.Unlock()
	for _, f := range tell {
		f()
	}
}

// Add names an endpoint and returns what is known of it. It lasts until each Add
// of it is undone by a Drop, and so from one configuration to the next when that
// adds it before the one before drops it.
func (g *Group) Add(t Target) *Endpoint {
	g.mu.Lock()
	defer g.mu.Unlock()
	e := g.endpoints[t.name()]
	if e == nil {
		e = &Endpoint{group: g, seen: map[uint32]string{}, since: map[uint32]time.Time{}}
		if g.check != nil {
			e.due = time.Now()
		}
		g.endpoints[t.name()] = e
	}
	e.target = t
	e.users++
	g.monitor.replan(g)
	return e
}

// Drop undoes one Add.
func (e *Endpoint) Drop() {
	g := e.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if e.users--; e.users == 0 {
		delete(g.endpoints, e.target.name())
		g.monitor.replan(g)
	}
}

// End gives the hold back; calls after the first do nothing.
func (u *Use) End() {
	g := u.group
	g.mu.Lock()
	if u.ended {
		g.mu.Unlock()
		return
	}
	u.ended = true
	g.uses = slices.DeleteFunc(g.uses, func(other *Use) bool { return other == u })
	g.unlock(g.settle())
}

// settle makes the newest use's settings hold, and says whether what no check and
// no detection vouches for any more, and so is forgotten, has changed a status. mu
// is held.
func (g *Group) settle() bool {
	var s Settings
	if len(g.uses) > 0 {
		s = g.uses[len(g.uses)-1].settings
	}
	now := time.Now()
	changed := false
	if !reflect.DeepEqual(g.check, s.Check) {
		g.check = s.Check
	}
	g.outlier.Store(s.Outlier)
	for _, e := range g.endpoints {
		if s.Check == nil {
			e.due, e.verdict = time.Time{}, verdict{}
			changed = e.setOut(outCheck, false, now, "") || changed
		} else if e.due.IsZero() && !e.checking {
			e.due = now
		}
		if s.Outlier == nil {
			e.record = record{}
			changed = e.setOut(outOutlier, false, now, "") || changed
		}
	}
	g.monitor.replan(g)
	return changed
}

// ejected counts the endpoints that live traffic keeps out. mu is held.
func (g *Group) ejected() int {
	n := 0
	for _, e := range g.endpoints {
		if e.out.Load()&outOutlier != 0 {
			n++
		}
	}
	return n
}

// Ejections is how often live traffic took an endpoint out that is there still.
func (g *Group) Ejections() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := uint64(0)
	for _, e := range g.endpoints {
		n += e.Ejections()
	}
	return n
}

// Out lists the endpoints that are out, and says how many there are in all.
func (g *Group) Out() (out []Status, all int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range g.endpoints {
		if !e.Usable() {
			out = append(out, e.status())
		}
	}
	return out, len(g.endpoints)
}

// advance readmits the endpoints whose time is over, and returns those to check
// now. mu is not held.
func (g *Group) advance(now time.Time) (check *Check, due []*Endpoint) {
	g.mu.Lock()
	changed := false
	for _, e := range g.endpoints {
		if !e.record.until.IsZero() && !now.Before(e.record.until) {
			e.record.readmit(now)
			e.succeeded.Store(0)
			changed = e.setOut(outOutlier, false, now, "") || changed
		}
		if g.check != nil && !e.due.IsZero() && !now.Before(e.due) && !e.checking {
			e.due, e.checking = time.Time{}, true
			due = append(due, e)
		}
	}
	g.monitor.replan(g)
	check = g.check
	g.unlock(changed)
	return check, due
}

// next is when something is to be done; zero for never. mu is held.
func (g *Group) next() time.Time {
	var next time.Time
	sooner := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, e := range g.endpoints {
		sooner(e.record.until)
		sooner(e.due)
	}
	return next
}

// checked notes the result of a check that began at a time.
func (g *Group) checked(e *Endpoint, c *Check, began, now time.Time, wait time.Duration, err error) {
	g.mu.Lock()
	changed := false
	defer func() { g.unlock(changed) }()
	e.checking = false
	if g.check == nil || e.users == 0 {
		return
	}
	if e.due = began.Add(wait); e.due.Before(now) || c != g.check {
		e.due = now
	}
	if c == g.check {
		out := e.note(c, err == nil, e.out.Load()&outCheck != 0)
		if !out || err != nil {
			changed = e.setOut(outCheck, out, now, detailOf(0, err))
		}
	}
	g.monitor.replan(g)
}
