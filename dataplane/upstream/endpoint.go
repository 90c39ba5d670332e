package upstream

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
	"portcullis.dev/portcullis/dataplane/upstream/balance"
	"portcullis.dev/portcullis/dataplane/upstream/health"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// endpoint is one place where an upstream is served: what is known of it, and
// how it is reached. Snapshots share it.
type endpoint struct {
	key endpointKey
	at  location
	// protocol carries requests; it is chosen once.
	protocol roundTripper
	// id is what affinity cookies call it.
	id uint64
	// Guarded by Pool.mu.
	users int

	// state is what balancing goes by; times are since start.
	state  *balance.State
	health *health.Endpoint
	start  time.Time
	// end is ended for Exchange.Done, made once.
	end func(*exchange.Exchange)
}

// roundTripper speaks one protocol to one endpoint and owns the connections to
// it. It is safe for concurrent use.
type roundTripper interface {
	// roundTrip sends a request and returns the head of the answer. call is the
	// caller's again when it returns. done ends the
	// exchange and is called exactly once, when nobody uses the response any more; its
	// argument may be nil, and is that of Exchange.Done. Errors are those of
	// http1.ClientConn.Do, or wrap errDial.
	roundTrip(call *http1.Call) (resp *exchange.Response, done func(*exchange.Exchange), err error)
	// closeIdle closes the connections that carry no request.
	closeIdle()
	// retire is closeIdle, and from then on keeps no connection.
	retire()
	// cut closes all connections.
	cut()
}

// location is an endpoint's URL taken apart.
type location struct {
	scheme string
	// host is as written, with the port if there is one.
	host string
	// address is what is dialled: host and port.
	address string
	// name is the host without port, or the name that brought it: what TLS verifies
	// unless it is told otherwise.
	name string
	// brought: a name brought it, see roster.
	brought bool
}

func (l *location) url() string { return l.scheme + "://" + l.host }

func parseEndpoint(text string) (location, error) {
	at, err := url.Parse(text)
	switch {
	case err != nil:
		return location{}, errors.New("not a URL")
	case at.Scheme != "http" && at.Scheme != "https":
		return location{}, errors.New("scheme is neither http nor https")
	case at.Hostname() == "":
		return location{}, errors.New("no host")
	case at.User != nil || at.Path != "" && at.Path != "/" || at.RawQuery != "" || at.ForceQuery || at.Fragment != "" || at.Opaque != "":
		return location{}, errors.New("more than scheme, host and port")
	}
	port := at.Port()
	if port == "" {
		port = "80"
		if at.Scheme == "https" {
			port = "443"
		}
	}
	return location{scheme: at.Scheme, host: at.Host, address: net.JoinHostPort(at.Hostname(), port), name: at.Hostname()}, nil
}

func newEndpoint(p *Pool, key endpointKey, at location, s *settings) *endpoint {
	ep := &endpoint{key: key, at: at, id: affinityID(p.config.AffinityKey, key), state: balance.NewState(time.Since(p.start)), start: p.start}
	ep.end = func(*exchange.Exchange) { ep.ended() }
	guards := p.guards[key.upstream]
	dial := s.dial
	if at.brought {
		dial = s.dialResolved
	}
	if s.protocol == configv1.UpstreamProtocol_UPSTREAM_PROTOCOL_HTTP2 {
		ep.protocol = newHTTP2(dial, at, s, &guards.gate)
	} else {
		ep.protocol = newHTTP1(dial, at, s, &guards.gate)
	}
	ep.health = guards.health.Add(targetOf(at, s, dial))
	ep.state.SetUsable(time.Since(p.start), ep.usable())
	return ep
}

// targetOf is where an endpoint's health is asked for.
func targetOf(at location, s *settings, dial func(context.Context, string, string) (net.Conn, error)) health.Target {
	t := health.Target{Address: at.address, Host: at.host, Dial: dial, HTTP2: s.protocol == configv1.UpstreamProtocol_UPSTREAM_PROTOCOL_HTTP2}
	if at.scheme == "https" {
		t.TLS = s.tls.Clone()
		if t.TLS.ServerName == "" {
			t.TLS.ServerName = at.name
		}
	}
	return t
}

// usable tells whether the endpoint is to be chosen.
func (ep *endpoint) usable() bool { return ep.health.Usable() }

// outcome is what one attempt tells of an endpoint.
type outcome struct {
	now time.Time
	// latency from the attempt's begin to the answer's head, or to the failure.
	latency time.Duration
	// status of the answer; 0 with err.
	status int
	err    error
}

// begin notes that an attempt is made; learn, what came of it; ended, that
// nothing of it is left: the failure, or the last byte of the answer. Each is
// called once an attempt, in this order.
func (ep *endpoint) begin() { ep.state.Begin() }

func (ep *endpoint) learn(o outcome) {
	unwell := errors.Is(o.err, ErrUnavailable) || errors.Is(o.err, ErrTimeout)
	if o.err != nil && !unwell {
		// The client's doing tells nothing of the endpoint.
		return
	}
	if unwell || o.status >= 500 {
		cause := o.err
		if errors.Is(cause, ErrTimeout) {
			cause = os.ErrDeadlineExceeded
		}
		ep.health.Failed(o.now, o.status, cause)
	} else {
		ep.health.Succeeded(o.now)
	}
	unwell = unwell || o.status == 502 || o.status == 503 || o.status == 504
	ep.state.Observe(o.now.Sub(ep.start), o.latency, unwell)
}

func (ep *endpoint) ended() { ep.state.End() }
