// Package upstream carries exchanges to the services behind the gateway. It owns
// the connections to them, which outlive the snapshots that use them. It knows
// nothing of routes and policies, and changes nothing of a request but what
// belongs to the connection.
package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

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

const (
	maxIdlePerEndpoint     = 512
	maxResponseHeaderBytes = 256 << 10
)

// Config of a Pool.
type Config struct {
	// TLS builds the client configuration for https endpoints; spec is never nil.
	// Nil refuses upstreams with https endpoints or TLS settings.
	TLS func(spec *configv1.UpstreamTLS) (*tls.Config, error)
}

// Pool holds the connections to all upstreams. Upstreams with the same TLS
// settings and timeouts share one transport, so that a changed weight or
// endpoint keeps the connections. It is safe for concurrent use.
type Pool struct {
	config Config

	mu         sync.Mutex
	transports map[string]*transport
}

// transport is shared by the upstreams acquired with the same settings.
type transport struct {
	*http.Transport
	key string
	// Guarded by Pool.mu.
	users int
}

// NewPool makes an empty pool.
func NewPool(c Config) *Pool {
	return &Pool{config: c, transports: map[string]*transport{}}
}

// Upstream is one service compiled: its endpoints and how to pick among them. It
// is immutable and safe for concurrent use.
type Upstream struct {
	pool      *Pool
	transport *transport
	endpoints []endpoint
	picker    *Picker
	release   sync.Once
}

type endpoint struct{ scheme, host string }

// Acquire compiles an upstream. It opens no connection. The caller releases the
// upstream once no request uses it.
func (p *Pool) Acquire(spec *configv1.Upstream) (*Upstream, error) {
	u := &Upstream{pool: p}
	weights := make([]uint32, 0, len(spec.GetEndpoints()))
	secure := spec.GetTls() != nil
	for i, e := range spec.GetEndpoints() {
		at, err := parseEndpoint(e.GetUrl())
		if err != nil {
			return nil, fmt.Errorf("endpoints[%d].url: %w", i, err)
		}
		secure = secure || at.scheme == "https"
		weight := uint32(1)
		if e.Weight != nil {
			weight = e.GetWeight()
		}
		u.endpoints = append(u.endpoints, at)
		weights = append(weights, weight)
	}
	u.picker = NewPicker(weights)
	t, err := p.transport(spec, secure)
	if err != nil {
		return nil, err
	}
	u.transport = t
	return u, nil
}

func parseEndpoint(text string) (endpoint, error) {
	at, err := url.Parse(text)
	switch {
	case err != nil:
		return endpoint{}, errors.New("not a URL")
	case at.Scheme != "http" && at.Scheme != "https":
		return endpoint{}, errors.New("scheme is neither http nor https")
	case at.Hostname() == "":
		return endpoint{}, errors.New("no host")
	case at.User != nil || at.Path != "" && at.Path != "/" || at.RawQuery != "" || at.ForceQuery || at.Fragment != "" || at.Opaque != "":
		return endpoint{}, errors.New("more than scheme, host and port")
	}
	return endpoint{at.Scheme, at.Host}, nil
}

// transport returns the shared transport for the settings, counting a user.
func (p *Pool) transport(spec *configv1.Upstream, secure bool) (*transport, error) {
	settings := &configv1.Upstream{Tls: spec.GetTls(), Timeouts: spec.GetTimeouts()}
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(settings)
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	key := fmt.Sprintf("%t %s", secure, encoded)
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.transports[key]
	if t == nil {
		if t, err = p.dialer(spec, secure); err != nil {
			return nil, err
		}
		t.key = key
		p.transports[key] = t
	}
	t.users++
	return t, nil
}

func (p *Pool) dialer(spec *configv1.Upstream, secure bool) (*transport, error) {
	connect := duration(spec.GetTimeouts().GetConnect(), DefaultConnect)
	t := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: connect}).DialContext,
		TLSHandshakeTimeout: connect,
		IdleConnTimeout:     duration(spec.GetTimeouts().GetIdle(), DefaultIdle),
		MaxIdleConnsPerHost: maxIdlePerEndpoint,
		// The client's Accept-Encoding decides, not ours.
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxResponseHeaderBytes,
		Protocols:              new(http.Protocols),
	}
	t.Protocols.SetHTTP1(true)
	if secure {
		if p.config.TLS == nil {
			return nil, errors.New("tls: this node cannot speak TLS to upstreams")
		}
		tlsSpec := spec.GetTls()
		if tlsSpec == nil {
			tlsSpec = &configv1.UpstreamTLS{}
		}
		var err error
		if t.TLSClientConfig, err = p.config.TLS(tlsSpec); err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
	}
	return &transport{Transport: t}, nil
}

func duration(d *durationpb.Duration, zero time.Duration) time.Duration {
	if d == nil || d.AsDuration() <= 0 {
		return zero
	}
	return d.AsDuration()
}

// Release gives the upstream back; calls after the first do nothing. When the
// last user of a transport is gone its idle connections are closed.
func (u *Upstream) Release() {
	u.release.Do(func() {
		p := u.pool
		p.mu.Lock()
		defer p.mu.Unlock()
		if u.transport.users--; u.transport.users == 0 {
			delete(p.transports, u.transport.key)
			u.transport.CloseIdleConnections()
		}
	})
}

// Users returns how many upstreams are acquired and not released.
func (p *Pool) Users() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, t := range p.transports {
		n += t.users
	}
	return n
}

// Close closes all idle connections. Requests in flight go on.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.transports {
		t.CloseIdleConnections()
	}
}
