package upstream

import (
	"slices"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/upstream/balance"
)

// chooser picks among those of a roster's endpoints that have some labels. It is
// safe for concurrent use; pick holds no lock and allocates nothing.
type chooser struct {
	roster    *roster
	labels    map[string]string
	selection atomic.Pointer[selection]
}

// selection is the endpoints that stand to choice, and the set that chooses, by
// index. It is immutable.
type selection struct {
	set       *balance.Set
	endpoints []*endpoint
}

// chooser returns the one for the labels.
func (r *roster) chooser(labels map[string]string) *chooser {
	key := subsetKey(labels)
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.choosers[key]
	if c == nil {
		c = &chooser{roster: r, labels: labels}
		c.compile()
		r.choosers[key] = c
	}
	return c
}

// compile takes over the roster's endpoints; its mu is held.
func (c *chooser) compile() {
	of := make(map[*balance.State]*endpoint, len(c.roster.endpoints))
	for _, ep := range c.roster.endpoints {
		of[ep.state] = ep
	}
	candidates := balance.Select(c.roster.candidates, c.labels)
	next := &selection{endpoints: make([]*endpoint, len(candidates))}
	for i := range candidates {
		next.endpoints[i] = of[candidates[i].State]
	}
	next.set = balance.New(c.roster.balance, candidates)
	c.selection.Store(next)
}

// pick chooses the endpoint for an exchange, other than those tried; nil when
// there is none.
func (c *chooser) pick(e *exchange.Exchange, tried []*endpoint, now time.Time) *endpoint {
	r, s := c.roster, c.selection.Load()
	var q balance.Query
	var memory [maxAttempts]*balance.State
	q.Tried = memory[:0]
	for _, ep := range tried {
		q.Tried = append(q.Tried, ep.state)
	}
	if r.balance.Algorithm.Hashed() {
		q.Hash = r.hash.Hash(e)
	}
	if r.affinity != nil {
		q.Affinity = r.affinity.asked(e)
	}
	i := s.set.Pick(now.Sub(r.pool.start), &q)
	if i < 0 || slices.Contains(tried, s.endpoints[i]) {
		return nil
	}
	return s.endpoints[i]
}

// bind has the client come back to the endpoint that answered, when it does not
// already.
func (c *chooser) bind(e *exchange.Exchange, ep *endpoint, resp *exchange.Response) {
	if a := c.roster.affinity; a != nil {
		if ep.id != a.asked(e) {
			// Not to e.ResponseHeader, which would put the endpoint's own cookies out.
			resp.Header.Add("Set-Cookie", a.cookie(ep.id, e.Request.Scheme == "https"))
		}
	}
}
