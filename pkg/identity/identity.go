// Package identity says who is who inside a cluster: the cluster's certificate
// authority, the certificates of nodes and replicas, join tokens, operator
// credentials and the keys that sign versions. It is the only place that builds
// a tls.Config. It must not know where any of it is kept, nor what a peer, once
// known, may read or write beyond its role.
package identity

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Role is what a member of the cluster does.
type Role string

// The roles.
const (
	Dataplane    Role = "dataplane"
	Controlplane Role = "controlplane"
)

// TrustDomain is the SPIFFE trust domain of every cluster's certificates. What
// tells clusters apart is their CA.
const TrustDomain = "portcullis"

// Identity is a member of the cluster. A certificate carries it as its only URI
// name, spiffe://portcullis/<role>/<name>.
type Identity struct {
	Role Role
	Name string
}

// ErrIdentity says that a certificate, request or URI names no member.
var ErrIdentity = errors.New("no portcullis identity")

// String returns the SPIFFE URI.
func (i Identity) String() string {
	return "spiffe://" + TrustDomain + "/" + string(i.Role) + "/" + i.Name
}

// Check reports what is wrong with an identity: the role must be known, the name
// 1 to 63 of [a-z0-9.-], beginning and ending with a letter or digit.
func (i Identity) Check() error {
	if i.Role != Dataplane && i.Role != Controlplane {
		return fmt.Errorf("%w: role %q is neither %s nor %s", ErrIdentity, i.Role, Dataplane, Controlplane)
	}
	n := i.Name
	ok := len(n) > 0 && len(n) <= 63 && alnum(n[0]) && alnum(n[len(n)-1])
	for k := 0; ok && k < len(n); k++ {
		ok = alnum(n[k]) || n[k] == '-' || n[k] == '.'
	}
	if !ok {
		return fmt.Errorf("%w: name %q is not 1 to 63 of a-z, 0-9, '-', '.', with a letter or digit at both ends", ErrIdentity, n)
	}
	return nil
}

func alnum(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// ParseURI reads a SPIFFE URI in exactly the form that String writes.
func ParseURI(s string) (Identity, error) {
	rest, ok := strings.CutPrefix(s, "spiffe://"+TrustDomain+"/")
	role, name, two := strings.Cut(rest, "/")
	if !ok || !two {
		return Identity{}, fmt.Errorf("%w: %q is not spiffe://%s/<role>/<name>", ErrIdentity, s, TrustDomain)
	}
	i := Identity{Role(role), name}
	return i, i.Check()
}

// identityOf reads the one URI name of a certificate or request (X.509-SVID,
// section 2: exactly one).
func identityOf(uris []*url.URL) (Identity, error) {
	if len(uris) != 1 {
		return Identity{}, fmt.Errorf("%w: %d URI names, want 1", ErrIdentity, len(uris))
	}
	return ParseURI(uris[0].String())
}

func (i Identity) uri() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: TrustDomain, Path: "/" + string(i.Role) + "/" + i.Name}
}

// usages says what a certificate of the role may be used for. A node never
// serves under a cluster certificate, so that a stolen one cannot pose as the
// control plane even to a client that forgets to look at the role.
func (r Role) usages() []x509.ExtKeyUsage {
	if r == Controlplane {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
}
