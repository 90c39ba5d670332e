package upstream

import (
	"slices"
	"time"

	"portcullis.dev/portcullis/dataplane/upstream/guard"
	"portcullis.dev/portcullis/dataplane/upstream/health"
	"portcullis.dev/portcullis/pkg/config"
)

// Status is how an upstream is, as this node sees it. Counts are since the upstream
// is known.
type Status struct {
	Key config.Key
	// Endpoints there are, and those of them that get no traffic, or would get none
	// but for the panic threshold; names that bring none for want of an answer are
	// among the latter only.
	Endpoints int
	Out       []health.Status
	Ejections uint64
	// Requests in flight; Retries and Hedges sent.
	Requests        int64
	Retries, Hedges uint64
	// Mirrored are copies sent, Unmirrored those for which there was no room.
	Mirrored, Unmirrored uint64
	// Refused by the circuit breaker, by guard.Kind; Shed by the concurrency limit,
	// which is Limit; 0 for none.
	Refused [3]uint64
	Shed    uint64
	Limit   int64
	// Exhausted is how often the retry budget had no room.
	Exhausted uint64
}

// Usable is how many endpoints get traffic.
func (s *Status) Usable() int {
	usable := s.Endpoints
	for _, out := range s.Out {
		if out.Reason != health.Unresolved {
			usable--
		}
	}
	return usable
}

// Status returns how all upstreams are, sorted.
func (p *Pool) Status() []Status {
	p.mu.Lock()
	all := make([]*guards, 0, len(p.guards))
	for _, g := range p.guards {
		all = append(all, g)
	}
	p.mu.Unlock()
	slices.SortFunc(all, func(a, b *guards) int { return a.key.Compare(b.key) })
	out := make([]Status, len(all))
	for i, g := range all {
		out[i] = g.status()
	}
	return out
}

func (g *guards) status() Status {
	s := Status{
		Key: g.key, Ejections: g.health.Ejections(), Requests: g.breaker.Len(guard.Requests),
		Retries: g.retries.Load(), Hedges: g.hedges.Load(), Mirrored: g.mirrored.Load(), Unmirrored: g.unmirrored.Load(),
		Shed: g.adaptive.Refused(), Exhausted: g.budget.Refused(),
	}
	s.Out, s.Endpoints = g.health.Out()
	slices.SortFunc(s.Out, func(a, b health.Status) int {
		if c := a.Since.Compare(b.Since); c != 0 {
			return c
		}
		return slices.Compare([]byte(a.Address), []byte(b.Address))
	})
	for k := range s.Refused {
		s.Refused[k] = g.breaker.Refused(guard.Kind(k))
	}
	newest, names := g.gate.current()
	if newest != nil && newest.adapts {
		s.Limit = g.adaptive.Limit(newest.bounds)
	}
	if names == nil {
		return s
	}
	for _, name := range names() {
		if name.Err != nil {
			s.Out = append(s.Out, health.Status{Address: name.Name, Reason: health.Unresolved, Detail: health.Detail(name.Err), Since: sinceOrNow(name.Since)})
		}
	}
	return s
}

func sinceOrNow(t time.Time) time.Time {
	if t.IsZero() {
		return time.Now()
	}
	return t
}
