package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// Reason says what keeps an endpoint from its traffic.
type Reason string

// The reasons, in the order in which one is named when there are several.
const (
	// Unresolved: the name of the endpoint could not be looked up.
	Unresolved Reason = "unresolved"
	// ByCheck: active checks fail.
	ByCheck Reason = "health_check"
	// ByOutlier: live traffic fails.
	ByOutlier Reason = "outlier"
)

// Bits of Endpoint.out.
const (
	outUnresolved uint32 = 1 << iota
	outCheck
	outOutlier
)

// Endpoint is what is known of one endpoint of one upstream. It outlives the
// configurations that name it. It is safe for concurrent use.
type Endpoint struct {
	group  *Group
	target Target
	// out is why it gets no traffic; 0 is usable.
	out atomic.Uint32
	// succeeded counts answers since the record last was told, and streak says that
	// the record holds failures that a success ends. Both are outside of the lock so
	// that a success takes none.
	succeeded atomic.Uint32
	streak    atomic.Bool
	ejections atomic.Uint64

	// Guarded by Group.mu.
	users  int
	record record
	verdict
	// seen and since are about the newest reason of each kind.
	seen  map[uint32]string
	since map[uint32]time.Time
	// due is when the next check begins; zero: none is planned.
	due      time.Time
	checking bool
}

// verdict is what active checks say: a state machine of thresholds.
type verdict struct{ passed, failed uint32 }

// note takes one result and says whether the endpoint is to be out, given whether
// it is.
func (v *verdict) note(c *Check, well, out bool) bool {
	if well {
		v.passed, v.failed = v.passed+1, 0
		return out && v.passed < c.Healthy
	}
	v.passed, v.failed = 0, v.failed+1
	return out || v.failed >= c.Unhealthy
}

// Status is how an endpoint is.
type Status struct {
	// Address as operators know it: host:port.
	Address string
	// Reason is empty for one that is usable.
	Reason Reason
	// Detail is what was seen last: "connection refused", "status 503".
	Detail string
	// Since when it is out.
	Since time.Time
}

// Usable says whether the endpoint should get traffic. It is one atomic load.
func (e *Endpoint) Usable() bool { return e.out.Load() == 0 }

// Succeeded notes an answer that is no failure. It takes no lock but after a
// failure.
func (e *Endpoint) Succeeded(now time.Time) {
	s := e.group.outlier.Load()
	if s == nil {
		return
	}
	e.succeeded.Add(1)
	if !e.streak.Load() {
		return
	}
	g := e.group
	g.mu.Lock()
	defer g.mu.Unlock()
	e.streak.Store(false)
	e.record.succeed(s, now, e.succeeded.Swap(0))
}

// Failed notes a connection that could not be made or was reset, a timeout, or an
// answer of 500 to 599; status is 0 without an answer, err nil with one.
func (e *Endpoint) Failed(now time.Time, status int, err error) {
	s := e.group.outlier.Load()
	if s == nil {
		return
	}
	g := e.group
	g.mu.Lock()
	e.streak.Store(true)
	if n := e.succeeded.Swap(0); n > 0 {
		// These came before: they end what failures stood before them.
		e.record.succeed(s, now, n)
	}
	changed := false
	if e.record.fail(s, now) && g.ejected() < s.room(len(g.endpoints)) {
		e.record.eject(s, now)
		e.ejections.Add(1)
		changed = e.setOut(outOutlier, true, now, detailOf(status, err))
		g.monitor.replan(g)
	}
	g.unlock(changed)
}

// SetResolved tells whether the endpoint's name could be looked up.
func (e *Endpoint) SetResolved(now time.Time, err error) {
	g := e.group
	g.mu.Lock()
	g.unlock(e.setOut(outUnresolved, err != nil, now, detailOf(0, err)))
}

// Ejections is how often live traffic took the endpoint out.
func (e *Endpoint) Ejections() uint64 { return e.ejections.Load() }

// setOut changes one reason and says whether the endpoint's usability is another.
// Group.mu is held.
func (e *Endpoint) setOut(bit uint32, out bool, now time.Time, detail string) bool {
	before := e.out.Load()
	if out {
		if before&bit == 0 {
			e.since[bit] = now
			e.out.Store(before | bit)
		}
		e.seen[bit] = detail
		return before == 0
	}
	e.out.Store(before &^ bit)
	return before == bit
}

// status is called with Group.mu held.
func (e *Endpoint) status() Status {
	s := Status{Address: e.target.Address}
	out := e.out.Load()
	for _, r := range [...]struct {
		bit    uint32
		reason Reason
	}{{outUnresolved, Unresolved}, {outCheck, ByCheck}, {outOutlier, ByOutlier}} {
		if out&r.bit != 0 {
			s.Reason, s.Detail, s.Since = r.reason, e.seen[r.bit], e.since[r.bit]
			break
		}
	}
	return s
}

// maxDetail bounds a detail in bytes.
const maxDetail = 200

// Detail says in a few words what the error is.
func Detail(err error) string { return detailOf(0, err) }

// detailOf says in a few words what went wrong.
func detailOf(status int, err error) string {
	var lookup *net.DNSError
	switch {
	case err == nil && status == 0:
		return ""
	case err == nil:
		return fmt.Sprintf("status %d", status)
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.ECONNRESET):
		return "connection reset"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed"
	case errors.As(err, &lookup):
		return "lookup: " + lookup.Err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	}
	detail := err.Error()
	if len(detail) > maxDetail {
		detail = detail[:maxDetail]
	}
	return detail
}
