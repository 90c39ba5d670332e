package gateway

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/grpcweb"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/dataplane/upstream"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/telemetry"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Tracer begins server spans; telemetry.Telemetry is one.
type Tracer interface {
	Start(ctx context.Context, d telemetry.Decision, name string, opts ...trace.SpanStartOption) (context.Context, trace.Span)
}

// Config of a Gateway. All fields are required but where said.
type Config struct {
	// Node names the node in records.
	Node string
	// Policy is the live state that policies ask; Issuer and Application are the
	// gateway's own and left out.
	Policy    policy.Deps
	Pool      *upstream.Pool
	Tokens    *token.Cache
	Counters  *telemetry.Counters
	Sampler   *telemetry.Sampler
	Tracer    Tracer
	AccessLog *telemetry.AccessLog
	Decisions *Decisions
	Log       *slog.Logger
	// Overload says which requests are refused because the node runs out of memory:
	// overload.Manager. nil refuses none.
	Overload interface {
		Sheds(configv1.Criticality) bool
	}
}

// Gateway runs one snapshot at a time. Handle may be called concurrently; Apply
// by one goroutine at a time.
type Gateway struct {
	cfg      Config
	live     atomic.Pointer[Snapshot]
	logs     atomic.Bool
	unrouted *telemetry.RouteCounters
	// unset is the Gateway resource where there is none.
	unset   *configv1.Gateway
	flights sync.Pool
	streams streams

	// Owned by the goroutine that calls Apply.
	compiled compiled
}

// New returns a gateway that is not ready: it refuses until the first Apply.
func New(cfg Config) *Gateway {
	g := &Gateway{cfg: cfg, unrouted: cfg.Counters.Route("", ""), unset: &configv1.Gateway{}}
	g.compiled = compiled{map[config.Key]*Route{}, map[config.Key]*upstream.Upstream{}, map[config.Key]*token.Issuer{}}
	if g.cfg.Policy.Now == nil {
		g.cfg.Policy.Now = time.Now
	}
	g.flights.New = func() any {
		f := &flight{g: g}
		f.end, f.unwatch, f.fail = f.finish, f.forget, f.failed
		return f
	}
	g.logs.Store(true)
	return g
}

// Live returns the snapshot that new exchanges meet; nil before the first.
func (g *Gateway) Live() *Snapshot { return g.live.Load() }

// Settings returns what the Gateway resource says, never nil, and the same value
// as long as the resource is the same.
func (g *Gateway) Settings() *configv1.Gateway {
	if live := g.live.Load(); live != nil {
		return live.settings
	}
	return g.unset
}

// application finds an Application in the newest snapshot, so that one that is
// disabled is out at once, also for routes compiled earlier.
func (g *Gateway) application(workspace, name string) (*configv1.Application, bool) {
	live := g.live.Load()
	if live == nil {
		return nil, false
	}
	resource, ok := live.checked.Get(config.Key{Kind: config.KindApplication, Workspace: workspace, Name: name})
	return resource.GetApplication(), ok
}

// applySettings hands what the Gateway resource says to those who ask often.
func (g *Gateway) applySettings(spec *configv1.Gateway) {
	ratio := defaultTraceRatio
	if tracing := spec.GetTracing(); tracing != nil && tracing.Ratio != nil {
		ratio = *tracing.Ratio
	}
	g.cfg.Sampler.Set(ratio, spec.GetTracing().GetTrustIncoming())
	g.logs.Store(!spec.GetAccessLog().GetDisabled())
}

// defaultTraceRatio is the share of requests that are traced when the Gateway
// does not say.
const defaultTraceRatio = 0.01

// Handle decides one exchange and returns its answer, whose body the caller
// writes. It never returns nil and never panics: a panic in one route's code
// fails this request and nothing else.
func (g *Gateway) Handle(e *exchange.Exchange) (resp *exchange.Response) {
	f := g.begin(e)
	defer func() {
		cause := recover()
		if cause == nil {
			return
		}
		g.cfg.Log.Error("a request failed in the gateway's own code", "request_id", e.ID, "panic", cause, "stack", string(debug.Stack()))
		// What was to change the answer may be what failed.
		clear(e.After)
		e.After = e.After[:0]
		resp = f.refuse(e, &policy.Denial{Reason: policy.InternalError})
	}()
	r, denial := f.decide(e)
	if denial != nil {
		return f.refuse(e, denial)
	}
	return f.forward(e, r)
}

// decide finds the exchange's route and runs its policies: all that comes before
// the upstream is asked. On a hit of the token cache it allocates nothing.
func (f *flight) decide(e *exchange.Exchange) (*Route, *policy.Denial) {
	live := f.g.live.Load()
	if live == nil {
		return nil, &policy.Denial{Reason: policy.NotReady, Detail: "The node has no configuration yet."}
	}
	f.version = live.Version
	target, ok := live.routes.Lookup(e.Request.Host, e.Request.Method, e.Request.Path, &e.Params, func(t *target) bool {
		return t.accepts(&e.Request)
	})
	if !ok {
		return nil, &policy.Denial{Reason: policy.NoRoute}
	}
	r := target.route
	f.route, e.Route = r, r.info
	if f.trace.Record {
		f.startSpan(e)
	}
	if o := f.g.cfg.Overload; o != nil && o.Sheds(r.criticality) {
		return r, &policy.Denial{Reason: policy.NodeOverloaded, RetryAfter: time.Second}
	}
	return r, r.pipeline.Run(e)
}

// Refuse answers what the front end refuses itself; e.Why may say why.
func (g *Gateway) Refuse(e *exchange.Exchange, reason string, status int) *exchange.Response {
	f := g.begin(e)
	if live := g.live.Load(); live != nil {
		f.version = live.Version
	}
	return f.refuse(e, &policy.Denial{Reason: policy.Reason(reason), Status: status, Detail: e.Why.Detail})
}

// forward sends the request to one of the route's backends.
func (f *flight) forward(e *exchange.Exchange, r *Route) *exchange.Response {
	at := r.picker.Pick()
	if at < 0 {
		return f.refuse(e, &policy.Denial{Reason: policy.UpstreamUnavailable, Note: "no backend has a weight"})
	}
	backend := r.backends[at]
	f.upstream = backend.Name
	f.addIdentity(e)
	f.propagate(e)
	deadline := e.Received.Add(r.timeout)
	var resp *exchange.Response
	var err error
	if backend.HTTP2() {
		resp, err = f.translate(e, backend, deadline)
	} else {
		resp, err = backend.Do(e, f.context(e), deadline)
	}
	if err != nil {
		return f.refuse(e, denialOf(err))
	}
	f.g.streams.watch(e, f, resp)
	e.Answer(resp)
	e.Fail = f.fail
	return resp
}

// translate sends the request to a backend that speaks HTTP/2; what is gRPC-Web
// goes there as gRPC, and its answer comes back as it was asked for.
func (f *flight) translate(e *exchange.Exchange, backend *upstream.Backend, deadline time.Time) (*exchange.Response, error) {
	web, ok := grpcweb.Begin(&e.Request)
	resp, err := backend.Do(e, f.context(e), deadline)
	if !ok {
		return resp, err
	}
	web.Undo(&e.Request)
	if err == nil {
		web.Answer(resp)
	}
	return resp, err
}

// denialOf says which refusal an upstream's failure is. What went wrong exactly
// goes into the record, not to the client.
func denialOf(err error) *policy.Denial {
	reason := policy.UpstreamUnavailable
	switch {
	case errors.Is(err, upstream.ErrOverloaded):
		return &policy.Denial{Reason: policy.UpstreamOverloaded, Note: err.Error(), RetryAfter: time.Second}
	case errors.Is(err, upstream.ErrTimeout), errors.Is(err, upstream.ErrSilent):
		reason = policy.UpstreamTimeout
	case errors.Is(err, exchange.ErrTooLarge):
		reason = policy.RequestTooLarge
	case errors.Is(err, exchange.ErrMalformed):
		reason = policy.RequestMalformed
	case errors.Is(err, context.Canceled):
		reason = policy.ClientGone
	}
	return &policy.Denial{Reason: reason, Note: err.Error()}
}

// Run closes streams whose credential is revoked while they are open, until ctx
// ends.
func (g *Gateway) Run(ctx context.Context) error {
	tick := time.NewTicker(streamCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			g.sweep()
		}
	}
}
