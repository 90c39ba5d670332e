package revocation

import (
	"encoding/binary"
	"iter"
	"math"
	"sync/atomic"

	"portcullis.dev/portcullis/pkg/internal/slab"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	// forever is how a record says Always and never.
	forever = math.MaxUint32
	// grace is how many seconds an entry outlives its Expires, for verifiers that
	// allow a minute of skew, and for clocks that are minutes apart.
	grace = 600
)

// Set is what has been revoked. It only grows, apart from Expire: of two
// entries with one key the later Before and the later Expires hold, so that no
// order of arrival, repetition or rollback takes a revocation back. Safe for
// concurrent use; Revoked takes no lock and does not allocate.
//
// A million entries take 28 to 45 MB, without a pointer for the collector to
// follow.
type Set struct {
	entries *slab.Map
	// How many entries each kind has, unbound and bound to an issuer: what cannot
	// hit is not hashed.
	lanes [16]atomic.Int64
	// No entry expires before this Unix second.
	earliest atomic.Int64
}

// NewSet makes an empty set.
func NewSet() *Set {
	s := &Set{entries: slab.New(2, 3)}
	s.earliest.Store(math.MaxInt64)
	return s
}

// Add adds entries. When it returns, every later call of Revoked knows them.
func (s *Set) Add(entries ...Entry) {
	for _, e := range entries {
		before, expires := clamp(e.Before, 0), uint32(forever)
		if e.Expires != 0 {
			expires = clamp(e.Expires, 1)
		}
		key := e.Key.words()
		s.entries.Update(key[:], func(old []uint64) []uint64 {
			if old == nil {
				s.lanes[e.Key.lane()].Add(1)
				return []uint64{key[0], key[1], pack(before, expires)}
			}
			b, x := unpack(old[2])
			later := pack(max(b, before), max(x, expires))
			if later == old[2] {
				return old
			}
			return []uint64{key[0], key[1], later}
		})
		// Only now: had Expire passed in between, it would have forgotten it.
		if expires != forever {
			s.hasten(int64(expires))
		}
	}
}

// hasten notes that something expires at t.
func (s *Set) hasten(t int64) {
	for {
		at := s.earliest.Load()
		if at <= t || s.earliest.CompareAndSwap(at, t) {
			return
		}
	}
}

// Subject is what a request presents. Empty strings and the zero Credential are
// not looked up. Nothing is hashed that no entry could match.
type Subject struct {
	JTI, Session, Subject, Client, Issuer string
	// Credential is the API key's, from its record; see CredentialKey.
	Credential Key
	// IssuedAt is the token's iat, rounded down; Unix seconds. 0 when it has none,
	// which every entry hits.
	IssuedAt int64
}

// Revoked says whether any entry hits the subject, and of which kind it is.
func (s *Set) Revoked(t *Subject) (controlv1.RevocationKind, bool) {
	const (
		jti        = controlv1.RevocationKind_REVOCATION_KIND_JTI
		session    = controlv1.RevocationKind_REVOCATION_KIND_SESSION
		subject    = controlv1.RevocationKind_REVOCATION_KIND_SUBJECT
		client     = controlv1.RevocationKind_REVOCATION_KIND_CLIENT
		issuer     = controlv1.RevocationKind_REVOCATION_KIND_ISSUER
		credential = controlv1.RevocationKind_REVOCATION_KIND_CREDENTIAL
	)
	switch {
	case s.hits(jti, t.Issuer, t.JTI, t.IssuedAt):
		return jti, true
	case s.hits(session, t.Issuer, t.Session, t.IssuedAt):
		return session, true
	case s.hits(subject, t.Issuer, t.Subject, t.IssuedAt):
		return subject, true
	case s.hits(client, t.Issuer, t.Client, t.IssuedAt):
		return client, true
	case s.hits(issuer, "", t.Issuer, t.IssuedAt):
		return issuer, true
	case t.Credential != Key{} && s.holds(t.Credential, t.IssuedAt):
		return credential, true
	}
	return controlv1.RevocationKind_REVOCATION_KIND_UNSPECIFIED, false
}

func (s *Set) hits(kind controlv1.RevocationKind, issuer, value string, issued int64) bool {
	if value == "" {
		return false
	}
	if s.lanes[kind<<1].Load() > 0 && s.holds(KeyOf(kind, "", value), issued) {
		return true
	}
	return issuer != "" && s.lanes[kind<<1|1].Load() > 0 && s.holds(KeyOf(kind, issuer, value), issued)
}

func (s *Set) holds(k Key, issued int64) bool {
	if s.lanes[k.lane()].Load() == 0 {
		return false
	}
	key := k.words()
	slot, ok := s.entries.Find(key[:])
	if !ok {
		return false
	}
	before, _ := unpack(slot.Word(2))
	return before == forever || issued <= int64(before)
}

// Expire drops the entries that can hit nothing any more at the Unix second now
// and returns how many: those whose Expires is more than ten minutes past, since
// verifiers allow skew and clocks differ. It costs nothing when there are none.
func (s *Set) Expire(now int64) int {
	now -= grace
	if now <= s.earliest.Load() {
		return 0
	}
	// Entries added from here on hasten again; those already there are seen below.
	s.earliest.Store(math.MaxInt64)
	return s.entries.Filter(func(rec []uint64) bool {
		_, expires := unpack(rec[2])
		switch {
		case expires == forever:
			return true
		case int64(expires) >= now:
			s.hasten(int64(expires))
			return true
		}
		s.lanes[keyOfWords(rec).lane()].Add(-1)
		return false
	})
}

// All yields the entries that are there throughout, in no order.
func (s *Set) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for rec := range s.entries.All {
			k := keyOfWords(rec)
			before, expires := unpack(rec[2])
			e := Entry{Kind: k.Kind(), Key: k, Before: int64(before), Expires: int64(expires)}
			if before == forever {
				e.Before = Always
			}
			if expires == forever {
				e.Expires = 0
			}
			if !yield(e) {
				return
			}
		}
	}
}

// Len returns the number of entries.
func (s *Set) Len() int { return s.entries.Len() }

// Bytes returns how much memory the entries take.
func (s *Set) Bytes() int { return s.entries.Bytes() }

func keyOfWords(rec []uint64) (k Key) {
	binary.LittleEndian.PutUint64(k[:8], rec[0])
	binary.LittleEndian.PutUint64(k[8:], rec[1])
	return k
}

func pack(before, expires uint32) uint64 { return uint64(before)<<32 | uint64(expires) }

func unpack(w uint64) (before, expires uint32) { return uint32(w >> 32), uint32(w) }

// clamp brings seconds into range; what lies beyond it lasts for ever.
func clamp(seconds int64, least uint32) uint32 {
	return uint32(min(max(seconds, int64(least)), forever))
}
