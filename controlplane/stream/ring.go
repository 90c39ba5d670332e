package stream

import (
	"bytes"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Change is one committed version and what it changed. Once published nobody may
// modify what it refers to.
type Change struct {
	Version config.Version
	// Previous is the version that this one follows.
	Previous          config.Version
	Upserts           []*configv1.Resource
	Deletes           []config.Key
	Credentials       []credential.Credential
	CredentialDeletes [][32]byte
	Revocations       []*controlv1.Revocation
	// Digest of the whole state at Version.
	Digest Digest
	// RevocationsRevision is the newest revocation's revision at Version.
	RevocationsRevision int64
}

func (c *Change) head() Head { return Head{c.Version, c.Digest, c.RevocationsRevision} }

// size estimates the bytes that the change keeps alive.
func (c *Change) size() int {
	n := 256 + 96*len(c.Deletes) + 128*len(c.Credentials) + 32*len(c.CredentialDeletes) + 96*len(c.Revocations)
	for _, r := range c.Upserts {
		n += 2*proto.Size(r) + 128
	}
	return n
}

// Head is what is known of the newest version.
type Head struct {
	Version config.Version
	// Digest of the whole state at Version.
	Digest Digest
	// Revocations is the newest revocation's revision.
	Revocations int64
}

// ring holds the last changes, bounded in count and bytes, so that a node that
// was away for a moment gets what it missed and not everything. Not safe for
// concurrent use.
type ring struct {
	maxCount, maxBytes int
	// base is the state on which the oldest change stands.
	base    Head
	changes []*Change
	bytes   int
}

// reset forgets all changes: deltas start at base from now on.
func (r *ring) reset(base Head) {
	r.base, r.changes, r.bytes = base, nil, 0
}

func (r *ring) add(c *Change) {
	r.changes = append(r.changes, c)
	r.bytes += c.size()
	for len(r.changes) > 0 && (len(r.changes) > r.maxCount || r.bytes > r.maxBytes) {
		old := r.changes[0]
		r.base = old.head()
		r.bytes -= old.size()
		r.changes[0] = nil
		r.changes = r.changes[1:]
	}
}

// covers reports whether the ring holds every change after v.
func (r *ring) covers(v config.Version) bool {
	return v.Epoch == r.base.Version.Epoch && v.Compare(r.base.Version) >= 0
}

// digestAt returns the digest of the state at v, for a v that the ring covers.
func (r *ring) digestAt(v config.Version) (Digest, bool) {
	if !r.covers(v) {
		return Digest{}, false
	}
	i := r.after(v)
	if i == 0 {
		return r.base.Digest, true
	}
	return r.changes[i-1].Digest, true
}

// after returns the index of the first change after v.
func (r *ring) after(v config.Version) int {
	i, found := slices.BinarySearchFunc(r.changes, v, func(c *Change, v config.Version) int { return c.Version.Compare(v) })
	if found {
		i++
	}
	return i
}

// merged is what several changes come to: the last word on each key.
type merged struct {
	upserts           []*configv1.Resource
	deletes           []config.Key
	credentials       []credential.Credential
	credentialDeletes [][32]byte
	revocations       []*controlv1.Revocation
}

// since merges the changes after v, which the ring must cover. The result is in
// a stable order, so that its encoding is too.
func (r *ring) since(v config.Version) merged {
	changes := r.changes[r.after(v):]
	var m merged
	if len(changes) == 1 {
		c := changes[0]
		return merged{c.Upserts, c.Deletes, c.Credentials, c.CredentialDeletes, c.Revocations}
	}
	resources := map[config.Key]*configv1.Resource{}
	credentials := map[[32]byte]*credential.Credential{}
	for _, c := range changes {
		for _, k := range c.Deletes {
			resources[k] = nil
		}
		for _, u := range c.Upserts {
			resources[config.KeyOf(u)] = u
		}
		for _, d := range c.CredentialDeletes {
			credentials[d] = nil
		}
		for i := range c.Credentials {
			credentials[c.Credentials[i].SHA256] = &c.Credentials[i]
		}
		m.revocations = append(m.revocations, c.Revocations...)
	}
	for _, k := range slices.SortedFunc(maps.Keys(resources), config.Key.Compare) {
		if u := resources[k]; u != nil {
			m.upserts = append(m.upserts, u)
		} else {
			m.deletes = append(m.deletes, k)
		}
	}
	for _, sha := range slices.SortedFunc(maps.Keys(credentials), func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) }) {
		if c := credentials[sha]; c != nil {
			m.credentials = append(m.credentials, *c)
		} else {
			m.credentialDeletes = append(m.credentialDeletes, sha)
		}
	}
	return m
}

// revocationsSince returns the entries after v, which the ring must cover.
func (r *ring) revocationsSince(v config.Version) []*controlv1.Revocation {
	var out []*controlv1.Revocation
	for _, c := range r.changes[r.after(v):] {
		out = append(out, c.Revocations...)
	}
	return out
}
