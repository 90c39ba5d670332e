package token

import (
	"crypto/sha256"
	"time"
	"unsafe"
)

// Verifier verifies the tokens of the issuers that one policy trusts. It is
// immutable and safe for concurrent use; its issuers' keys change beneath it.
type Verifier struct{ issuers []*Issuer }

// NewVerifier makes a verifier that trusts the issuers. Two of them may share an
// iss claim; the one that has the token's key is asked.
func NewVerifier(issuers ...*Issuer) *Verifier { return &Verifier{issuers} }

// Verify checks a token in the order of the refusals above, except for what may
// never be remembered and is the caller's to ask on every request: its audience,
// its binding to a certificate, its revocation. now decides by its wall clock.
//
// A token that has been verified before and whose key is still its issuer's costs
// a hash and a lookup, and no allocation. The issuer is returned with a refusal
// too, as soon as it is known; see Refusal for what it may mean.
func (v *Verifier) Verify(compact string, now time.Time) (*Token, *Issuer, *Refusal) {
	at := now.Unix()
	if len(compact) > MaxSize {
		return nil, nil, ErrTooLarge
	}
	sum := digest(compact)
	for _, i := range v.issuers {
		e := i.cache.get(&sum, &i.profile)
		if e == nil {
			continue
		}
		current, refusal := i.current(&e.key, at)
		if refusal == nil && !current {
			break // the key was withdrawn: see whether the token holds without it
		}
		if refusal == nil {
			refusal = i.inTime(e.token, at)
		}
		if refusal != nil {
			return nil, i, refusal
		}
		return e.token, i, nil
	}
	return v.verify(compact, &sum, at)
}

func (v *Verifier) verify(compact string, sum *[sha256.Size]byte, at int64) (*Token, *Issuer, *Refusal) {
	j, refusal := split(compact)
	if refusal != nil {
		return nil, nil, refusal
	}
	i, refusal := v.issuerOf(&j, at)
	if refusal != nil {
		return nil, i, refusal
	}
	if !i.accepts(j.header.typ) {
		return nil, i, ErrType
	}
	if !isAccessToken(j.claims) {
		return nil, i, ErrNotAccess
	}
	k, refusal := i.key(&j.header, at)
	if refusal != nil {
		return nil, i, refusal
	}
	if !k.algorithm.verify(k.public, []byte(j.signed), j.signature) {
		return nil, i, ErrSignature
	}
	t, refusal := tokenOf(j.claims, i.claims)
	if refusal == nil {
		refusal = i.inTime(t, at)
	}
	if refusal != nil {
		return nil, i, refusal
	}
	i.cache.put(&entry{
		sum: *sum, profile: i.profile, key: k.print, token: t,
		size: entryOverhead + j.payload + sizeOf(t.Claims), expires: t.Expires + i.skew,
	}, at)
	return t, i, nil
}

// issuerOf finds the issuer by the exact iss claim.
func (v *Verifier) issuerOf(j *jws, at int64) (*Issuer, *Refusal) {
	iss, present, ok := optionalString(j.claims, "iss")
	if !ok {
		return nil, ErrClaimType
	}
	if !present {
		return nil, ErrIssuer
	}
	var found *Issuer
	for _, i := range v.issuers {
		if i.issuer != iss {
			continue
		}
		if found == nil {
			found = i
		}
		if _, refusal := i.key(&j.header, at); refusal == nil {
			return i, nil
		}
	}
	if found == nil {
		return nil, ErrIssuer
	}
	return found, nil
}

// inTime checks what time changes. Skew is given on both sides.
func (i *Issuer) inTime(t *Token, at int64) *Refusal {
	if at >= t.Expires+i.skew {
		return ErrExpired
	}
	if at < t.NotBefore-i.skew || at < t.IssuedAt-i.skew {
		return ErrNotYetValid
	}
	if t.Expires-t.IssuedAt > i.lifetime {
		return ErrLifetime
	}
	return nil
}

// digest hashes the exact token, without copying it: Sum256 only reads.
func digest(compact string) [sha256.Size]byte {
	return sha256.Sum256(unsafe.Slice(unsafe.StringData(compact), len(compact)))
}
