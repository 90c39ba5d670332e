package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	// maxAttempts is how many endpoints are dialled for one request.
	maxAttempts = 3
	// smallBody is what is sent together with the head when all of it is there.
	smallBody = 16 << 10
)

// bodies are buffers for small bodies.
var bodies = sync.Pool{New: func() any { return new([smallBody]byte) }}

// Backend is one of a route's: an upstream, and how the route uses it. It is
// immutable and safe for concurrent use.
type Backend struct {
	upstream *Upstream
	chooser  *chooser
	// Name of the upstream, for the record.
	Name string
}

// NewBackend makes a backend of the route, which is spec's. The upstream is the
// caller's to release.
func NewBackend(u *Upstream, _ *configv1.Route, b *configv1.Backend) *Backend {
	return &Backend{upstream: u, chooser: u.chooser(b.GetSubset()), Name: b.GetUpstream()}
}

// Do sends the exchange's request to one endpoint and returns the head of the
// answer; the body streams. The path, the query and the authority go out as they
// stand in the request. The deadline bounds the wait for the head, not the body;
// span, which is e.Context or derived from it, bounds both. When an endpoint
// cannot be dialled, so that nothing of the request was sent, another is tried.
//
// The response and all in it hold until the exchange's Done has run. The error
// wraps ErrUnavailable, ErrTimeout, the error of the request's body reader, or
// the cause of the context; nobody reads the request's body then.
func (b *Backend) Do(e *exchange.Exchange, span context.Context, deadline time.Time) (*exchange.Response, error) {
	call := http1.Call{Context: span, Request: &e.Request, Deadline: deadline}
	if there(&e.Request.Body) {
		buffer := bodies.Get().(*[smallBody]byte)
		defer bodies.Put(buffer)
		call.Body, call.Whole = buffer[:e.Request.Body.Length], true
		if _, err := io.ReadFull(e.Request.Body.Reader, call.Body); err != nil {
			return nil, fmt.Errorf("read request body: %w", err)
		}
	}
	var memory [maxAttempts]*endpoint
	tried := memory[:0]
	var err error
	for len(tried) < maxAttempts {
		ep := b.pick(e, span, deadline, tried)
		if ep == nil {
			break
		}
		tried = append(tried, ep)
		var resp *exchange.Response
		var done func(*exchange.Exchange)
		if resp, done, err = ep.try(call); err == nil {
			e.Done = append(e.Done, done, ep.end)
			b.chooser.bind(e, ep, resp)
			return resp, nil
		}
		if !errors.Is(err, errDial) || errors.Is(err, ErrTimeout) {
			break
		}
	}
	if err == nil {
		err = fmt.Errorf("%w: no endpoint is there to be asked", ErrUnavailable)
	}
	return nil, err
}

// pick chooses the endpoint for an exchange, other than those tried; nil when
// there is none. When names have not been looked up yet, it waits for them.
func (b *Backend) pick(e *exchange.Exchange, span context.Context, deadline time.Time, tried []*endpoint) *endpoint {
	ep := b.chooser.pick(e, tried)
	if ep == nil && len(tried) == 0 {
		b.upstream.await(span, deadline)
		ep = b.chooser.pick(e, nil)
	}
	return ep
}

// there tells whether all of a small body can be read without waiting.
func there(b *exchange.Body) bool {
	if b.Reader == nil || b.Length <= 0 || b.Length > smallBody {
		return false
	}
	buffered, ok := b.Reader.(interface{ Buffered() int })
	return ok && int64(buffered.Buffered()) >= b.Length
}
