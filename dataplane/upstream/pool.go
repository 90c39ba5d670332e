// Package upstream carries exchanges to the services behind the gateway. It owns
// the connections to them and what is known of their endpoints, both of which
// outlive the snapshots that use them. It knows nothing of policies, and changes
// nothing of a request but what belongs to the connection.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

var (
	// ErrUnavailable is wrapped by the error when no endpoint could be reached or
	// the one asked did not answer in HTTP.
	ErrUnavailable = errors.New("upstream unavailable")
	// ErrTimeout is wrapped by the error when the answer's head did not come in time.
	ErrTimeout = errors.New("upstream timeout")
)

// Defaults of UpstreamTimeouts.
const (
	DefaultConnect = 5 * time.Second
	DefaultIdle    = 60 * time.Second
)

// Config of a Pool.
type Config struct {
	// TLS builds the client configuration for https endpoints; spec is never nil.
	// Nil refuses upstreams with https endpoints or TLS settings.
	TLS func(spec *configv1.UpstreamTLS) (*tls.Config, error)
	// Dial opens a connection until ctx ends; nil: TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Pool holds what outlives snapshots: the endpoints of all upstreams, with their
// connections. It is safe for concurrent use.
type Pool struct {
	config Config
	// start is what the endpoints' times count from.
	start time.Time

	mu sync.Mutex
	// Guarded by mu.
	endpoints map[endpointKey]*endpoint
	upstreams int
}

// NewPool makes an empty pool.
func NewPool(c Config) *Pool {
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	return &Pool{config: c, start: time.Now(), endpoints: map[endpointKey]*endpoint{}}
}

// endpointKey says which endpoints are the same across snapshots: one upstream's,
// at one URL, spoken to in one way.
type endpointKey struct {
	upstream config.Key
	url      string
	settings string
}

// settings are how an upstream's endpoints are spoken to.
type settings struct {
	tls           *tls.Config // nil when no endpoint wants it
	connect, idle time.Duration
	protocol      configv1.UpstreamProtocol
	key           string
}

// settingsOf compiles them. secure: an endpoint wants TLS.
func (p *Pool) settingsOf(spec *configv1.Upstream, secure bool) (*settings, error) {
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(&configv1.Upstream{
		Tls: spec.GetTls(), Timeouts: spec.GetTimeouts(), Protocol: spec.GetProtocol(),
	})
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	s := &settings{
		connect: duration(spec.GetTimeouts().GetConnect(), DefaultConnect), idle: duration(spec.GetTimeouts().GetIdle(), DefaultIdle),
		protocol: spec.GetProtocol(), key: string(encoded),
	}
	if !secure {
		return s, nil
	}
	if p.config.TLS == nil {
		return nil, errors.New("tls: this node cannot speak TLS to upstreams")
	}
	tlsSpec := spec.GetTls()
	if tlsSpec == nil {
		tlsSpec = &configv1.UpstreamTLS{}
	}
	if s.tls, err = p.config.TLS(tlsSpec); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return s, nil
}

func duration(d *durationpb.Duration, zero time.Duration) time.Duration {
	if d == nil || d.AsDuration() <= 0 {
		return zero
	}
	return d.AsDuration()
}

// endpoint returns the endpoint at the URL, counting a user; p.mu is held.
func (p *Pool) endpoint(upstream config.Key, at location, s *settings) *endpoint {
	key := endpointKey{upstream, at.url(), s.key}
	ep := p.endpoints[key]
	if ep == nil {
		ep = newEndpoint(p, key, at, s)
		p.endpoints[key] = ep
	}
	ep.users++
	return ep
}

// drop gives an endpoint back; p.mu is held. The last user's endpoint is
// forgotten, with its idle connections.
func (p *Pool) drop(ep *endpoint) {
	if ep.users--; ep.users == 0 {
		delete(p.endpoints, ep.key)
		ep.protocol.retire()
	}
}

// Users returns how many upstreams are acquired and not released.
func (p *Pool) Users() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.upstreams
}

// Close closes all idle connections. Requests in flight go on.
func (p *Pool) Close() {
	for _, ep := range p.all() {
		ep.protocol.closeIdle()
	}
}

// Cut closes all connections: requests in flight fail.
func (p *Pool) Cut() {
	for _, ep := range p.all() {
		ep.protocol.cut()
	}
}

func (p *Pool) all() []*endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*endpoint, 0, len(p.endpoints))
	for _, ep := range p.endpoints {
		all = append(all, ep)
	}
	return all
}
