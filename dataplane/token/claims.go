package token

import (
	"crypto/sha256"
	"encoding/json"
	"math"
	"strings"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Token is a token whose signature and claims have been verified. It is shared
// between requests: read only.
type Token struct {
	// Issuer is the iss claim.
	Issuer  string
	Subject string
	// ID and Session are jti and sid, empty when the token has none.
	ID, Session string
	Client      string
	Audience    []string
	Scopes      []string
	Roles       []string
	Groups      []string
	Claims      map[string]any
	// Unix seconds; NotBefore is 0 without nbf.
	IssuedAt, NotBefore, Expires int64
	// Thumbprint is the SHA-256 of the certificate that the client has to show
	// (RFC 8705 section 3.1); nil for a bearer token.
	Thumbprint []byte
}

// ForAny says whether the token is for one of the audiences.
func (t *Token) ForAny(audiences []string) bool {
	for _, have := range t.Audience {
		for _, want := range audiences {
			if have == want {
				return true
			}
		}
	}
	return false
}

// tokenOf reads the claims of a token whose signature holds.
func tokenOf(claims map[string]any, names *configv1.ClaimNames) (*Token, *Refusal) {
	t := &Token{Claims: claims}
	for name, to := range map[string]*string{"iss": &t.Issuer, "sub": &t.Subject, "jti": &t.ID, "sid": &t.Session} {
		v, _, ok := optionalString(claims, name)
		if !ok || !printable(v) {
			return nil, ErrClaimType
		}
		*to = v
	}
	if refusal := t.readTimes(); refusal != nil {
		return nil, refusal
	}
	var ok bool
	if t.Audience, ok = list(claims["aud"], false); !ok || claims["aud"] == nil && has(claims, "aud") {
		return nil, ErrClaimType
	}
	if t.Client, ok = clientOf(claims, names.GetClient()); !ok {
		return nil, ErrClaimType
	}
	if t.Scopes, ok = list(lookup(claims, names.GetScopes(), "scope", "scp"), true); !ok {
		return nil, ErrClaimType
	}
	if t.Roles, ok = list(lookup(claims, names.GetRoles(), "roles"), false); !ok {
		return nil, ErrClaimType
	}
	if t.Groups, ok = list(lookup(claims, names.GetGroups(), "groups"), false); !ok {
		return nil, ErrClaimType
	}
	return t, t.readBinding()
}

// readTimes reads the NumericDates (RFC 7519 section 2). A fraction is rounded to
// the side that accepts less.
func (t *Token) readTimes() *Refusal {
	for _, c := range []struct {
		name  string
		to    *int64
		round func(float64) float64
		none  *Refusal
	}{
		{"exp", &t.Expires, math.Floor, ErrNoExpiry},
		{"iat", &t.IssuedAt, math.Floor, ErrNoIssuedAt},
		{"nbf", &t.NotBefore, math.Ceil, nil},
	} {
		raw, present := t.Claims[c.name]
		if !present {
			if c.none != nil {
				return c.none
			}
			continue
		}
		const year9999 = 253402300799
		v, ok := numeric(raw)
		if !ok || !(v >= 0 && v <= year9999) {
			return ErrClaimType
		}
		*c.to = int64(c.round(v))
	}
	return nil
}

// numeric returns the value of a JSON number.
func numeric(raw any) (float64, bool) {
	switch v := raw.(type) {
	case float64:
		return v, true
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	}
	return 0, false
}

// readBinding reads cnf (RFC 7800). A token that is bound in a way that nobody
// here checks is refused: to take it as a bearer token would undo the binding.
func (t *Token) readBinding() *Refusal {
	raw, present := t.Claims["cnf"]
	if !present {
		return nil
	}
	cnf, ok := raw.(map[string]any)
	if !ok {
		return ErrClaimType
	}
	text, ok := cnf["x5t#S256"].(string)
	if !ok || len(cnf) != 1 {
		return ErrBinding
	}
	sum, ok := decode(text)
	if !ok || len(sum) != sha256.Size {
		return ErrClaimType
	}
	t.Thumbprint = sum
	return nil
}

// isAccessToken tells an access token from what the same issuer signs with the
// same key and type for other purposes: ID tokens (OpenID Connect Core 2, 3.3.2.11),
// logout tokens (Back-Channel Logout 2.4), and what some issuers mark themselves.
func isAccessToken(claims map[string]any) bool {
	for _, name := range []string{"nonce", "at_hash", "c_hash", "s_hash", "events"} {
		if has(claims, name) {
			return false
		}
	}
	if use, present := claims["token_use"]; present && use != "access" {
		return false
	}
	if typ, present := claims["typ"]; present {
		s, ok := typ.(string)
		return ok && (equalFold(s, "Bearer") || equalFold(s, "access") || equalFold(s, defaultType))
	}
	return true
}

func has(claims map[string]any, name string) bool {
	_, present := claims[name]
	return present
}

// lookup returns the claim of the declared name, or the first of the defaults
// that is there when none is declared.
func lookup(claims map[string]any, declared string, defaults ...string) any {
	if declared != "" {
		return descend(claims, declared)
	}
	for _, name := range defaults {
		if v, present := claims[name]; present {
			return v
		}
	}
	return nil
}

// descend finds a claim by its name, which may hold dots itself as URLs do, or by
// its path into objects.
func descend(claims map[string]any, path string) any {
	if v, present := claims[path]; present {
		return v
	}
	first, rest, more := strings.Cut(path, ".")
	if !more {
		return nil
	}
	inner, _ := claims[first].(map[string]any)
	if inner == nil {
		return nil
	}
	return descend(inner, rest)
}

func clientOf(claims map[string]any, declared string) (string, bool) {
	v := lookup(claims, declared, "client_id", "azp")
	if v == nil {
		return "", true
	}
	s, ok := v.(string)
	return s, ok && printable(s)
}

// list reads a claim that is a string or an array of strings; absent and null are
// the empty list. With words, a string is split at spaces (RFC 6749 section 3.3)
// and no element may hold one. Whatever else it is, the token is refused: a
// guess at a role is a role granted.
func list(raw any, words bool) ([]string, bool) {
	var elements []string
	switch v := raw.(type) {
	case nil:
		return nil, true
	case string:
		switch {
		case words:
			elements = strings.FieldsFunc(v, func(r rune) bool { return r == ' ' })
		case v != "":
			elements = []string{v}
		}
	case []any:
		elements = make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok || s == "" || words && strings.Contains(s, " ") {
				return nil, false
			}
			elements = append(elements, s)
		}
	default:
		return nil, false
	}
	for _, e := range elements {
		if !printable(e) {
			return nil, false
		}
	}
	return elements, true
}

// printable says that a claim can stand in a header field and in a log line.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// sizeOf estimates the memory that a parsed value holds, in bytes.
func sizeOf(v any) int {
	const word, slot = 16, 64 // an interface or a string header; a map slot with its share of spare ones
	switch v := v.(type) {
	case string:
		return word + len(v)
	case []any:
		n := 24
		for _, e := range v {
			n += word + sizeOf(e)
		}
		return n
	case map[string]any:
		n := 48
		for name, e := range v {
			n += slot + len(name) + sizeOf(e)
		}
		return n
	}
	return word
}
