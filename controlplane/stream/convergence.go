package stream

import (
	"context"
	"time"

	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Convergence says how many nodes run at least v, how many there are, and which do
// not. A node that has just gone and did not run v then counts as one that does
// not: it may serve on with what it has. So does, while the hub has just started, a
// node that is expected and has not come yet.
func (h *Hub) Convergence(v config.Version) (programmed, total int, behind []*controlv1.NodeStatus) {
	c := h.converged(v, true)
	return c.programmed, c.programmed + len(c.behind), c.behind
}

// Await returns what Convergence does once every node that it counts runs at least
// v or has rejected it, or when ctx ends.
func (h *Hub) Await(ctx context.Context, v config.Version) (programmed, total int, behind []*controlv1.NodeStatus) {
	for ended := false; ; {
		c := h.converged(v, ended)
		if c.settled || ended {
			return c.programmed, c.programmed + len(c.behind), c.behind
		}
		ended = !c.wait(ctx)
	}
}

// convergence is how far the nodes are.
type convergence struct {
	programmed int
	behind     []*controlv1.NodeStatus
	// settled says that every node behind has rejected the version or a newer one,
	// so that there is nothing to wait for.
	settled bool
	// changed closes with the next change of any node.
	changed <-chan struct{}
	// expires is when who is waited for is given up; zero for never.
	expires time.Time
}

// wait waits for the next change; false when ctx ended first.
func (c *convergence) wait(ctx context.Context) bool {
	var expired <-chan time.Time
	if !c.expires.IsZero() {
		timer := time.NewTimer(time.Until(c.expires))
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-c.changed:
	case <-expired:
	case <-ctx.Done():
		return false
	}
	return true
}

func (h *Hub) converged(v config.Version, whole bool) convergence {
	now := time.Now()
	var expected []string
	if grown := h.born.Add(h.cfg.Grace); h.cfg.Expected != nil && now.Before(grown) {
		expected = h.cfg.Expected()
		c := h.registry.converged(v, whole, now, h.cfg.Grace, expected)
		if c.expires.IsZero() || grown.Before(c.expires) {
			c.expires = grown
		}
		return c
	}
	return h.registry.converged(v, whole, now, h.cfg.Grace, nil)
}

// converged stops, unless whole, at the first node that is to be waited for: with
// many nodes and many who wait, most reports change nothing.
func (r *registry) converged(v config.Version, whole bool, now time.Time, grace time.Duration, expected []string) convergence {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := convergence{settled: true, changed: r.changed}
	known := make(map[string]bool, len(expected))
	for s := range r.each() {
		if len(expected) > 0 {
			known[s.GetName()] = true
		}
		reached := config.VersionOf(s.GetVersion()).Compare(v) >= 0
		gone := s.GetDisconnectedAt().AsTime()
		switch {
		case s.GetConnected() && reached:
			c.programmed++
			continue
		case s.GetConnected():
		case reached || now.Sub(gone).Abs() >= grace:
			continue
		}
		c.behind = append(c.behind, s)
		if config.VersionOf(s.GetRejected()).Compare(v) >= 0 {
			continue
		}
		c.settled = false
		if !s.GetConnected() {
			c.expires = gone.Add(grace)
		}
		if !whole {
			return c
		}
	}
	for _, name := range expected {
		if !known[name] {
			c.behind = append(c.behind, &controlv1.NodeStatus{Name: name})
			c.settled = false
		}
	}
	sortNodes(c.behind)
	return c
}
