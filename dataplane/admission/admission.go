// Package admission decides what of a request can be believed: who sent it,
// under which scheme and name, and which of its fields may reach policies and
// upstream. Every front end asks it, so that one protocol never believes what
// another would not. It owns no connection and reads no bytes: front ends vet
// syntax, routes and policies come after.
package admission

import (
	"errors"
	"fmt"
	"net/netip"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// The reasons of refusals before a route is known, as package policy names them.
const (
	ReasonMalformed   = "request_malformed"
	ReasonTooLarge    = "request_too_large"
	ReasonMisdirected = "misdirected_request"
	ReasonInternal    = "internal_error"
)

// Refusal is why a request does not reach the handler.
type Refusal struct {
	Status int
	Reason string
	Detail error
}

// Error implements error.
func (r *Refusal) Error() string { return r.Reason + ": " + r.Detail.Error() }

// Unwrap returns the detail.
func (r *Refusal) Unwrap() error { return r.Detail }

// Conn is what is known of a client's connection before its first request. One
// goroutine at a time calls its methods.
type Conn struct {
	// Peer is the zero Addr when the other end is no IP address.
	Peer netip.Addr
	// TLS is nil on a plain connection.
	TLS *exchange.PeerTLS
	// SNIDecides: client certificates are verified by the name of the handshake,
	// which a request must then bear too.
	SNIDecides bool
	// AltSvc is what answers offer beside this protocol (RFC 7838); "" for nothing.
	AltSvc string

	text string // of Peer
}

// PeerOf returns the address without port, mapping and zone; the zero Addr for
// what is not "address:port".
func PeerOf(address string) netip.Addr {
	if at, err := netip.ParseAddrPort(address); err == nil {
		return at.Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

func (c *Conn) peerText() string {
	if c.text == "" {
		c.text = c.Peer.String()
	}
	return c.text
}

// Meet fills in what is known of any request on the connection, also of one that
// cannot be read: Peer, TLS, Scheme and a fresh ID.
func (c *Conn) Meet(e *exchange.Exchange) {
	e.Request.Peer, e.Request.TLS, e.Request.Scheme = c.Peer, c.TLS, "http"
	if c.TLS != nil {
		e.Request.Scheme = "https"
	}
	e.Name()
}

// Admit meets a request whose syntax the front end has vetted, and leaves of it
// what can be believed. The front end has set Context, Received and, of Request,
// Method, Target, Path, Query, Host, Authority, Proto, Upgrade, Body and Header
// with all fields as they came. Admit sets Peer, TLS, Scheme and ID, drops the
// fields that are for one connection and those that are not the client's to set,
// and writes X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host and
// X-Request-Id. It allocates nothing for a peer that is no trusted proxy.
func (c *Conn) Admit(e *exchange.Exchange, s *Settings) *Refusal {
	c.Meet(e)
	if c.AltSvc != "" {
		e.ResponseHeader.Set("Alt-Svc", c.AltSvc)
	}
	r := &e.Request
	if c.SNIDecides && !c.named(r.Host) {
		return &Refusal{421, ReasonMisdirected, errMisdirected}
	}
	at, err := c.resolve(&r.Header, s)
	if err != nil {
		return malformed(err)
	}
	r.Peer = at.client
	if at.scheme != "" {
		r.Scheme = at.scheme
	}
	if at.trusted {
		if id := r.Header.Get("X-Request-Id"); exchange.ValidID(id) {
			e.ID = id
		}
	}
	if err := r.Header.DropHopByHop(); err != nil {
		return malformed(err)
	}
	r.Header.DelFunc(func(f exchange.Field) bool { return Foreign(f.Name) })
	if c.Peer.IsValid() {
		r.Header.Add("X-Forwarded-For", at.chain)
	}
	r.Header.Add("X-Forwarded-Proto", r.Scheme)
	r.Header.Add("X-Forwarded-Host", r.Authority)
	r.Header.Add("X-Request-Id", e.ID)
	if limit := s.BodyLimit(); r.Body.Length > limit {
		return &Refusal{413, ReasonTooLarge, fmt.Errorf("%w: body of %d bytes, beyond %d", exchange.ErrTooLarge, r.Body.Length, limit)}
	}
	return nil
}

var errMisdirected = errors.New("the host is not the name of the TLS handshake, by which the client was verified")

func malformed(detail error) *Refusal { return &Refusal{400, ReasonMalformed, detail} }

// named tells whether the handshake asked for the host (RFC 9110, 7.4).
func (c *Conn) named(host string) bool {
	if c.TLS == nil {
		return false
	}
	name := c.TLS.ServerName
	if n := len(name); n > 0 && name[n-1] == '.' {
		name = name[:n-1]
	}
	return name != "" && exchange.EqualFold(name, host)
}

// Foreign tells whether a field must not reach policies and upstream as the
// client sent it: names that alias others, the family that says where a request
// came from, what the gateway itself tells upstreams of the caller, those by which
// some servers let a request name another target or method than the one that is
// judged, and Proxy, which CGI hands on as HTTP_PROXY (CVE-2016-5385).
func Foreign(name string) bool {
	if !exchange.SafeName(name) {
		return true
	}
	switch name[0] | 0x20 {
	case 'x':
		return foreignX(name)
	case 'c', 'e', 'f', 'h', 'p', 't':
	default:
		return false
	}
	switch len(name) {
	case 4:
		return exchange.EqualFold(name, "Host")
	case 5:
		return exchange.EqualFold(name, "Proxy")
	case 6:
		return exchange.EqualFold(name, "Expect")
	case 9:
		return exchange.EqualFold(name, "Forwarded") || exchange.EqualFold(name, "Client-Ip")
	case 14:
		return exchange.EqualFold(name, "True-Client-Ip")
	}
	return false
}

func foreignX(name string) bool {
	for _, prefix := range [...]string{"X-Forwarded", "X-Portcullis-"} {
		if len(name) >= len(prefix) && exchange.EqualFold(name[:len(prefix)], prefix) {
			return true
		}
	}
	for _, other := range [...]string{
		"X-Request-Id", "X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip",
		"X-Original-Url", "X-Rewrite-Url", "X-Original-Uri", "X-Original-Method", "X-Original-Host", "X-Host",
		"X-Http-Method-Override", "X-Http-Method", "X-Method-Override",
	} {
		if exchange.EqualFold(name, other) {
			return true
		}
	}
	return false
}
