package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// levels is how many there are at which a policy may be declared.
const levels = int(config.LevelRoute) + 1

// declared is a policy with what follows from its place.
type declared struct {
	config.EffectivePolicy
	// scope names what a limit's counts belong to: a shared Policy, a baseline, or
	// the route itself. Routes with the same scope share the counts.
	scope string
}

func declare(route config.Key, p config.EffectivePolicy) declared {
	d := declared{EffectivePolicy: p, scope: p.Origin}
	if p.Level == config.LevelRoute {
		d.scope = route.String() + " " + p.Origin
	}
	if i := strings.IndexByte(p.Origin, '('); i >= 0 {
		d.scope = p.Origin[i:]
	}
	return d
}

// CompileRoute compiles what holds for a route; effective is what
// config.Checked.Policies returns for it. It does no I/O. What config.Check
// accepts compiles; an error names the policy.
func CompileRoute(route config.Key, spec *configv1.Route, effective []config.EffectivePolicy, deps Deps) (*Pipeline, error) {
	if deps.Now == nil {
		deps.Now = time.Now
	}
	c := compiler{route: route, spec: spec, deps: deps}
	// Steps point into c and keep it for as long as the route lives: not with it the
	// whole configuration, which is where Deps.Issuer looks.
	defer func() { c.deps = Deps{} }()
	for _, p := range effective {
		if err := c.add(declare(route, p)); err != nil {
			return nil, fmt.Errorf("%s: %w", p.Origin, err)
		}
	}
	return c.pipeline()
}

// compiler gathers the parts of one route. Authenticators, rules and limits are
// gathered: which of the first counts depends on the others, whom the second are
// about on the first, and of the last all are spent from or none.
type compiler struct {
	route config.Key
	spec  *configv1.Route
	deps  Deps

	steps     []Step
	levels    [levels]level
	authorize []authorize
	limits    rateLimits
	request   []Step
	after     []func(*exchange.Exchange, *exchange.Response)
}

// add is the one switch over policy kinds of this package.
func (c *compiler) add(d declared) error {
	switch kind := d.Policy.GetKind().(type) {
	case *configv1.Policy_Jwt:
		return c.addJWT(d, kind.Jwt)
	case *configv1.Policy_ApiKey:
		return c.addAPIKey(d, kind.ApiKey)
	case *configv1.Policy_Authorize:
		return c.addAuthorize(d, kind.Authorize)
	case *configv1.Policy_RateLimit:
		return c.addRateLimit(d, kind.RateLimit)
	case *configv1.Policy_Headers:
		return c.addHeaders(d, kind.Headers)
	case *configv1.Policy_Ref:
		return fmt.Errorf("the shared policy %q is not resolved", kind.Ref)
	}
	// A kind that this binary does not know must not be left out in silence.
	return fmt.Errorf("a policy of kind %T cannot be run by this release", d.Policy.GetKind())
}

func (c *compiler) pipeline() (*Pipeline, error) {
	authenticated, err := c.authenticate()
	if err != nil {
		return nil, err
	}
	switch {
	case authenticated != nil:
		c.steps = append(c.steps, Step{Authenticate, "authentication", authenticated})
	case !c.spec.GetPublic():
		return nil, errors.New("no policy authenticates, and the route is not public")
	}
	for i := range c.authorize {
		a := &c.authorize[i]
		a.as = c.judgedBy(a.level)
		c.steps = append(c.steps, Step{Authorize, a.origin, a})
	}
	if len(c.limits.rules) > 0 {
		for i := range c.limits.rules {
			c.limits.rules[i].as = c.judgedBy(c.limits.rules[i].level)
		}
		c.limits.finish()
		c.steps = append(c.steps, Step{Limit, c.limits.rules[0].origin, &c.limits})
	}
	// The outermost changes last, so that it has the last word on the request, and
	// so on the response: After runs last first.
	slices.Reverse(c.request)
	c.steps = append(c.steps, c.request...)
	slices.SortStableFunc(c.steps, func(a, b Step) int { return int(a.Phase) - int(b.Phase) })
	return &Pipeline{steps: c.steps, after: c.after}, nil
}
