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
	"log/slog"
	"net"
	"sync"
	"time"

	"portcullis.dev/portcullis/dataplane/http1"
	"portcullis.dev/portcullis/dataplane/upstream/health"
	"portcullis.dev/portcullis/dataplane/upstream/resolve"
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
	// ErrSilent is wrapped by the error of an answer's body of which nothing came for
	// as long as the route lets it be idle.
	ErrSilent = http1.ErrTimeout
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
	// Zone is where the node stands, for upstreams that are balanced by zone.
	Zone string
	// AffinityKey keys the names of endpoints in clients' cookies. Nodes with the
	// same key know each other's.
	AffinityKey []byte
	// Lookup resolves names of endpoints; nil: DNS.
	Lookup func(context.Context, resolve.Query) ([]resolve.Target, error)
	// Log hears of names that cannot be looked up; nil discards.
	Log *slog.Logger
}

// Pool holds what outlives snapshots: the endpoints of all upstreams, with their
// connections. It is safe for concurrent use.
type Pool struct {
	config Config
	// start is what the endpoints' times count from.
	start time.Time
	// names looks up the names that endpoints come from.
	names *resolve.Hub
	// monitor finds out which endpoints are well; mirrors sends copies.
	monitor *health.Monitor
	mirrors mirrors

	mu sync.Mutex
	// Guarded by mu.
	endpoints map[endpointKey]*endpoint
	guards    map[config.Key]*guards
	upstreams int
}

// NewPool makes an empty pool.
func NewPool(c Config) *Pool {
	return &Pool{
		config: c, start: time.Now(), names: resolve.NewHub(resolve.Config{Lookup: c.Lookup, Log: c.Log}),
		monitor:   health.New(health.Config{Log: c.Log}),
		endpoints: map[endpointKey]*endpoint{}, guards: map[config.Key]*guards{},
	}
}

// dial returns what opens connections. A server looks up the names that SRV
// records point to: others may not know them.
func (p *Pool) dial(server string) func(ctx context.Context, network, address string) (net.Conn, error) {
	switch {
	case p.config.Dial != nil:
		return p.config.Dial
	case server != "":
		return (&net.Dialer{Resolver: resolve.Resolver(server)}).DialContext
	}
	return (&net.Dialer{}).DialContext
}

// endpointKey says which endpoints are the same across snapshots: one upstream's,
// at one place, spoken to in one way.
type endpointKey struct {
	upstream config.Key
	at       location
	settings string
}

// settings are how an upstream's endpoints are spoken to.
type settings struct {
	tls           *tls.Config // nil when no endpoint wants it
	connect, idle time.Duration
	protocol      configv1.UpstreamProtocol
	key           string
	// dialResolved is dial for what an endpoint's name has brought.
	dial, dialResolved func(ctx context.Context, network, address string) (net.Conn, error)
}

// settingsOf compiles them. secure: an endpoint wants TLS.
func (p *Pool) settingsOf(spec *configv1.Upstream, secure bool) (*settings, error) {
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(&configv1.Upstream{
		Tls: spec.GetTls(), Timeouts: spec.GetTimeouts(), Protocol: spec.GetProtocol(), Dns: &configv1.DNS{Server: spec.GetDns().GetServer()},
	})
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	s := &settings{
		connect: duration(spec.GetTimeouts().GetConnect(), DefaultConnect), idle: duration(spec.GetTimeouts().GetIdle(), DefaultIdle),
		protocol: spec.GetProtocol(), key: string(encoded), dial: p.dial(""), dialResolved: p.dial(spec.GetDns().GetServer()),
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

// swap takes the endpoints at the places for the roster and gives those before
// back. What is in both stays as it is.
func (p *Pool) swap(r *roster, places []place, before []*endpoint) []*endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := make([]*endpoint, len(places))
	for i := range places {
		now[i] = p.endpoint(r.key, places[i].at, r.settings)
	}
	for _, ep := range before {
		p.drop(ep)
	}
	return now
}

// endpoint returns the endpoint at the place, counting a user; p.mu is held.
func (p *Pool) endpoint(upstream config.Key, at location, s *settings) *endpoint {
	key := endpointKey{upstream, at, s.key}
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
		ep.health.Drop()
		ep.protocol.retire()
	}
}

// Users returns how many upstreams are acquired and not released.
func (p *Pool) Users() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.upstreams
}

// Run checks the endpoints' health until ctx ends.
func (p *Pool) Run(ctx context.Context) error { return p.monitor.Run(ctx) }

// Close closes all idle connections and ends the lookups of names and what is sent
// to mirrors. Other requests in flight go on.
func (p *Pool) Close() {
	p.names.Close()
	p.mirrors.close()
	for _, ep := range p.all() {
		ep.protocol.closeIdle()
	}
}

// Cut is Close, and closes all other connections too: requests in flight fail.
func (p *Pool) Cut() {
	p.Close()
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
