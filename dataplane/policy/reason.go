package policy

// Reason names one way to refuse a request. It is the reason in the answer, the
// label of the metric and the key in the log.
type Reason string

// Every reason. Values are part of the API and never change.
const (
	NoRoute             Reason = "no_route"
	CredentialMissing   Reason = "credential_missing"
	CredentialMalformed Reason = "credential_malformed"
	CredentialDuplicate Reason = "credential_duplicate"
	TokenExpired        Reason = "token_expired"
	TokenNotYetValid    Reason = "token_not_yet_valid"
	TokenWrongAudience  Reason = "token_wrong_audience"
	TokenWrongIssuer    Reason = "token_wrong_issuer"
	TokenBadSignature   Reason = "token_bad_signature"
	TokenRevoked        Reason = "token_revoked"
	KeyUnknown          Reason = "key_unknown"
	KeyExpired          Reason = "key_expired"
	ScopeMissing        Reason = "scope_missing"
	RuleDenied          Reason = "rule_denied"
	ExpressionError     Reason = "expression_error"
	LimitExceeded       Reason = "limit_exceeded"
	RevocationsStale    Reason = "revocations_stale"
	KeysUnavailable     Reason = "keys_unavailable"
	UpstreamUnavailable Reason = "upstream_unavailable"
	UpstreamTimeout     Reason = "upstream_timeout"
	UpstreamOverloaded  Reason = "upstream_overloaded"
	RequestMalformed    Reason = "request_malformed"
	RequestTooLarge     Reason = "request_too_large"
	MisdirectedRequest  Reason = "misdirected_request"
	NotReady            Reason = "not_ready"
	NodeOverloaded      Reason = "node_overloaded"
	// ClientGone is nobody's refusal: the client left before its answer came.
	ClientGone Reason = "client_gone"
	// InternalError is a fault of the gateway itself.
	InternalError Reason = "internal_error"
)

// Reasons returns all of them, in the order above.
func Reasons() []Reason {
	return []Reason{
		NoRoute, CredentialMissing, CredentialMalformed, CredentialDuplicate, TokenExpired, TokenNotYetValid,
		TokenWrongAudience, TokenWrongIssuer, TokenBadSignature, TokenRevoked, KeyUnknown, KeyExpired, ScopeMissing,
		RuleDenied, ExpressionError, LimitExceeded, RevocationsStale, KeysUnavailable, UpstreamUnavailable,
		UpstreamTimeout, UpstreamOverloaded, RequestMalformed, RequestTooLarge, MisdirectedRequest, NotReady, NodeOverloaded,
		ClientGone, InternalError,
	}
}

// Status returns the HTTP status: of RFC 9110 section 15, of RFC 6750 section 3.1
// for what is wrong with a credential (two of them are an invalid_request), of
// RFC 6585 section 4 for limits. 499, which nobody receives, is what nginx logs
// for a client that left. 500 for what is no reason.
func (r Reason) Status() int {
	switch r {
	case RequestMalformed, CredentialDuplicate:
		return 400
	case CredentialMissing, CredentialMalformed, TokenExpired, TokenNotYetValid, TokenWrongAudience,
		TokenWrongIssuer, TokenBadSignature, TokenRevoked, KeyUnknown, KeyExpired:
		return 401
	case ScopeMissing, RuleDenied, ExpressionError:
		return 403
	case NoRoute:
		return 404
	case RequestTooLarge:
		return 413
	case MisdirectedRequest:
		return 421
	case LimitExceeded:
		return 429
	case ClientGone:
		return 499
	case UpstreamUnavailable:
		return 502
	case RevocationsStale, KeysUnavailable, NotReady, NodeOverloaded, UpstreamOverloaded:
		return 503
	case UpstreamTimeout:
		return 504
	}
	return 500
}

// Title says in a few words what the reason means; it is the same every time
// (RFC 9457 section 3.1.3).
func (r Reason) Title() string {
	switch r {
	case NoRoute:
		return "No route matches the request"
	case CredentialMissing:
		return "A credential is required"
	case CredentialMalformed:
		return "The credential is malformed"
	case CredentialDuplicate:
		return "More than one credential was sent"
	case TokenExpired:
		return "The token has expired"
	case TokenNotYetValid:
		return "The token is not valid yet"
	case TokenWrongAudience:
		return "The token is for another audience"
	case TokenWrongIssuer:
		return "The token's issuer is not trusted"
	case TokenBadSignature:
		return "The token's signature does not hold"
	case TokenRevoked:
		return "The credential has been revoked"
	case KeyUnknown:
		return "The API key is unknown"
	case KeyExpired:
		return "The API key has expired"
	case ScopeMissing:
		return "The credential lacks a scope"
	case RuleDenied:
		return "A rule does not allow the request"
	case ExpressionError:
		return "A rule could not be evaluated"
	case LimitExceeded:
		return "A rate limit is exceeded"
	case RevocationsStale:
		return "Revocations may be out of date"
	case KeysUnavailable:
		return "The issuer's keys are not available"
	case UpstreamUnavailable:
		return "The upstream cannot be reached"
	case UpstreamTimeout:
		return "The upstream did not answer in time"
	case UpstreamOverloaded:
		return "The upstream has more requests than it can take"
	case RequestMalformed:
		return "The request is malformed"
	case RequestTooLarge:
		return "The request is too large"
	case MisdirectedRequest:
		return "The request is for another host than its connection"
	case NotReady:
		return "The node is not ready"
	case NodeOverloaded:
		return "The node has no memory left for the request"
	case ClientGone:
		return "The client closed the connection"
	}
	return "The gateway failed"
}
