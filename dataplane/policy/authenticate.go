package policy

import (
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Methods of an Identity.
const (
	methodJWT    = "jwt"
	methodAPIKey = "api_key"
)

const authorization = "Authorization"

// Details of denials that several authenticators share.
const (
	detailScheme    = "the Authorization header has a scheme that is not accepted here"
	detailDuplicate = "send one credential, once"
	detailMissing   = "send a credential that this route accepts"
)

// authenticate is the one step for all of a route's authenticators. Those of one
// level are alternatives, chosen by the credential that is present; each level
// that has any must be satisfied, and proves an identity of its own (see judgedBy).
// The upstream is told that of the innermost level.
type authenticate struct {
	levels []*level
	now    func() time.Time
	fresh  *freshness
	// strip lists header fields that carry an API key: the upstream has no use
	// for what would let it call on its clients' behalf.
	strip []string
}

// authenticate finishes the levels; nil when no level has an authenticator.
func (c *compiler) authenticate() (*authenticate, error) {
	a := &authenticate{now: c.deps.Now}
	for i := range c.levels {
		l := &c.levels[i]
		if !l.authenticates() {
			continue
		}
		l.finish()
		a.levels = append(a.levels, l)
		for _, k := range l.keys {
			a.strip = append(a.strip, k.header)
		}
	}
	if len(a.levels) == 0 {
		return nil, nil
	}
	if c.deps.Revocations == nil {
		return nil, errNeeds("Revocations")
	}
	var err error
	a.fresh, err = c.freshness()
	return a, err
}

// judgedBy says whose identity the rules and limits of a level are about, as an
// index into Exchange.Outer; innermost stands for Exchange.Identity. It is that of
// the nearest level, outward from the rule's own, that authenticates: what an inner
// level lets in says nothing to an outer one, whose author does not trust it. When
// none of these authenticates it is that of the outermost level that does.
func (c *compiler) judgedBy(level config.Level) int {
	at, last := innermost, -1
	for i := range c.levels {
		if !c.levels[i].authenticates() {
			continue
		}
		last++
		if config.Level(i) <= level || at == innermost {
			at = last
		}
	}
	if at == last {
		return innermost
	}
	return at
}

const innermost = -1

// Do implements Policy.
func (a *authenticate) Do(e *exchange.Exchange) *Denial {
	now := a.now()
	e.Outer = e.Outer[:0]
	for i, l := range a.levels {
		if i > 0 {
			e.Outer = append(e.Outer, e.Identity)
		}
		if d := l.do(e, now, a.fresh); d != nil {
			e.Identity = exchange.Identity{}
			e.Outer = e.Outer[:0]
			return d
		}
	}
	for _, header := range a.strip {
		e.Request.Header.Del(header)
	}
	return nil
}

// level is the authenticators of one level.
type level struct {
	bearer *bearer
	keys   []*apiKey
	origin string

	// authorization: some credential comes in the Authorization header, so that
	// whatever comes there counts as one.
	authorization bool
	missing       *Denial
	unknownScheme *Denial
	duplicate     *Denial
}

func (l *level) authenticates() bool { return l.bearer != nil || len(l.keys) > 0 }

func (l *level) finish() {
	var challenges []string
	if l.bearer != nil {
		l.authorization = true
		challenges = append(challenges, bearerChallenge("", "", ""))
	}
	for _, k := range l.keys {
		l.authorization = l.authorization || k.scheme
		challenges = append(challenges, apiKeyChallenge(k.header))
	}
	l.missing = &Denial{Reason: CredentialMissing, Policy: l.origin, Detail: detailMissing, Challenges: challenges}
	l.unknownScheme = &Denial{Reason: CredentialMalformed, Policy: l.origin, Detail: detailScheme, Challenges: challenges}
	l.duplicate = &Denial{Reason: CredentialDuplicate, Policy: l.origin, Detail: detailDuplicate}
	if l.bearer != nil {
		l.duplicate.Challenges = []string{bearerChallenge("invalid_request", "more than one credential", "")}
	}
}

// do finds the one credential and has it checked. A second one refuses the
// request, whatever it is worth: somebody else may believe that one.
func (l *level) do(e *exchange.Exchange, now time.Time, fresh *freshness) *Denial {
	count := 0
	if l.authorization {
		count = e.Request.Header.Count(authorization)
	}
	var key *apiKey
	for _, k := range l.keys {
		if k.scheme {
			continue // counted above
		}
		if n := e.Request.Header.Count(k.header); n > 0 {
			key, count = k, count+n
		}
	}
	switch {
	case count == 0:
		return l.missing
	case count > 1:
		return l.duplicate
	case key != nil:
		return key.do(e, e.Request.Header.Get(key.header), now, fresh)
	}
	value := e.Request.Header.Get(authorization)
	scheme, credential := splitScheme(value)
	if l.bearer != nil && exchange.EqualFold(scheme, "Bearer") {
		return l.bearer.do(e, credential, now, fresh)
	}
	for _, k := range l.keys {
		if k.scheme && exchange.EqualFold(scheme, "ApiKey") {
			return k.do(e, credential, now, fresh)
		}
	}
	return l.unknownScheme
}

// splitScheme splits credentials at the spaces after the scheme (RFC 9110
// section 11.4).
func splitScheme(value string) (scheme, rest string) {
	i := 0
	for i < len(value) && value[i] != ' ' {
		i++
	}
	scheme = value[:i]
	for i < len(value) && value[i] == ' ' {
		i++
	}
	return scheme, value[i:]
}

// freshness bounds how old the node's knowledge of revocations may be; nil means
// no bound.
type freshness struct {
	known  *revocation.Freshness
	max    time.Duration
	allow  bool
	served func(exchange.RouteInfo)
	denied *Denial
}

const detailStale = "the node cannot prove that it knows the latest revocations"

func (c *compiler) freshness() (*freshness, error) {
	spec := c.spec.GetRevocation()
	if spec.GetMaxStaleness() == nil {
		return nil, nil
	}
	if c.deps.Freshness == nil {
		return nil, errNeeds("Freshness")
	}
	return &freshness{
		known: c.deps.Freshness, max: spec.GetMaxStaleness().AsDuration(),
		allow: spec.GetOnStale() == configv1.OnStale_ON_STALE_ALLOW, served: c.deps.ServedStale,
		denied: &Denial{Reason: RevocationsStale, Policy: "revocation", Detail: detailStale, RetryAfter: time.Second},
	}, nil
}

// check comes before any lookup of a revocation. It takes the time anew: a node
// that was frozen after the request came must not judge by the time before.
func (f *freshness) check(e *exchange.Exchange, now time.Time) *Denial {
	if f == nil || f.known.Staleness(now) <= f.max {
		return nil
	}
	if !f.allow {
		return f.denied
	}
	e.Why = exchange.Why{Policy: "revocation", Rule: "onStale", Detail: "served on stale revocations, as the route allows"}
	if f.served != nil {
		f.served(e.Route)
	}
	return nil
}
