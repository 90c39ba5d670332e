// Package token verifies signed access tokens: compact JWS (RFC 7515) with JWT
// claims (RFC 7519, RFC 9068), against keys that it is given. It owns the order
// of checks, the strict reading of header and claims, and the cache of tokens
// whose signature has been checked. It does no I/O, keeps no clock, and knows
// nothing of routes, audiences' owners or revocations: a policy asks about those
// on every request, since none of them may be cached.
package token

// Refusal is one way to refuse a token. Refusals are sentinels: compare them by
// identity. Neither field holds anything of the token.
type Refusal struct {
	// Reason is the stable reason code.
	Reason string
	// Detail says what is wrong, for the client.
	Detail string
}

// Error implements error.
func (r *Refusal) Error() string { return r.Reason + ": " + r.Detail }

const (
	malformed    = "credential_malformed"
	expired      = "token_expired"
	early        = "token_not_yet_valid"
	audience     = "token_wrong_audience"
	wrongIssuer  = "token_wrong_issuer"
	badSignature = "token_bad_signature"
	unavailable  = "keys_unavailable"
)

// The ways to refuse a token, in the order in which they are looked for.
var (
	ErrTooLarge   = &Refusal{malformed, "the token is larger than 16 KiB"}
	ErrParts      = &Refusal{malformed, "the token is not a compact JWS of three parts"}
	ErrEncoding   = &Refusal{malformed, "a part of the token is not unpadded base64url"}
	ErrHeaderSize = &Refusal{malformed, "the token's header is larger than 2 KiB"}
	ErrHeader     = &Refusal{malformed, "the token's header is not a JSON object of the expected members"}
	ErrClaims     = &Refusal{malformed, "the token's claims are not a JSON object"}
	ErrDuplicate  = &Refusal{malformed, "the token has a duplicate member"}
	ErrDepth      = &Refusal{malformed, "the token is nested too deeply"}
	ErrExtension  = &Refusal{malformed, "the token's header asks for an extension that is not supported"}
	ErrType       = &Refusal{malformed, "the token's type is not one that its issuer may use here"}
	ErrNotAccess  = &Refusal{malformed, "the token is not an access token"}
	ErrClaimType  = &Refusal{malformed, "a claim of the token has the wrong type"}
	ErrNoExpiry   = &Refusal{malformed, "the token has no exp claim"}
	ErrNoIssuedAt = &Refusal{malformed, "the token has no iat claim, so its lifetime has no bound"}
	ErrLifetime   = &Refusal{malformed, "the token lives longer than its issuer may say"}
	ErrBinding    = &Refusal{malformed, "the token is bound to a key by a method that is not supported"}

	ErrIssuer = &Refusal{wrongIssuer, "the token's issuer is not trusted here"}

	ErrAlgorithm  = &Refusal{badSignature, "the token's algorithm is not one that its issuer uses"}
	ErrUnknownKey = &Refusal{badSignature, "the token names a key that its issuer does not have"}
	ErrSignature  = &Refusal{badSignature, "the token's signature does not hold"}

	// ErrKeysUnavailable is not the token's fault: without current keys nobody can
	// say whether it is good.
	ErrKeysUnavailable = &Refusal{unavailable, "the issuer's keys are not available"}

	ErrExpired     = &Refusal{expired, "the token has expired"}
	ErrNotYetValid = &Refusal{early, "the token is not valid yet"}

	// ErrAudience is for the caller of Verify, who knows which audience it is.
	ErrAudience = &Refusal{audience, "the token is for another audience"}
	// ErrUnproven is for the caller of Verify, who knows the client's certificate.
	ErrUnproven = &Refusal{malformed, "the token is bound to a certificate that the client did not show"}
)

// Refusals returns every way to refuse a token.
func Refusals() []*Refusal {
	return []*Refusal{
		ErrTooLarge, ErrParts, ErrEncoding, ErrHeaderSize, ErrHeader, ErrClaims, ErrDuplicate, ErrDepth,
		ErrExtension, ErrType, ErrNotAccess, ErrClaimType, ErrNoExpiry, ErrNoIssuedAt, ErrLifetime, ErrBinding,
		ErrIssuer, ErrAlgorithm, ErrUnknownKey, ErrSignature, ErrKeysUnavailable, ErrExpired, ErrNotYetValid,
		ErrAudience, ErrUnproven,
	}
}
