package policy

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// addJWT compiles an authenticator by bearer token. Several on one level are one
// bearer: a token's issuer says which of them it has to satisfy.
func (c *compiler) addJWT(d declared, j *configv1.JWT) error {
	if c.deps.Issuer == nil {
		return errNeeds("Issuer")
	}
	if len(j.GetIssuers()) == 0 || len(j.GetAudiences()) == 0 {
		return errors.New("jwt: without issuers or audiences it would accept no token, or any")
	}
	trust := trusted{audiences: j.GetAudiences()}
	for i, name := range j.GetIssuers() {
		issuer, ok := c.deps.Issuer(d.Workspace, name)
		if !ok {
			return fmt.Errorf("jwt.issuers[%d]: Issuer %q does not exist", i, name)
		}
		trust.issuers = append(trust.issuers, issuer)
	}
	l := &c.levels[d.Level]
	if l.bearer == nil {
		l.bearer = &bearer{
			origin: d.Origin, keyMissing: c.deps.KeyMissing, revocations: c.deps.Revocations,
			applications: consumers{find: c.deps.Application, workspace: c.route.Workspace},
		}
		l.origin = d.Origin
	}
	l.bearer.trusted = append(l.bearer.trusted, trust)
	var all []*token.Issuer
	for _, t := range l.bearer.trusted {
		for _, i := range t.issuers {
			if !slices.Contains(all, i) {
				all = append(all, i)
			}
		}
	}
	l.bearer.verifier = token.NewVerifier(all...)
	return nil
}

// bearer authenticates with a token in the Authorization header (RFC 6750
// section 2.1); tokens in a body or a query are not looked for.
type bearer struct {
	origin       string
	verifier     *token.Verifier
	trusted      []trusted
	revocations  *revocation.Set
	applications consumers
	keyMissing   func(string)
}

// trusted is one jwt policy: what its issuers may sign for.
type trusted struct {
	issuers   []*token.Issuer
	audiences []string
}

func (b *bearer) do(e *exchange.Exchange, compact string, now time.Time, fresh *freshness) *Denial {
	t, issuer, refusal := b.verifier.Verify(compact, now)
	if refusal != nil {
		return b.refuse(refusal, issuer, now)
	}
	if !b.isFor(t, issuer) {
		return b.refuse(token.ErrAudience, issuer, now)
	}
	if t.Thumbprint != nil && !shown(e.Request.TLS, t.Thumbprint) {
		return b.refuse(token.ErrUnproven, issuer, now)
	}
	if d := fresh.check(e, now); d != nil {
		return d
	}
	subject := revocation.Subject{
		JTI: t.ID, Session: t.Session, Subject: t.Subject, Client: t.Client, Issuer: t.Issuer, IssuedAt: t.IssuedAt,
	}
	if _, revoked := b.revocations.Revoked(&subject); revoked {
		return b.deny(TokenRevoked, "the token has been revoked")
	}
	if t.Client != "" && b.applications.disabled(t.Client) {
		return b.deny(TokenRevoked, "the token's client is disabled")
	}
	// In place: a literal would be made on the stack, and copied.
	e.Identity = exchange.Identity{}
	id := &e.Identity
	id.Method, id.Subject, id.Client, id.Issuer, id.IssuerName = methodJWT, t.Subject, t.Client, t.Issuer, issuer.Name()
	id.TokenID, id.Session, id.Scopes, id.Roles, id.Groups, id.Claims = t.ID, t.Session, t.Scopes, t.Roles, t.Groups, t.Claims
	id.IssuedAt, id.ExpiresAt = time.Unix(t.IssuedAt, 0), time.Unix(t.Expires, 0)
	return nil
}

// isFor says whether a policy that trusts the token's issuer names its audience.
func (b *bearer) isFor(t *token.Token, issuer *token.Issuer) bool {
	for i := range b.trusted {
		if slices.Contains(b.trusted[i].issuers, issuer) && t.ForAny(b.trusted[i].audiences) {
			return true
		}
	}
	return false
}

// shown says whether the client proved to hold the certificate that the token is
// bound to (RFC 8705 section 3).
func shown(t *exchange.PeerTLS, thumbprint []byte) bool {
	if t == nil || len(t.Verified) == 0 {
		return false
	}
	sum := sha256.Sum256(t.Verified[0].Raw)
	return bytes.Equal(sum[:], thumbprint)
}

func (b *bearer) refuse(refusal *token.Refusal, issuer *token.Issuer, now time.Time) *Denial {
	missing := refusal == token.ErrUnknownKey || refusal == token.ErrKeysUnavailable
	if missing && b.keyMissing != nil && issuer.Ask(now) {
		b.keyMissing(issuer.Name())
	}
	return b.deny(Reason(refusal.Reason), refusal.Detail)
}

func (b *bearer) deny(reason Reason, detail string) *Denial {
	d := &Denial{Reason: reason, Policy: b.origin, Detail: detail}
	if reason == KeysUnavailable {
		d.RetryAfter = time.Second
	} else {
		d.Challenges = []string{bearerChallenge("invalid_token", detail, "")}
	}
	return d
}

// consumers finds a route's applications: those of its workspace.
type consumers struct {
	find      func(workspace, name string) (*configv1.Application, bool)
	workspace string
}

// disabled says whether a token's client is an application that is taken out. A
// client need not be an application. One of the default workspace counts too:
// tenants share issuers, and so their clients, with it, and this only ever refuses.
func (c *consumers) disabled(name string) bool {
	if c.find == nil {
		return false
	}
	app, ok := c.find(c.workspace, name)
	if !ok {
		app, ok = c.find(config.DefaultWorkspace, name)
	}
	return ok && app.GetDisabled()
}
