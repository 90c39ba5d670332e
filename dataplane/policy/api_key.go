package policy

import (
	"slices"
	"strings"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// defaultKeyHeader carries API keys unless the policy says otherwise.
const defaultKeyHeader = "X-API-Key"

// addAPIKey compiles an authenticator by API key.
func (c *compiler) addAPIKey(d declared, k *configv1.APIKey) error {
	switch {
	case c.deps.Credentials == nil:
		return errNeeds("Credentials")
	case c.deps.Application == nil:
		return errNeeds("Application")
	}
	header := k.GetHeader()
	if header == "" {
		header = defaultKeyHeader
	}
	l := &c.levels[d.Level]
	for _, other := range l.keys {
		if exchange.EqualFold(other.header, header) {
			return nil // the same alternative twice
		}
	}
	if l.origin == "" {
		l.origin = d.Origin
	}
	l.keys = append(l.keys, &apiKey{
		header: header, scheme: exchange.EqualFold(header, authorization), origin: d.Origin,
		credentials: c.deps.Credentials, revocations: c.deps.Revocations,
		applications: consumers{find: c.deps.Application, workspace: c.route.Workspace},
	})
	return nil
}

// apiKey authenticates with a key in a header of its own, or with the scheme
// ApiKey in the Authorization header.
type apiKey struct {
	header string
	scheme bool
	origin string

	credentials  *credential.Set
	revocations  *revocation.Set
	applications consumers
}

func (k *apiKey) do(e *exchange.Exchange, key string, now time.Time, fresh *freshness) *Denial {
	sum, ok := credential.Parse(key)
	if !ok {
		return k.deny(CredentialMalformed, "the API key is not of the form of one: was it cut off?")
	}
	c, ok := k.credentials.Lookup(&sum)
	if !ok {
		return k.deny(KeyUnknown, "the API key does not exist")
	}
	// A key is good for the routes of its application's workspace alone.
	app, ok := k.applications.find(k.applications.workspace, c.Application)
	if !ok || c.Workspace != k.applications.workspace || app.GetDisabled() {
		return k.deny(KeyUnknown, "the API key does not exist")
	}
	if c.ExpiredAt(now.Unix()) {
		return k.deny(KeyExpired, "the API key has expired")
	}
	if d := fresh.check(e, now); d != nil {
		return d
	}
	// A key has no time of issue, so every watermark hits it.
	subject := revocation.Subject{Subject: c.Application, Client: c.Application, Credential: c.ID}
	if _, revoked := k.revocations.Revoked(&subject); revoked {
		return k.deny(TokenRevoked, "the API key has been revoked")
	}
	e.Identity = exchange.Identity{
		Method: methodAPIKey, Subject: c.Application, Client: c.Application, Credential: c.ID,
		Scopes: narrowed(app.GetScopes(), c.Scopes), Roles: app.GetRoles(), Groups: app.GetGroups(),
	}
	if c.Expires != 0 {
		e.Identity.ExpiresAt = time.Unix(c.Expires, 0)
	}
	return nil
}

func (k *apiKey) deny(reason Reason, detail string) *Denial {
	return &Denial{Reason: reason, Policy: k.origin, Detail: detail, Challenges: []string{apiKeyChallenge(k.header)}}
}

// narrowed returns the scopes that both the application and the key have; a key
// that names none has all of its application's.
func narrowed(application []string, key string) []string {
	if key == "" {
		return application
	}
	var both []string
	for scope := range strings.SplitSeq(key, " ") {
		if slices.Contains(application, scope) {
			both = append(both, scope)
		}
	}
	return both
}
