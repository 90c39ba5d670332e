package upstream

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/upstream/balance"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// defaultCookie names the affinity cookie.
const defaultCookie = "portcullis-affinity"

// affinity keeps clients on endpoints by a cookie. What the cookie says is a keyed
// hash of the endpoint: the same on every node with the same key, and no client
// learns an address from it. A forged one chooses an endpoint that the client
// could have been given anyway. It is immutable.
type affinity struct {
	name, suffix string
}

func newAffinity(spec *configv1.Affinity) *affinity {
	a := &affinity{name: cmp.Or(spec.GetCookie(), defaultCookie), suffix: "; Path=/; HttpOnly; SameSite=Lax"}
	if spec.GetMaxAge() != nil {
		a.suffix += fmt.Sprintf("; Max-Age=%d", int64(spec.GetMaxAge().AsDuration().Seconds()))
	}
	return a
}

// affinityID names an endpoint of an upstream; never 0.
func affinityID(key []byte, of endpointKey) uint64 {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%q %q %q", of.upstream.Workspace, of.upstream.Name, of.at.url())
	return max(1, binary.BigEndian.Uint64(mac.Sum(nil)))
}

// asked returns the id in the request's cookie; 0 when there is none.
func (a *affinity) asked(e *exchange.Exchange) uint64 {
	text, ok := balance.Cookie(&e.Request.Header, a.name)
	if !ok || len(text) != 16 {
		return 0
	}
	id, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return 0
	}
	return id
}

// cookie renders the Set-Cookie field (RFC 6265, 4.1).
func (a *affinity) cookie(id uint64, secure bool) string {
	field := fmt.Sprintf("%s=%016x%s", a.name, id, a.suffix)
	if secure {
		field += "; Secure"
	}
	return field
}
