// Package credential holds API keys: how one is made, how it is stored, and the
// set of a million of them that a node looks them up in. It owns the packed
// record in which they travel. It must not know applications, policies or
// requests, and it never sees a key in clear except to make or parse one.
package credential

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// ErrInvalid says that a credential or a record of one cannot be used.
var ErrInvalid = errors.New("invalid credential")

// Credential is what a node knows of an API key.
type Credential struct {
	// SHA256 of the whole key as its owner sends it.
	SHA256 [32]byte
	// ID is what a revocation calls it: it follows from SHA256; see
	// revocation.CredentialKey.
	ID [16]byte
	// Workspace and Application name its consumer.
	Workspace, Application string
	// Scopes narrow the application's, separated by single spaces; "" for all of
	// them.
	Scopes string
	// Expires is a Unix second, up to 2106; 0 for never.
	Expires int64
}

// Of returns the credential of a Credential resource. It checks what the record
// can hold, not whether the application exists. Errors are ErrInvalid.
func Of(r *configv1.Resource) (Credential, error) {
	m, spec := r.GetMetadata(), r.GetCredential()
	fail := func(format string, args ...any) (Credential, error) {
		return Credential{}, fmt.Errorf("%w %s/%s: %s", ErrInvalid, m.GetWorkspace(), m.GetName(), fmt.Sprintf(format, args...))
	}
	sum := spec.GetApiKey().GetSha256()
	switch {
	case spec == nil:
		return fail("the resource is no Credential")
	case m.GetWorkspace() == "" || m.GetName() == "":
		return fail("it needs a workspace and a name")
	case spec.GetApiKey() == nil:
		return fail("spec.apiKey is missing")
	case len(sum) != sha256.Size:
		return fail("spec.apiKey.sha256 has %d bytes, want 32", len(sum))
	}
	c := Credential{
		SHA256:      [32]byte(sum),
		ID:          revocation.CredentialKey([sha256.Size]byte(sum)),
		Workspace:   m.GetWorkspace(),
		Application: spec.GetApplication(),
		Scopes:      strings.Join(spec.GetScopes(), " "),
	}
	for i, scope := range spec.GetScopes() {
		if scope == "" || strings.ContainsFunc(scope, notScope) {
			return fail("spec.scopes[%d] is no scope (RFC 6749, 3.3)", i)
		}
	}
	if t := spec.GetExpiresAt(); t != nil {
		// Rounded down: a key never outlives its date.
		if c.Expires = t.GetSeconds(); !t.IsValid() || c.Expires <= 0 {
			return fail("spec.expiresAt is before 1970")
		}
	}
	if err := c.check(); err != nil {
		return fail("%v", err)
	}
	return c, nil
}

// notScope says that r may not stand in a scope (RFC 6749, section 3.3).
func notScope(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }

// check refuses what a record cannot hold or a reader could misread.
func (c Credential) check() error {
	switch {
	case c.Workspace == "":
		return errors.New("the workspace is empty")
	case c.Application == "":
		return errors.New("the application is empty")
	case c.Expires < 0 || c.Expires > math.MaxUint32:
		return errors.New("the expiry is after the year 2105")
	case revocation.Key(c.ID).Kind() != kind:
		return errors.New("the id is no credential's")
	}
	return checkScopes(c.Scopes)
}

func checkScopes(scopes string) error {
	if scopes == "" {
		return nil
	}
	for scope := range strings.SplitSeq(scopes, " ") {
		if scope == "" || strings.ContainsFunc(scope, notScope) {
			return errors.New("the scopes are not separated by single spaces")
		}
	}
	return nil
}

// ExpiredAt says whether the credential has expired at the Unix second now.
func (c Credential) ExpiredAt(now int64) bool { return c.Expires != 0 && now >= c.Expires }

// Digest is SHA-256 over every field, each string preceded by its length. The
// digest of a set is the XOR of those of its credentials.
func (c Credential) Digest() [32]byte {
	var stack [256]byte
	b := append(stack[:0], "portcullis credential 1\x00"...)
	b = append(b, c.SHA256[:]...)
	b = append(b, c.ID[:]...)
	for _, s := range [...]string{c.Workspace, c.Application, c.Scopes} {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	return sha256.Sum256(binary.BigEndian.AppendUint64(b, uint64(c.Expires)))
}
