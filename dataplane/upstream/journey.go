package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// early is how much sooner than this node an upstream may find that the time is
// over which it was told it has: that is in whole milliseconds, and it ends the
// stream rather than answer.
const early = 5 * time.Millisecond

// journey is one request that may be sent more than once, or that must be told how
// long it has. It belongs to the exchange's goroutine.
type journey struct {
	b        *Backend
	e        *exchange.Exchange
	span     context.Context
	deadline time.Time
	grpc     bool
	// body is nil when there is none, or when whole holds all of it.
	body  *replay
	whole []byte
	// tried are the endpoints that have failed the request.
	tried []*endpoint
}

// travel sends the request as often as the route and the budget allow, and returns
// when what came of it did.
func (b *Backend) travel(a *attempt, e *exchange.Exchange, span context.Context, deadline time.Time, grpc bool) (ended time.Time) {
	j := &journey{b: b, e: e, span: span, deadline: deadline, grpc: grpc}
	if a.err = j.pack(); a.err != nil {
		return time.Now()
	}
	*a = j.round()
	for retry := 0; j.again(a, retry); retry++ {
		// again has taken a place in the budget.
		a.discard()
		if err := j.sleep(retry); err != nil {
			*a = attempt{err: err}
		} else {
			b.upstream.retries.Add(1)
			*a = j.round()
		}
		b.upstream.budget.Leave()
	}
	if j.body != nil {
		j.body.off.Store(true)
	}
	if errors.Is(a.err, ErrUnavailable) && !errors.Is(a.err, errDial) && time.Until(deadline) < early {
		a.err = fmt.Errorf("%w: %w", ErrTimeout, a.err)
	}
	return time.Now()
}

// pack readies the body: what is there is taken, what is not is kept as it passes.
func (j *journey) pack() error {
	body := &j.e.Request.Body
	switch {
	case body.Reader == nil:
	case there(body):
		j.whole = make([]byte, body.Length)
		if _, err := io.ReadFull(body.Reader, j.whole); err != nil {
			return fmt.Errorf("read request body: %w", err)
		}
	case j.b.retries.allows(j.e.Request.Method) || len(j.b.mirrors) > 0:
		j.body = &replay{reader: body.Reader, length: body.Length}
	}
	j.b.mirror(j)
	return nil
}

// again tells whether the request is to be sent once more after what came of it,
// and takes a place in the budget then.
func (j *journey) again(a *attempt, retry int) bool {
	r := j.b.retries
	if !r.allows(j.e.Request.Method) || retry >= r.attempts || !r.wants(a.resp, a.err) {
		return false
	}
	if j.body != nil && !j.body.again() || j.body == nil && j.whole == nil && j.e.Request.Body.Reader != nil {
		return false
	}
	if j.span.Err() != nil || !time.Now().Before(j.deadline) {
		return false
	}
	u := j.b.upstream
	return u.budget.Enter(u.share, u.requests())
}

// sleep waits before a retry; the error says why not. What would wait beyond the
// deadline does not wait.
func (j *journey) sleep(retry int) error {
	wait := min(j.b.retries.pause(retry), time.Until(j.deadline)/2)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-j.span.Done():
		return fmt.Errorf("ask upstream: %w", context.Cause(j.span))
	}
}

// round asks one endpoint, or several at once when the route hedges.
func (j *journey) round() attempt {
	if j.b.hedging.allows(&j.e.Request) {
		return j.race()
	}
	return j.connect()
}

// connect asks one endpoint, and others as long as none can be connected to.
func (j *journey) connect() attempt {
	var a attempt
	for range maxAttempts {
		ep := j.pick()
		if ep == nil {
			break
		}
		j.tried = append(j.tried, ep)
		a = attempt{ep: ep}
		// The time that is left is another each time.
		call := j.call(j.span, &j.e.Request)
		if a.resp, a.done, _, a.err = ep.try(&call); a.err == nil || !undialled(a.err) || !time.Now().Before(j.deadline) {
			return a
		}
	}
	if a.ep == nil {
		a.err = errNobody
	}
	return a
}

// pick prefers an endpoint that has not failed the request.
func (j *journey) pick() *endpoint {
	if ep, _ := j.b.pick(j.e, j.span, j.deadline, j.tried, time.Now()); ep != nil || len(j.tried) == 0 {
		return ep
	}
	ep, _ := j.b.pick(j.e, j.span, j.deadline, nil, time.Now())
	return ep
}

// call is the next attempt's: a copy of the request that says how long it has.
func (j *journey) call(ctx context.Context, from *exchange.Request) http1.Call {
	now := time.Now()
	deadline := j.deadline
	if j.b.attempt > 0 && now.Add(j.b.attempt).Before(deadline) {
		deadline = now.Add(j.b.attempt)
	}
	r := *from
	if j.grpc || j.b.deadlineHeader != "" {
		r.Header = exchange.HeaderOf(append(make([]exchange.Field, 0, from.Header.Len()+1), from.Header.Fields()...)...)
		tellDeadline(&r, j.b.deadlineHeader, j.grpc, deadline.Sub(now))
	}
	call := http1.Call{Context: ctx, Request: &r, Now: now, Deadline: deadline, Idle: j.b.idle}
	switch {
	case j.whole != nil:
		call.Body, call.Whole = j.whole, true
	case j.body != nil && j.body.whole.Load():
		call.Body, call.Whole = j.body.kept, true
	case j.body != nil:
		r.Body.Reader = j.body
	}
	return call
}

// undialled tells whether no connection could be made: nothing was sent.
func undialled(err error) bool { return errors.Is(err, errDial) && !errors.Is(err, ErrOverloaded) }
