package upstream

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// race is one request on its way to several endpoints at once: the first answer
// that is good wins, and the others are interrupted, without blame (Dean, Barroso,
// The Tail at Scale, 2013, "hedged requests").
type race struct {
	j *journey
	// request is a copy: those who lose may still be at it when the exchange is over.
	request exchange.Request
	results chan attempt
	running int
	// started are the interrupts of those that nothing has been heard of.
	started []context.CancelCauseFunc
	// hedges that have been sent.
	hedges int

	mu sync.Mutex
	// Guarded by mu. over: nobody waits for results any more.
	over bool
}

// race runs one; the request has no body.
func (j *journey) race() attempt {
	h := j.b.hedging
	r := &race{j: j, request: cloneRequest(&j.e.Request), results: make(chan attempt, h.attempts+maxAttempts)}
	if !r.start(nil) {
		return attempt{err: errNobody}
	}
	defer r.end()
	timer := time.NewTimer(h.delay)
	defer timer.Stop()
	var best attempt
	for connects := 1; ; {
		select {
		case a := <-r.results:
			r.running--
			r.started[a.number] = nil
			if a.err == nil && !j.b.retries.wants(a.resp, nil) {
				best.discard()
				return a
			}
			if undialled(a.err) && connects < maxAttempts && time.Now().Before(j.deadline) {
				j.tried = append(j.tried, a.ep)
				connects++
				if r.start(nil) {
					a.discard()
					continue
				}
			}
			// An answer, even a bad one, says more than none.
			if best.resp == nil {
				best, a = a, best
			}
			a.discard()
			if r.running == 0 {
				return best
			}
		case <-timer.C:
			if r.hedge(); r.hedges < h.attempts {
				timer.Reset(h.delay)
			}
		case <-j.span.Done():
			best.discard()
			return attempt{err: fmt.Errorf("ask upstream: %w", context.Cause(j.span))}
		}
	}
}

// hedge sends the request to one more endpoint, when the budget allows it.
func (r *race) hedge() {
	u := r.j.b.upstream
	r.hedges++
	if !u.budget.Enter(u.share, u.requests()) {
		return
	}
	if r.start(u.budget.Leave) {
		u.hedges.Add(1)
	} else {
		u.budget.Leave()
	}
}

// start sends the request to an endpoint that has not got it; over is called when
// that has come to something. false: there is none.
func (r *race) start(over func()) bool {
	ep, _ := r.j.b.pick(r.j.e, r.j.span, r.j.deadline, r.j.tried, time.Now())
	if ep == nil && len(r.started) == 0 {
		ep = r.j.pick()
	}
	if ep == nil {
		return false
	}
	r.j.tried = append(r.j.tried, ep)
	ctx, cancel := context.WithCancelCause(r.j.span)
	call := r.j.call(ctx, &r.request)
	call.Watch = true
	r.started = append(r.started, cancel)
	r.running++
	a := attempt{ep: ep, cancel: cancel, number: len(r.started) - 1}
	go func() {
		defer func() {
			if cause := recover(); cause != nil {
				r.j.b.upstream.pool.log().Error("an attempt failed in the gateway's own code", "panic", cause, "stack", string(debug.Stack()))
				a.resp, a.err = nil, fmt.Errorf("%w: an attempt failed in the gateway's own code", ErrUnavailable)
			}
			if over != nil {
				over()
			}
			if a.err != nil {
				// Nobody else would: it would hang on the connection's context until that ends.
				cancel(errUnwanted)
			}
			r.deliver(a)
		}()
		a.resp, a.done, _, a.err = ep.try(&call)
	}()
	return true
}

// deliver hands over what came of an attempt, or discards it.
func (r *race) deliver(a attempt) {
	r.mu.Lock()
	if !r.over {
		r.results <- a
		r.mu.Unlock()
		return
	}
	r.mu.Unlock()
	a.discard()
}

// end interrupts those that have lost and discards what they brought.
func (r *race) end() {
	r.mu.Lock()
	r.over = true
	r.mu.Unlock()
	for _, interrupt := range r.started {
		if interrupt != nil {
			interrupt(errUnwanted)
		}
	}
	for {
		select {
		case a := <-r.results:
			a.discard()
		default:
			return
		}
	}
}
