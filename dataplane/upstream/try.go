package upstream

import (
	"errors"
	"fmt"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// try is one attempt on one endpoint, at call.Now, and returns when it had an answer
// or failed. Whoever gets a response calls done and then
// ep.end, in the order in which Exchange.Done does, or both in any other.
func (ep *endpoint) try(call *http1.Call) (resp *exchange.Response, done func(*exchange.Exchange), now time.Time, err error) {
	ep.begin()
	resp, done, err = ep.protocol.roundTrip(call)
	now = time.Now()
	o := outcome{now: now, latency: now.Sub(call.Now)}
	if err != nil {
		o.err = classify(err)
		ep.learn(o)
		ep.ended()
		return nil, nil, now, o.err
	}
	o.status = resp.Status
	ep.learn(o)
	return resp, done, now, nil
}

// classify says which of the package's errors a failure is. What the client did
// stays as it is.
func classify(err error) error {
	switch {
	case errors.Is(err, ErrOverloaded):
		return err
	case errors.Is(err, http1.ErrTimeout):
		return fmt.Errorf("%w: %w", ErrTimeout, err)
	case errors.Is(err, errDial), errors.Is(err, http1.ErrUnsent), errors.Is(err, http1.ErrNoAnswer), errors.Is(err, http1.ErrAnswer):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
