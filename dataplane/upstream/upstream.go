package upstream

import (
	"sync"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Upstream is one service compiled: its endpoints, which may come and go by DNS,
// and how to choose among them. It is safe for concurrent use.
type Upstream struct {
	*roster
	release sync.Once
}

// Acquire compiles the upstream of the key. It opens no connection, and begins to
// look up the names that endpoints come from. Endpoints that another upstream of
// the same key has, with the same settings, are shared with it. The caller
// releases the upstream once no request picks of it.
func (p *Pool) Acquire(key config.Key, spec *configv1.Upstream) (*Upstream, error) {
	r, err := newRoster(p, key, spec)
	if err != nil {
		return nil, err
	}
	r.protection = p.protect(key, spec, r.refresh)
	r.open()
	r.gate.opened(r.protection, r.Names)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.upstreams++
	return &Upstream{roster: r}, nil
}

// Release gives the upstream back; calls after the first do nothing. Requests in
// flight end as they would have.
func (u *Upstream) Release() {
	u.release.Do(func() {
		u.close()
		u.pool.unprotect(u.protection)
		p := u.pool
		p.mu.Lock()
		defer p.mu.Unlock()
		p.upstreams--
	})
}
