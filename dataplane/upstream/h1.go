package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

const maxIdlePerEndpoint = 512

// errDial is wrapped by the error when no connection was made.
var errDial = errors.New("cannot connect")

// http1Trip is the roundTripper for HTTP/1.1: a stack of idle connections, the
// one used last on top, so that those not needed grow old together.
type http1Trip struct {
	dial          func(ctx context.Context, network, address string) (net.Conn, error)
	at            location
	tls           *tls.Config // nil for clear text
	connect, keep time.Duration
	gate          *gate
	// waiting counts the requests that the gate keeps waiting for this endpoint.
	waiting atomic.Int64

	mu sync.Mutex
	// Guarded by mu.
	idle    []*http1Conn
	live    map[*http1Conn]struct{} // all, idle or not
	retired bool
	sweeper *time.Timer // runs while idle is not empty
}

// http1Conn is one connection.
type http1Conn struct {
	*http1.ClientConn
	trip  *http1Trip
	done  func(*exchange.Exchange)
	since time.Time // idle since then; guarded by http1Trip.mu
}

func newHTTP1(dial func(context.Context, string, string) (net.Conn, error), at location, s *settings, g *gate) *http1Trip {
	t := &http1Trip{dial: dial, at: at, connect: s.connect, keep: s.idle, gate: g, live: map[*http1Conn]struct{}{}}
	g.join(t)
	if at.scheme == "https" {
		t.tls = s.tls.Clone()
		if t.tls.ServerName == "" {
			t.tls.ServerName = at.name
		}
	}
	return t
}

// roundTrip implements roundTripper. A connection that was idle may have been
// closed by the upstream in this moment; the request goes out anew on a fresh one
// when it was certainly not processed, or may be processed twice.
func (t *http1Trip) roundTrip(call *http1.Call) (*exchange.Response, func(*exchange.Exchange), error) {
	for c := t.take(call); c != nil; c = t.take(call) {
		resp, err := c.Do(call)
		if err == nil {
			return resp, c.done, nil
		}
		t.forget(c)
		if errors.Is(err, http1.ErrUnsent) {
			continue
		}
		if !again(call, err) {
			return nil, nil, err
		}
		break
	}
	c, err := t.open(call)
	if err != nil {
		return nil, nil, err
	}
	resp, err := c.Do(call)
	if err != nil {
		t.forget(c)
		return nil, nil, err
	}
	return resp, c.done, nil
}

// again tells whether a request that failed on a reused connection may be sent
// on a fresh one (RFC 9110, 9.2.2; RFC 9112, 9.3.1).
func again(call *http1.Call, err error) bool {
	if errors.Is(err, http1.ErrUnsent) {
		return true
	}
	return errors.Is(err, http1.ErrNoAnswer) && idempotent(call.Request.Method) && (call.Whole || call.Request.Body.Reader == nil)
}

func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "PUT", "DELETE":
		return true
	}
	return false
}

// take returns an idle connection, or nil. It may be dead: Do finds that out before
// it sends anything.
func (t *http1Trip) take(call *http1.Call) *http1Conn {
	for {
		t.mu.Lock()
		n := len(t.idle)
		if n == 0 {
			t.mu.Unlock()
			return nil
		}
		c := t.idle[n-1]
		t.idle[n-1] = nil
		t.idle = t.idle[:n-1]
		idled := call.Now.Sub(c.since)
		t.mu.Unlock()
		if idled < t.keep {
			return c
		}
		t.forget(c)
		c.Close()
	}
}

// give puts a connection back; done is the value of it. e, when there is one, may
// know the time.
func (t *http1Trip) give(c *http1Conn, e *exchange.Exchange) {
	if !c.Finish() {
		t.forget(c)
		return
	}
	var now time.Time
	if e != nil {
		now = e.Result.Ended
	}
	if now.IsZero() {
		now = time.Now()
	}
	t.mu.Lock()
	elsewhere := t.gate.waiting.Load() > 0 && t.waiting.Load() == 0
	if t.retired || elsewhere || len(t.idle) == maxIdlePerEndpoint {
		t.mu.Unlock()
		t.forget(c)
		c.Close()
		return
	}
	c.since = now
	t.idle = append(t.idle, c)
	if len(t.idle) == 1 {
		t.sweepIn(t.keep)
	}
	t.mu.Unlock()
	t.gate.free()
}

// evict implements evicter.
func (t *http1Trip) evict() bool {
	t.mu.Lock()
	if len(t.idle) == 0 {
		t.mu.Unlock()
		return false
	}
	oldest := t.idle[0]
	t.idle = append(t.idle[:0], t.idle[1:]...)
	t.mu.Unlock()
	t.close([]*http1Conn{oldest})
	return true
}

// sweepIn has the idle connections swept; t.mu is held.
func (t *http1Trip) sweepIn(after time.Duration) {
	if t.sweeper == nil {
		t.sweeper = time.AfterFunc(after, t.sweep)
		return
	}
	t.sweeper.Reset(after)
}

// sweep closes the connections that were idle for too long: those at the bottom.
func (t *http1Trip) sweep() {
	now := time.Now()
	t.mu.Lock()
	old := 0
	for old < len(t.idle) && now.Sub(t.idle[old].since) >= t.keep {
		old++
	}
	gone := append([]*http1Conn(nil), t.idle[:old]...)
	kept := copy(t.idle, t.idle[old:])
	clear(t.idle[kept:])
	if t.idle = t.idle[:kept]; kept > 0 {
		t.sweepIn(t.keep - now.Sub(t.idle[0].since))
	}
	t.mu.Unlock()
	t.close(gone)
}

func (t *http1Trip) close(conns []*http1Conn) {
	for _, c := range conns {
		t.forget(c)
		c.Close()
	}
}

func (t *http1Trip) forget(c *http1Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.live, c)
}

// open makes a connection, before the connect timeout and the deadline. Where the
// circuit breaker bounds them it waits for its turn, and may come by one that has
// become idle instead.
func (t *http1Trip) open(call *http1.Call) (*http1Conn, error) {
	at := call.Now.Add(t.connect)
	if call.Deadline.Before(at) {
		at = call.Deadline
	}
	ctx, cancel := context.WithDeadlineCause(call.Context, at, errors.New("connecting took too long"))
	defer cancel()
	if !t.gate.begin() {
		return nil, errPending
	}
	defer t.gate.over()
	idle, err := t.pass(ctx, call)
	if idle != nil || err != nil {
		return idle, err
	}
	conn, err := t.shake(ctx)
	if err != nil {
		switch {
		case call.Context.Err() != nil:
			return nil, fmt.Errorf("ask upstream: %w", context.Cause(call.Context))
		case !time.Now().Before(call.Deadline):
			return nil, fmt.Errorf("%w: %w: %w", http1.ErrTimeout, errDial, err)
		}
		return nil, fmt.Errorf("%w: %w", errDial, err)
	}
	c := &http1Conn{ClientConn: http1.NewClientConn(conn), trip: t}
	c.done = func(e *exchange.Exchange) { t.give(c, e) }
	t.mu.Lock()
	t.live[c] = struct{}{}
	t.mu.Unlock()
	return c, nil
}

// pass waits for the right to open a connection, or for one that has become idle.
func (t *http1Trip) pass(ctx context.Context, call *http1.Call) (idle *http1Conn, err error) {
	t.waiting.Add(1)
	defer t.waiting.Add(-1)
	_, err = t.gate.pass(ctx, func() bool {
		// Whoever waits here gets one connection, and it is to be a good one.
		for idle = t.take(call); idle != nil && !idle.Alive(); idle = t.take(call) {
			t.close([]*http1Conn{idle})
		}
		return idle != nil
	})
	if err != nil && call.Context.Err() != nil {
		err = fmt.Errorf("ask upstream: %w", context.Cause(call.Context))
	}
	return idle, err
}

// shake makes a connection that leaves the gate when it ends. What is counted lies
// below TLS, where the connection can be looked into, and closed without a farewell.
func (t *http1Trip) shake(ctx context.Context) (net.Conn, error) {
	conn, err := t.dial(ctx, "tcp", t.at.address)
	if err != nil {
		t.gate.leave()
		return nil, err
	}
	conn = t.gate.count(conn)
	if t.tls == nil {
		return conn, nil
	}
	secure := tls.Client(conn, t.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// closeIdle implements roundTripper.
func (t *http1Trip) closeIdle() {
	t.mu.Lock()
	idle := t.idle
	t.idle = nil
	if t.sweeper != nil {
		t.sweeper.Stop()
	}
	t.mu.Unlock()
	t.close(idle)
}

// retire implements roundTripper.
func (t *http1Trip) retire() {
	t.mu.Lock()
	t.retired = true
	t.mu.Unlock()
	t.gate.quit(t)
	t.closeIdle()
}

// cut implements roundTripper.
func (t *http1Trip) cut() {
	t.closeIdle()
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.live {
		c.Interrupt(errCut)
	}
}

// errCut is the cause of requests that the end of the pool cuts.
var errCut = fmt.Errorf("%w: %w", ErrUnavailable, exchange.ErrStopping)
