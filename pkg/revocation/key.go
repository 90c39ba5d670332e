// Package revocation answers whether a token or key has been revoked, and how
// sure one can be of the answer. It owns the entries, the set built from them
// and the bookkeeping of staleness. It must not know how entries travel, what a
// token looks like, or what to do with one that is revoked.
package revocation

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// ErrInvalid says that a revocation from outside cannot be used.
var ErrInvalid = errors.New("invalid revocation")

// Key names what is revoked: 124 bits of SHA-256 over kind, issuer and value,
// each preceded by its length. The low four bits of the last byte hold the kind
// (times two) and whether the key is bound to an issuer, so that a set knows
// which lookups can hit without keeping the strings.
type Key [16]byte

// KeyOf makes the key of a value; an empty issuer stands for any. Issuers and
// credentials have no issuer besides themselves: for REVOCATION_KIND_ISSUER
// the value is the issuer, given as either argument. It does not allocate for
// arguments of up to 400 bytes together.
func KeyOf(kind controlv1.RevocationKind, issuer, value string) Key {
	switch kind {
	case controlv1.RevocationKind_REVOCATION_KIND_ISSUER:
		if value == "" {
			value = issuer
		}
		issuer = ""
	case controlv1.RevocationKind_REVOCATION_KIND_CREDENTIAL:
		issuer = ""
	}
	var stack [512]byte
	b := append(stack[:0], "portcullis revocation 1\x00"...)
	b = binary.BigEndian.AppendUint32(b, uint32(kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(issuer)))
	b = append(b, issuer...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(value)))
	b = append(b, value...)
	sum := sha256.Sum256(b)
	k := Key(sum[:16])
	k[15] = k[15]&0xf0 | byte(kind)<<1&0x0e
	if issuer != "" {
		k[15] |= 1
	}
	return k
}

// CredentialKey is the key of the API key whose SHA-256 is given. It belongs to
// the key and not to its name, so that a new key under a revoked one's name is
// not revoked with it.
func CredentialKey(sum [sha256.Size]byte) Key {
	return KeyOf(controlv1.RevocationKind_REVOCATION_KIND_CREDENTIAL, "", hex.EncodeToString(sum[:]))
}

// Kind returns what kind of thing the key names.
func (k Key) Kind() controlv1.RevocationKind {
	return controlv1.RevocationKind(k[15] >> 1 & 7)
}

// Bound says that the key holds for one issuer only.
func (k Key) Bound() bool { return k[15]&1 != 0 }

// String returns the key in hexadecimal.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// lane is what the key can be found by: its kind and whether it is bound.
func (k Key) lane() int { return int(k[15] & 0x0f) }

func (k Key) words() [2]uint64 {
	return [2]uint64{binary.LittleEndian.Uint64(k[:8]), binary.LittleEndian.Uint64(k[8:])}
}

// Always as Entry.Before revokes a token whenever it was issued.
const Always = math.MaxInt64

// Entry is one revocation. Times are kept to the second, from 1970 to 2106;
// outside of it they move to the side that revokes more.
type Entry struct {
	// Kind is that of the Key, whatever is put here.
	Kind controlv1.RevocationKind
	Key  Key
	// Tokens issued at or before this are revoked: Unix seconds, or Always.
	Before int64
	// Expires is when the last token that the entry can hit has expired: Unix
	// seconds; 0 for never.
	Expires int64
}

// EntryOf checks a revocation from outside. Errors are ErrInvalid.
func EntryOf(r *controlv1.Revocation) (Entry, error) {
	if len(r.GetKey()) != len(Key{}) {
		return Entry{}, fmt.Errorf("%w: key of %d bytes, want 16", ErrInvalid, len(r.GetKey()))
	}
	k := Key(r.GetKey())
	if k.Kind() != r.GetKind() ||
		k.Kind() <= controlv1.RevocationKind_REVOCATION_KIND_UNSPECIFIED ||
		k.Kind() > controlv1.RevocationKind_REVOCATION_KIND_CREDENTIAL {
		return Entry{}, fmt.Errorf("%w: kind %v with a key of %v", ErrInvalid, r.GetKind(), k.Kind())
	}
	e := Entry{Kind: k.Kind(), Key: k, Before: Always}
	if t := r.GetRevokedBefore(); t != nil {
		if !t.IsValid() {
			return Entry{}, fmt.Errorf("%w: revoked_before out of range", ErrInvalid)
		}
		// Token times are whole seconds, rounded down: so is this.
		e.Before = t.GetSeconds()
	}
	if t := r.GetExpiresAt(); t != nil {
		if !t.IsValid() {
			return Entry{}, fmt.Errorf("%w: expires_at out of range", ErrInvalid)
		}
		e.Expires = max(t.GetSeconds(), 1)
		if t.GetNanos() > 0 {
			e.Expires++
		}
	}
	return e, nil
}

// Proto is the entry as it travels, without its revision.
func (e Entry) Proto() *controlv1.Revocation {
	r := &controlv1.Revocation{Kind: e.Key.Kind(), Key: e.Key[:]}
	if e.Before != Always {
		r.RevokedBefore = timestamppb.New(time.Unix(e.Before, 0))
	}
	if e.Expires != 0 {
		r.ExpiresAt = timestamppb.New(time.Unix(e.Expires, 0))
	}
	return r
}
