package balance

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"strings"

	"github.com/cespare/xxhash/v2"

	"portcullis.dev/portcullis/dataplane/exchange"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Keys says what of a request is hashed: the first of them that the request has,
// else the client's address.
type Keys []key

type key struct {
	kind keyKind
	name string
}

type keyKind uint8

const (
	keyAddress keyKind = iota
	keyHeader
	keyCookie
	keyClaim
)

// CompileKeys compiles what an Upstream says.
func CompileKeys(specs []*configv1.HashKey) Keys {
	keys := make(Keys, 0, len(specs))
	for _, spec := range specs {
		switch kind := spec.GetKind().(type) {
		case *configv1.HashKey_Header:
			keys = append(keys, key{keyHeader, kind.Header})
		case *configv1.HashKey_Cookie:
			keys = append(keys, key{keyCookie, kind.Cookie})
		case *configv1.HashKey_Claim:
			keys = append(keys, key{keyClaim, kind.Claim})
		case *configv1.HashKey_Address:
			keys = append(keys, key{kind: keyAddress})
		}
	}
	return keys
}

// Hash returns the hash of the request's key, the same on every node. It
// allocates nothing.
func (ks Keys) Hash(e *exchange.Exchange) uint64 {
	for i := range ks {
		if hash, ok := ks[i].hash(e); ok {
			return hash
		}
	}
	return hashAddress(e)
}

func (k *key) hash(e *exchange.Exchange) (uint64, bool) {
	switch k.kind {
	case keyHeader:
		value, ok := e.Request.Header.Lookup(k.name)
		return xxhash.Sum64String(value), ok
	case keyCookie:
		value, ok := Cookie(&e.Request.Header, k.name)
		return xxhash.Sum64String(value), ok
	case keyClaim:
		return hashClaim(e.Identity.Claims, k.name)
	}
	return hashAddress(e), true
}

func hashAddress(e *exchange.Exchange) uint64 {
	address := e.Request.Peer.As16() // an IPv4 address as the IPv6 address that maps it
	return mix(xxhash.Sum64(address[:]))
}

// hashClaim hashes a claim that is a text, a number or a truth value. Its name
// may hold dots itself, or be a path into objects.
func hashClaim(claims map[string]any, name string) (uint64, bool) {
	if value, ok := claims[name]; ok {
		switch v := value.(type) {
		case string:
			return xxhash.Sum64String(v), true
		case json.Number:
			return xxhash.Sum64String(string(v)), true
		case float64:
			var bits [8]byte
			binary.LittleEndian.PutUint64(bits[:], math.Float64bits(v))
			return xxhash.Sum64(bits[:]), true
		case bool:
			if v {
				return mix(2), true
			}
			return mix(1), true
		}
		return 0, false
	}
	first, rest, more := strings.Cut(name, ".")
	if inner, ok := claims[first].(map[string]any); more && ok {
		return hashClaim(inner, rest)
	}
	return 0, false
}

// Cookie returns the value of the first cookie of that name (RFC 6265, 4.2.1),
// without the quotes around it.
func Cookie(h *exchange.Header, name string) (string, bool) {
	for _, f := range h.Fields() {
		if !exchange.EqualFold(f.Name, "Cookie") {
			continue
		}
		for rest := f.Value; rest != ""; {
			var pair string
			pair, rest, _ = strings.Cut(rest, ";")
			have, value, ok := strings.Cut(strings.Trim(pair, " \t"), "=")
			if !ok || have != name {
				continue
			}
			if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
				value = value[1 : len(value)-1]
			}
			return value, true
		}
	}
	return "", false
}
