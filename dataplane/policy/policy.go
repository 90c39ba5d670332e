// Package policy compiles what a route declares into the steps of a request's
// life, and runs them. It owns the kinds of policy, their order, and what a
// refusal looks like. It works on the types of package exchange alone: it opens
// no socket, knows no protocol, and holds no state of its own besides what its
// Deps give it, which outlives every compiled route.
package policy

import (
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/limit"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/pkg/config/expr"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Phase is when a policy runs. Policies run in the order of their phases, and
// within a phase as declared, gateway first; never in the order in which a route
// happens to list them.
type Phase uint8

// The phases of a request, in order.
const (
	Admit Phase = iota
	Authenticate
	Authorize
	Limit
	Validate
	Transform
	Respond
)

// String returns the phase's name.
func (p Phase) String() string {
	return [...]string{"admit", "authenticate", "authorize", "limit", "validate", "transform", "respond"}[p]
}

// Policy is one rule of a request's life, compiled. Do is called concurrently
// for different exchanges. nil continues; a Denial ends the request, and nothing
// after it runs.
type Policy interface {
	Do(*exchange.Exchange) *Denial
}

// Step is a policy and its place.
type Step struct {
	Phase Phase
	// Origin says where it was declared, such as "gateway policies[0]".
	Origin string
	Policy Policy
}

// Denial refuses a request. Denials may be shared: read only. Nothing in one
// tells a secret or what stands behind the gateway.
type Denial struct {
	Reason Reason
	// Status overrides that of the reason when it is not 0.
	Status int
	// Detail is for the client.
	Detail string
	// Policy and Rule say what refused; Note says more to operators than Detail to
	// clients. For the decision's record.
	Policy, Rule, Note string
	// Challenges are the values of WWW-Authenticate, each a field of its own.
	Challenges []string
	// RetryAfter, when positive, is told to the client in whole seconds, rounded
	// up.
	RetryAfter time.Duration
}

// Deps is what compiled policies ask. All of it is live: it answers from the
// newest state however old the compiled route is, and is safe for concurrent
// use. Compiling a policy that needs what is missing is an error.
type Deps struct {
	// Issuer resolves a name for the compilation of a route, in a workspace and
	// then in the default one. An Issuer resource that changes makes its routes
	// compile again; its keys change beneath them.
	Issuer func(workspace, name string) (*token.Issuer, bool)
	// Application returns an application of exactly this workspace.
	Application func(workspace, name string) (*configv1.Application, bool)
	Credentials *credential.Set
	Revocations *revocation.Set
	Freshness   *revocation.Freshness
	Limiter     *limit.Limiter
	Expr        *expr.Env
	// KeyMissing is told the name, "workspace/name", of an issuer that has no
	// current key for a token, at most once a second for each. It must not block.
	// May be nil.
	KeyMissing func(issuer string)
	// ServedStale counts a request that was served although what is known of
	// revocations is older than its route's bound. May be nil.
	ServedStale func(exchange.RouteInfo)
	// Now reads the clock, monotonic reading included; nil means time.Now.
	Now func() time.Time
}

// Pipeline is what one route asks of a request, compiled. Immutable and safe for
// concurrent use.
type Pipeline struct {
	steps []Step
	after []func(*exchange.Exchange, *exchange.Response)
}

// Steps returns the steps in the order in which they run. The slice belongs to
// the pipeline.
func (p *Pipeline) Steps() []Step { return p.steps }

// Run runs the steps. It returns nil when the request may go to its upstream.
// The changes to the response are registered first, so that a refusal has them
// too.
func (p *Pipeline) Run(e *exchange.Exchange) *Denial {
	if len(p.after) > 0 {
		e.After = append(e.After, p.after...)
	}
	for i := range p.steps {
		d := p.steps[i].Policy.Do(e)
		if d == nil {
			continue
		}
		e.Why = exchange.Why{Policy: d.Policy, Rule: d.Rule, Detail: d.Detail}
		if d.Note != "" {
			e.Why.Detail = d.Note
		}
		if e.Why.Policy == "" {
			e.Why.Policy = p.steps[i].Origin
		}
		return d
	}
	return nil
}
