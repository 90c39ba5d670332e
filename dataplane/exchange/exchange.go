// Package exchange is one request in flight, as the policies see it. Front ends
// turn bytes into an Exchange and a Response into bytes; nothing here knows
// which protocol carried them, and nothing here opens a socket.
//
// Strings of a Request may lie in a buffer that the front end reuses: they hold
// until the exchange ends. Whoever keeps one longer clones it.
package exchange

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/netip"
	"strings"
	"time"
)

// Request is what the client sent, vetted by the front end: its syntax is that
// of RFC 9110, its path is canonical (see ParseTarget).
type Request struct {
	Method string
	// Target is the request target as received.
	Target string
	// Path is canonical: policies match it and the upstream receives it, byte for
	// byte the same.
	Path string
	// Query is the raw query, without '?'.
	Query string
	// Host is lower case, without port and trailing dot.
	Host string
	// Authority is Host and, where the client named one, ":" and the port: what the
	// upstream receives as Host.
	Authority string
	// Scheme is http or https, as the client used it; behind a trusted proxy, what
	// the proxy said.
	Scheme string
	// Proto is HTTP/1.1, HTTP/2.0 or HTTP/3.0.
	Proto string
	// Header holds the end-to-end fields: no Host, no hop-by-hop field, no framing,
	// no name outside of letters, digits and '-', and no X-Forwarded-* field but
	// those that the front end wrote.
	Header Header
	// Body.Reader fails with ErrTooLarge beyond the limit and with ErrMalformed
	// when its framing is broken.
	Body Body
	// Upgrade is the protocol that the client asks to switch to, lower case: ""
	// or "websocket". Front ends drop every other.
	Upgrade string
	// Peer is the client's address; behind a trusted proxy, what the proxy said.
	Peer netip.Addr
	// TLS is nil on a plain connection.
	TLS *PeerTLS
}

// GRPC tells whether the request is one of gRPC (its doc PROTOCOL-HTTP2.md).
func (r *Request) GRPC() bool {
	if r.Method != "POST" {
		return false
	}
	const grpc = "application/grpc"
	text, _ := r.Header.Lookup("Content-Type")
	if len(text) < len(grpc) || !EqualFold(text[:len(grpc)], grpc) {
		return false
	}
	return len(text) == len(grpc) || strings.IndexByte("+; ", text[len(grpc)]) >= 0
}

// PeerTLS is what the handshake told of the client.
type PeerTLS struct {
	Version    uint16
	ServerName string
	ALPN       string
	// Verified holds the client's chain, leaf first; nil without a client
	// certificate.
	Verified []*x509.Certificate
	// State gives channel bindings; nil when the front end has none.
	State *tls.ConnectionState
}

// Body is a message body in flight. The zero Body is empty.
type Body struct {
	// Reader is nil for an empty body. One goroutine reads it. Close may be called by
	// another, any number of times, and fails a Read that waits. A Reader may have a
	// method Buffered() int, the bytes that Read returns without waiting: a request's
	// body that is there already is sent together with its head.
	Reader io.ReadCloser
	// Length in bytes, or -1 when the message does not say.
	Length int64
	// Trailer gives the trailer fields once Reader returned io.EOF; may be nil.
	Trailer func() Header
}

// Response is what goes back to the client. Its Body streams.
type Response struct {
	Status int
	Header Header
	Body   Body
	// Upgrade, when set, takes over the connection after a 101. It returns when the
	// connection has ended and closes client.
	Upgrade func(client io.ReadWriteCloser) error
	// Interrupt ends a body or an upgraded connection that is still open: its reader
	// fails with cause. It may be called from any goroutine, any number of times,
	// until Done has run; nil when nothing is open behind the response.
	Interrupt func(cause error)
}

// Identity is who the caller proved to be. The zero Identity is anonymous.
type Identity struct {
	// Method is "", "jwt" or "api_key".
	Method  string
	Subject string
	Client  string
	// Issuer is the token's iss; IssuerName is "workspace/name" of the Issuer
	// resource that vouched for it: resources of two tenants may have the same iss.
	Issuer     string
	IssuerName string
	// Token and session identifiers, empty when the credential has none.
	TokenID string
	Session string
	Scopes  []string
	Roles   []string
	Groups  []string
	// Credential is what a revocation calls an API key; zero for a token.
	Credential [16]byte
	// Claims are the token's verified claims, numbers as float64, or json.Number
	// where a float64 would lose digits. Shared between requests: read only.
	Claims    map[string]any
	IssuedAt  time.Time
	ExpiresAt time.Time
}

// RouteInfo names the route that matched.
type RouteInfo struct {
	Workspace string
	Name      string
}

// Param is a value that a path template captured.
type Param struct{ Name, Value string }

// Exchange is one request and what has been found out about it. It belongs to
// the goroutine that handles the request. Reset prepares it for the next one.
type Exchange struct {
	// Set by the front end.
	Context context.Context
	Request Request
	// Received is when the last header byte came, with a monotonic reading.
	Received time.Time
	// ID names the exchange: the X-Request-Id of a trusted proxy or a fresh one. The
	// upstream and the client get it as X-Request-Id. It holds, like the Request's
	// strings, until the exchange ends.
	ID string

	// Set by the gateway.
	Route  RouteInfo
	Params []Param

	// Set by the policies. Identity is what the upstream is told: that of the
	// innermost level that authenticates. Outer holds those of the levels around it,
	// outermost first.
	Identity Identity
	Outer    []Identity
	// Response header fields that the answer will carry, whoever writes it; a
	// refusal carries them too.
	ResponseHeader Header
	// Why holds what decided, for the ring of decisions. No secrets.
	Why Why
	// After runs, last first, when the response head is known, before it is
	// written. Used to change the answer's header.
	After []func(*Exchange, *Response)
	// Done runs, last first, when the exchange has ended.
	Done []func(*Exchange)

	// Waited is how long the upstream was waited for, to the head of its answer or to
	// the failure. Set when it was asked.
	Waited time.Duration

	// Fail answers in place of a response whose body failed before anything of it was
	// sent. Set by the gateway with that response, and called by the front end at most
	// once; nil where nothing takes its place.
	Fail func(*Exchange, error) *Response

	// Set by the front end before Done runs.
	Result Result

	parameters parameters
	id         [32]byte // what Name made
}

// Result is what became of the answer.
type Result struct {
	Status int
	// Bytes of body written.
	Bytes int64
	// Err is why the answer was cut short, nil when it was written whole: it wraps
	// ErrClientGone, ErrClientSlow, ErrStopping or ErrInternal, or is what the body's
	// Reader said.
	Err error
	// Ended is when the exchange did, with a monotonic reading; zero where the front
	// end has not looked: then those who must know do.
	Ended time.Time
}

// Answer runs After on the response and moves ResponseHeader to it, where its
// fields replace those of the same name. The gateway calls it once the head of
// the response is known, refusals included.
func (e *Exchange) Answer(r *Response) {
	for i := len(e.After) - 1; i >= 0; i-- {
		e.After[i](e, r)
	}
	clear(e.After)
	e.After = e.After[:0]
	for _, f := range e.ResponseHeader.Fields() {
		r.Header.Del(f.Name)
	}
	for _, f := range e.ResponseHeader.Fields() {
		r.Header.Add(f.Name, f.Value)
	}
	e.ResponseHeader = e.ResponseHeader.reset()
}

// End runs Done. The front end calls it when the last byte of the answer is
// written or the exchange has failed.
func (e *Exchange) End() {
	for len(e.Done) > 0 {
		last := len(e.Done) - 1
		done := e.Done[last]
		e.Done[last], e.Done = nil, e.Done[:last]
		done(e)
	}
}

// Why names the policy and rule that decided and what it looked at.
type Why struct {
	Policy string
	Rule   string
	Detail string
}

// Reset clears the exchange for another request and keeps its memory.
func (e *Exchange) Reset() {
	clear(e.After)
	clear(e.Done)
	clear(e.Outer)
	clear(e.parameters.fields)
	request, response, fields := e.Request.Header.reset(), e.ResponseHeader.reset(), e.parameters.fields[:0]
	params, outer, after, done := e.Params[:0], e.Outer[:0], e.After[:0], e.Done[:0]
	// In place: a literal would be made on the stack, and copied.
	*e = Exchange{}
	e.Request.Header, e.ResponseHeader, e.parameters.fields = request, response, fields
	e.Params, e.Outer, e.After, e.Done = params, outer, after, done
}
