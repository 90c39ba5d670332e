package upstream

import (
	"fmt"
	"slices"
	"sync"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Upstream is one service compiled: its endpoints and how to pick among them. It
// is immutable and safe for concurrent use.
type Upstream struct {
	pool      *Pool
	endpoints []*endpoint
	picker    *Picker
	release   sync.Once
}

// Acquire compiles the upstream of the key. It opens no connection. Endpoints
// that another upstream of the same key has, with the same settings, are shared
// with it. The caller releases the upstream once no request picks of it.
func (p *Pool) Acquire(key config.Key, spec *configv1.Upstream) (*Upstream, error) {
	u := &Upstream{pool: p}
	weights := make([]uint32, 0, len(spec.GetEndpoints()))
	places := make([]location, 0, len(spec.GetEndpoints()))
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
		places = append(places, at)
		weights = append(weights, weight)
	}
	u.picker = NewPicker(weights)
	s, err := p.settingsOf(spec, secure)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range places {
		u.endpoints = append(u.endpoints, p.endpoint(key, at, s))
	}
	p.upstreams++
	return u, nil
}

// Release gives the upstream back; calls after the first do nothing. Requests in
// flight end as they would have.
func (u *Upstream) Release() {
	u.release.Do(func() {
		p := u.pool
		p.mu.Lock()
		defer p.mu.Unlock()
		p.upstreams--
		for _, ep := range u.endpoints {
			p.drop(ep)
		}
	})
}

// pick chooses the endpoint for an exchange, other than those tried; nil when
// there is none.
func (u *Upstream) pick(_ *exchange.Exchange, tried []*endpoint) *endpoint {
	at := u.picker.Pick()
	if at < 0 {
		return nil
	}
	for range u.endpoints {
		if !slices.Contains(tried, u.endpoints[at]) {
			return u.endpoints[at]
		}
		at = u.picker.next(at)
	}
	return nil
}
