package token

import (
	"encoding/base64"
	"strings"
)

// Bounds of one token, in bytes.
const (
	MaxSize       = 16 << 10
	maxHeaderSize = 2 << 10
)

// header is what counts of a JOSE header. jwk, jku, x5c, x5u and their kin are
// not here: a token that brings its own key brings nothing.
type header struct {
	algorithm algorithm
	typ       string
	kid       string
	// named: the header has a kid, be it "".
	named bool
}

// jws is a compact JWS taken apart; nothing of it is verified.
type jws struct {
	header    header
	claims    map[string]any
	signed    string
	signature []byte
	payload   int
}

// split takes a compact JWS apart (RFC 7515 section 3.1). Sizes and alphabet are
// checked before anything is decoded, so a hostile token costs one pass over at
// most 16 KiB.
func split(compact string) (jws, *Refusal) {
	if len(compact) > MaxSize {
		return jws{}, ErrTooLarge
	}
	if strings.Count(compact, ".") != 2 {
		return jws{}, ErrParts
	}
	dot := strings.LastIndexByte(compact, '.')
	signed, tail := compact[:dot], compact[dot+1:]
	head, body, _ := strings.Cut(signed, ".")
	if head == "" || body == "" {
		return jws{}, ErrParts
	}
	if len(head) > base64.RawURLEncoding.EncodedLen(maxHeaderSize) {
		return jws{}, ErrHeaderSize
	}
	rawHeader, ok := decode(head)
	if !ok {
		return jws{}, ErrEncoding
	}
	rawClaims, ok := decode(body)
	if !ok {
		return jws{}, ErrEncoding
	}
	signature, ok := decode(tail)
	if !ok {
		return jws{}, ErrEncoding
	}
	h, refusal := headerOf(string(rawHeader))
	if refusal != nil {
		return jws{}, refusal
	}
	claims, refusal := parseObject(string(rawClaims), ErrClaims)
	if refusal != nil {
		return jws{}, refusal
	}
	return jws{h, claims, signed, signature, len(rawClaims)}, nil
}

// decode reads base64url without padding. The standard decoder skips CR and LF
// wherever they stand and must be kept from it: of two spellings of one token,
// one would escape a revocation or a cache.
func decode(part string) ([]byte, bool) {
	if strings.ContainsAny(part, "\r\n") {
		return nil, false
	}
	out, err := base64.RawURLEncoding.Strict().DecodeString(part)
	return out, err == nil
}

func headerOf(text string) (header, *Refusal) {
	members, refusal := parseObject(text, ErrHeader)
	if refusal != nil {
		return header{}, refusal
	}
	// crit names extensions that must be understood, and none is; b64 changes what
	// is signed (RFC 7797), zip what is read, cty and enc announce a token in a
	// token.
	for _, name := range []string{"crit", "b64", "zip", "cty", "enc"} {
		if _, present := members[name]; present {
			return header{}, ErrExtension
		}
	}
	alg, ok := members["alg"].(string)
	if !ok {
		return header{}, ErrHeader
	}
	h := header{algorithm: algorithm(alg)}
	if h.kid, h.named, ok = optionalString(members, "kid"); !ok {
		return header{}, ErrHeader
	}
	if h.typ, _, ok = optionalString(members, "typ"); !ok {
		return header{}, ErrHeader
	}
	return h, nil
}

// optionalString returns a member that is a string or not there. ok is false
// when it is anything else, null included.
func optionalString(members map[string]any, name string) (v string, present, ok bool) {
	raw, present := members[name]
	if !present {
		return "", false, true
	}
	v, ok = raw.(string)
	return v, true, ok
}
