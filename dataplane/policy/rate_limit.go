package policy

import (
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/limit"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/config/expr"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// addRateLimit compiles limits of requests per key.
func (c *compiler) addRateLimit(d declared, l *configv1.RateLimit) error {
	if c.deps.Limiter == nil {
		return errNeeds("Limiter")
	}
	if len(l.GetLimits()) == 0 {
		return errors.New("rateLimit.limits: none")
	}
	for i := range c.limits.rules {
		if c.limits.rules[i].scope == d.scope {
			return nil // a shared one, listed twice: one request counts once
		}
	}
	r := limitRule{origin: d.Origin, scope: d.scope, level: d.Level}
	if src := l.GetKey(); src != "" {
		if c.deps.Expr == nil {
			return errNeeds("Expr")
		}
		program, err := c.deps.Expr.Compile(src, expr.String)
		if err != nil {
			return fmt.Errorf("rateLimit.key: %w", err)
		}
		r.key = program
		r.variable, _ = program.Variable()
	}
	r.failed = &Denial{Reason: ExpressionError, Policy: d.Origin, Rule: "key", Detail: "the key of a rate limit could not be evaluated"}
	for i, spec := range l.GetLimits() {
		window := spec.GetWindow().AsDuration()
		if spec.GetRequests() == 0 || window <= 0 {
			return fmt.Errorf("rateLimit.limits[%d]: %d requests in %s", i, spec.GetRequests(), window)
		}
		r.limits = append(r.limits, limitOf(d, spec, window, l.GetOnPartition()))
	}
	c.limits.limiter = c.deps.Limiter
	c.limits.rules = append(c.limits.rules, r)
	return nil
}

// rateLimits is the one step for all of a route's limits, since a request spends
// from all of them or from none.
type rateLimits struct {
	limiter *limit.Limiter
	rules   []limitRule
	flat    []*oneLimit
	strict  bool
	// policy is the value of RateLimit-Policy.
	policy string
	texts  texts
}

// limitRule is one policy: a key and its limits.
type limitRule struct {
	origin, scope string
	level         config.Level
	as            int // see compiler.judgedBy
	key           *expr.Program
	// variable is the name that key consists of, which needs no evaluation.
	variable string
	limits   []*oneLimit
	failed   *Denial
}

type oneLimit struct {
	name   string
	origin string
	rate   limit.Rate
	policy string
}

func limitOf(d declared, spec *configv1.Limit, window time.Duration, onPartition configv1.OnPartition) *oneLimit {
	o := &oneLimit{name: spec.GetName(), origin: d.Origin}
	id := fnv.New64a()
	fmt.Fprintf(id, "%s\x00%s", d.scope, o.name)
	burst := spec.GetBurst()
	if burst == 0 {
		burst = spec.GetRequests()
	}
	if o.name == "" {
		o.name = "default"
	}
	o.rate = limit.Rate{
		PerSecond: float64(spec.GetRequests()) / window.Seconds(), Burst: float64(burst),
		OnPartition: onPartition, ID: id.Sum64(),
	}
	o.policy = fmt.Sprintf("%q;q=%d;w=%d", o.name, spec.GetRequests(), seconds(window))
	return o
}

func (r *rateLimits) finish() {
	var policies []string
	for i := range r.rules {
		for _, l := range r.rules[i].limits {
			r.flat = append(r.flat, l)
			r.strict = r.strict || l.rate.OnPartition == configv1.OnPartition_ON_PARTITION_STRICT
			policies = append(policies, l.policy)
		}
	}
	r.policy = strings.Join(policies, ", ")
}

// Do implements Policy. What it tells the client is about the limit that refuses
// or is nearest to it.
func (r *rateLimits) Do(e *exchange.Exchange) *Denial {
	var stack [8]limit.Item
	items := stack[:0]
	for i := range r.rules {
		rule := &r.rules[i]
		kind, of, value, err := rule.keyAs(e)
		if err != nil {
			d := *rule.failed
			d.Note = "key: " + expressionNote(err)
			return &d
		}
		for _, l := range rule.limits {
			items = append(items, limit.Item{Key: limit.KeyOf(rule.scope, l.name, kind, of, value), Rate: l.rate, Cost: 1})
		}
	}
	decision, at := r.spend(e, items)
	if at < 0 {
		return nil
	}
	return r.tell(e, r.flat[at], decision)
}

func (r *rateLimits) spend(e *exchange.Exchange, items []limit.Item) (limit.Decision, int) {
	switch {
	case r.strict:
		return r.limiter.SpendStrict(e.Context, slices.Clone(items), e.Received) // a copy: items stay on the stack
	case len(items) == 1:
		return r.limiter.Spend(items[0].Key, items[0].Rate, 1, e.Received), 0
	}
	return r.limiter.SpendAll(items, e.Received)
}

// tell sets the fields of draft-ietf-httpapi-ratelimit-headers-10.
func (r *rateLimits) tell(e *exchange.Exchange, l *oneLimit, d limit.Decision) *Denial {
	e.ResponseHeader.Set("RateLimit-Policy", r.policy)
	if d.Granted {
		e.ResponseHeader.Set("RateLimit", r.texts.of(l.name, int64(d.Remaining), seconds(d.Reset)))
		return nil
	}
	// Until then not even one request is left, so that both fields agree.
	e.ResponseHeader.Set("RateLimit", r.texts.of(l.name, 0, seconds(d.RetryAfter)))
	return &Denial{
		Reason: LimitExceeded, Policy: l.origin, Rule: l.name, RetryAfter: d.RetryAfter,
		Detail: fmt.Sprintf("the limit %q is used up", l.name),
	}
}

// keyAs returns the key of the identity that the rule is about.
func (r *limitRule) keyAs(e *exchange.Exchange) (kind, of, value string, err error) {
	if r.as == innermost {
		return r.keyOf(e)
	}
	told := e.Identity
	e.Identity = e.Outer[r.as]
	kind, of, value, err = r.keyOf(e)
	e.Identity = told
	return kind, of, value, err
}

// keyOf returns what a request is counted by. The default is the client when the
// caller is authenticated, else its address. The kind keeps values of different
// origin apart: nobody can name a client that is another's address.
func (r *limitRule) keyOf(e *exchange.Exchange) (kind, of, value string, err error) {
	if r.key == nil {
		kind, of, value = callerOf(e)
		return kind, of, value, nil
	}
	if r.variable != "" {
		if v, ok := (*activation)(e).text(r.variable); ok {
			return "key", "", v, nil
		}
	}
	value, err = r.key.String((*activation)(e))
	return "key", "", value, err
}

// callerOf names the caller within what vouches for it: two tenants may have an
// application, or an Issuer's iss, of the same name.
func callerOf(e *exchange.Exchange) (kind, of, value string) {
	id := &e.Identity
	switch {
	case id.Method == methodAPIKey:
		return methodAPIKey, e.Route.Workspace, id.Client
	case id.Client != "":
		return methodJWT, id.IssuerName, id.Client
	case id.Method != "":
		return "subject", id.IssuerName, id.Subject
	}
	// One IPv6 caller has a /64 at least, and would have as many buckets.
	peer := e.Request.Peer.Unmap()
	if peer.Is4() {
		b := peer.As4()
		return "peer", "", string(b[:])
	}
	b := peer.As16()
	return "peer", "", string(b[:8])
}

// texts remembers values of the RateLimit field: numbers are told to three
// digits, so that most requests of a busy route are told one of a few and cost no
// allocation. The zero texts is empty. Safe for concurrent use.
type texts struct {
	slots atomic.Pointer[[textSlots]atomic.Pointer[text]]
}

const textSlots = 512

type text struct {
	name             string
	remaining, reset int64
	value            string
}

func (t *texts) of(name string, remaining, reset int64) string {
	remaining, reset = remaining-remaining%grain(remaining), reset+grain(reset)-1
	reset -= reset % grain(reset)
	slots := t.slots.Load()
	if slots == nil {
		t.slots.CompareAndSwap(nil, new([textSlots]atomic.Pointer[text]))
		slots = t.slots.Load()
	}
	slot := &slots[uint64(remaining/grain(remaining)+31*reset+int64(len(name)))%textSlots]
	if known := slot.Load(); known != nil && known.remaining == remaining && known.reset == reset && known.name == name {
		return known.value
	}
	b := make([]byte, 0, 64)
	b = strconv.AppendQuote(b, name)
	b = append(b, ";r="...)
	b = strconv.AppendInt(b, remaining, 10)
	b = append(b, ";t="...)
	b = strconv.AppendInt(b, reset, 10)
	made := &text{name, remaining, reset, string(b)}
	slot.Store(made)
	return made.value
}

// grain is the power of ten by which n has three digits; 1 below 1000.
func grain(n int64) int64 {
	g := int64(1)
	for n >= 1000*g {
		g *= 10
	}
	return g
}
