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
	"portcullis.dev/portcullis/dataplane/upstream/guard"
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

// errNobody is the error when there is nobody to ask.
var errNobody = fmt.Errorf("%w: no endpoint is there to be asked", ErrUnavailable)

// defaultSilence is Timeouts.idle.
const defaultSilence = 5 * time.Minute

// Backend is one of a route's: an upstream, and how the route uses it. It is
// immutable and safe for concurrent use.
type Backend struct {
	upstream *Upstream
	chooser  *chooser
	// Name of the upstream, for the record.
	Name string

	criticality    guard.Criticality
	retries        *retries
	hedging        *hedging
	mirrors        []*Mirror
	attempt, idle  time.Duration // attempt: 0 for none
	deadlineHeader string
	// direct: nothing of the route's asks for more than one attempt.
	direct bool
}

// NewBackend makes a backend of the route, which is spec's. The upstream and the
// mirrors' are the caller's to release.
func NewBackend(u *Upstream, spec *configv1.Route, b *configv1.Backend, mirrors ...*Mirror) *Backend {
	t := spec.GetTimeouts()
	backend := &Backend{
		upstream: u, chooser: u.chooser(b.GetSubset()), Name: b.GetUpstream(),
		criticality: criticalityOf(spec.GetCriticality()), retries: retriesOf(spec.GetRetries()), hedging: hedgingOf(spec.GetHedging()), mirrors: mirrors,
		attempt: t.GetAttempt().AsDuration(), idle: duration(t.GetIdle(), defaultSilence), deadlineHeader: t.GetDeadlineHeader(),
	}
	backend.direct = backend.retries == nil && backend.hedging == nil && len(mirrors) == 0 && backend.attempt == 0 && backend.deadlineHeader == ""
	return backend
}

// Do sends the exchange's request to an endpoint and returns the head of its
// answer; the body streams. The path, the query and the authority go out as they
// stand in the request. The deadline, or that of a gRPC caller when it is earlier,
// bounds the wait for the head, not the body; span, which is e.Context or derived
// from it, bounds both. When an endpoint cannot be connected to, so that nothing of
// the request was sent, another is tried; whether it is sent more than once beyond
// that is the route's to say.
//
// The response and all in it hold until the exchange's Done has run. The error
// wraps ErrUnavailable, ErrTimeout, ErrOverloaded, the error of the request's body
// reader, or the cause of the context; nobody reads the request's body then.
func (b *Backend) Do(e *exchange.Exchange, span context.Context, deadline time.Time) (*exchange.Response, error) {
	u := b.upstream
	if err := u.enter(b.criticality); err != nil {
		return nil, err
	}
	e.Done = append(e.Done, u.left)
	began := time.Now()
	ended := began
	grpc := e.Request.GRPC()
	if grpc {
		deadline = callersDeadline(e, deadline)
	}
	var a attempt
	if b.direct && !grpc {
		ended = b.ask(&a, e, span, deadline, began)
	} else {
		ended = b.travel(&a, e, span, deadline, grpc)
	}
	e.Waited = ended.Sub(began)
	u.answered(u.pool.start, began, ended, a.resp, a.err)
	if a.err != nil {
		return nil, a.err
	}
	a.keep(e)
	b.chooser.bind(e, a.ep, a.resp)
	return a.resp, nil
}

// asking is what ask needs. It is pooled, since on the stack it would make that of
// every connection grow to twice its size, for as long as it idles.
type asking struct {
	call  http1.Call
	tried [maxAttempts]*endpoint
	body  *[smallBody]byte // nil unless the request has a small one
}

var askings = sync.Pool{New: func() any { return new(asking) }}

// ask sends the request as it stands, to others as long as none can be connected
// to. It gets and returns the time, which costs more to read than much of what
// depends on it. It allocates nothing.
func (b *Backend) ask(a *attempt, e *exchange.Exchange, span context.Context, deadline, now time.Time) time.Time {
	w := askings.Get().(*asking)
	defer w.free()
	w.call.Context, w.call.Request, w.call.Deadline, w.call.Idle = span, &e.Request, deadline, b.idle
	if there(&e.Request.Body) {
		if a.err = w.take(&e.Request.Body); a.err != nil {
			return time.Now()
		}
	}
	a.err = errNobody
	for tried := range w.tried {
		var ep *endpoint
		if ep, now = b.pick(e, span, deadline, w.tried[:tried], now); ep == nil {
			break
		}
		w.tried[tried], a.ep, w.call.Now = ep, ep, now
		if a.resp, a.done, now, a.err = ep.try(&w.call); !undialled(a.err) || errors.Is(a.err, ErrTimeout) {
			break
		}
	}
	return now
}

// take reads a body that is there.
func (w *asking) take(body *exchange.Body) error {
	w.body = bodies.Get().(*[smallBody]byte)
	w.call.Body, w.call.Whole = w.body[:body.Length], true
	if _, err := io.ReadFull(body.Reader, w.call.Body); err != nil {
		return fmt.Errorf("read request body: %w", err)
	}
	return nil
}

func (w *asking) free() {
	if w.body != nil {
		bodies.Put(w.body)
	}
	*w = asking{}
	askings.Put(w)
}

// pick chooses the endpoint for an exchange, other than those tried; nil when
// there is none. When names have not been looked up yet, it waits for them. It gets
// and returns the time.
func (b *Backend) pick(e *exchange.Exchange, span context.Context, deadline time.Time, tried []*endpoint, now time.Time) (*endpoint, time.Time) {
	ep := b.chooser.pick(e, tried, now)
	if ep == nil && len(tried) == 0 {
		b.upstream.await(span, deadline)
		now = time.Now()
		ep = b.chooser.pick(e, nil, now)
	}
	return ep, now
}

// there tells whether all of a small body can be read without waiting.
func there(b *exchange.Body) bool {
	if b.Reader == nil || b.Length <= 0 || b.Length > smallBody {
		return false
	}
	buffered, ok := b.Reader.(interface{ Buffered() int })
	return ok && int64(buffered.Buffered()) >= b.Length
}
