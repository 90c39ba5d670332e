package upstream

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/upstream/balance"
	"portcullis.dev/portcullis/dataplane/upstream/resolve"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// defaultPanic is the panic threshold of an upstream that names none.
const defaultPanic = 0.5

// roster is the endpoints of one upstream as they come and go, and the choices
// among them. Endpoints that a name brings join and leave while requests run.
type roster struct {
	pool     *Pool
	key      config.Key
	settings *settings
	balance  balance.Config
	hash     balance.Keys
	affinity *affinity // nil: none
	*protection
	// sources are what the configuration lists; their watches are set by open.
	sources []source
	// stale is how many changes of usability nobody has taken over yet.
	stale atomic.Int32

	mu sync.Mutex
	// Guarded by mu.
	opened, closed bool
	endpoints      []*endpoint
	candidates     []balance.Candidate
	choosers       map[string]*chooser
}

// source is one endpoint of the configuration: a place, or a name that brings
// some.
type source struct {
	spec  *configv1.Endpoint
	at    location
	query resolve.Query
	watch *resolve.Watch // nil: a place
}

// newRoster compiles an upstream's endpoints and balance. It holds nothing.
func newRoster(p *Pool, key config.Key, spec *configv1.Upstream) (*roster, error) {
	b := spec.GetBalance()
	r := &roster{pool: p, key: key, hash: balance.CompileKeys(b.GetHash()), choosers: map[string]*chooser{}}
	r.balance = balance.Config{LoadFactor: b.GetLoadFactor(), SlowStart: b.GetSlowStart().AsDuration(), PanicThreshold: defaultPanic}
	var err error
	if r.balance.Algorithm, err = algorithmOf(b.GetAlgorithm()); err != nil {
		return nil, err
	}
	if spec.PanicThreshold != nil {
		r.balance.PanicThreshold = spec.GetPanicThreshold()
	}
	if b.GetZoneAware() {
		r.balance.Zone = p.config.Zone
	}
	if b.GetAffinity() != nil {
		r.affinity = newAffinity(b.GetAffinity())
	}
	secure := spec.GetTls() != nil
	for i, e := range spec.GetEndpoints() {
		at, err := parseEndpoint(e.GetUrl())
		if err != nil {
			return nil, fmt.Errorf("endpoints[%d].url: %w", i, err)
		}
		secure = secure || at.scheme == "https"
		r.sources = append(r.sources, source{spec: e, at: at, query: resolve.Query{
			Name: at.name, Service: e.GetResolve() == configv1.Resolve_RESOLVE_SERVICE,
			Server: spec.GetDns().GetServer(), Refresh: spec.GetDns().GetRefresh().AsDuration(),
		}})
	}
	r.settings, err = p.settingsOf(spec, secure)
	return r, err
}

func algorithmOf(a configv1.Algorithm) (balance.Algorithm, error) {
	switch a {
	case configv1.Algorithm_ALGORITHM_UNSPECIFIED, configv1.Algorithm_ALGORITHM_LEAST_REQUEST:
		return balance.LeastRequest, nil
	case configv1.Algorithm_ALGORITHM_ROUND_ROBIN:
		return balance.RoundRobin, nil
	case configv1.Algorithm_ALGORITHM_RANDOM:
		return balance.Random, nil
	case configv1.Algorithm_ALGORITHM_RING_HASH:
		return balance.RingHash, nil
	case configv1.Algorithm_ALGORITHM_BOUNDED_LOAD:
		return balance.BoundedLoad, nil
	}
	return 0, fmt.Errorf("balance.algorithm: %v is not known to this release", a)
}

// open begins the lookups and takes the endpoints from the pool.
func (r *roster) open() {
	for i := range r.sources {
		if s := &r.sources[i]; s.spec.GetResolve() != configv1.Resolve_RESOLVE_UNSPECIFIED {
			// Without mu: what is called back takes it.
			s.watch = r.pool.names.Watch(s.query, r.rebuild)
		}
	}
	r.mu.Lock()
	r.opened = true
	r.mu.Unlock()
	r.rebuild()
}

// close gives everything back. Requests in flight end as they would have.
func (r *roster) close() {
	for i := range r.sources {
		if w := r.sources[i].watch; w != nil {
			w.Close()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.pool.swap(r, nil, r.endpoints)
	r.endpoints = nil
}

// place is where a candidate is.
type place struct {
	at        location
	candidate balance.Candidate
}

// places lists what the sources name now, each place once.
func (r *roster) places() []place {
	var out []place
	seen := map[location]bool{}
	add := func(p place) {
		if !seen[p.at] {
			seen[p.at] = true
			out = append(out, p)
		}
	}
	for i := range r.sources {
		s := &r.sources[i]
		weight := uint32(1)
		if s.spec.Weight != nil {
			weight = s.spec.GetWeight()
		}
		base := balance.Candidate{Weight: weight, Zone: s.spec.GetZone(), Labels: s.spec.GetLabels()}
		if s.watch == nil {
			add(place{s.at, base})
			continue
		}
		for _, t := range s.watch.State().Targets {
			c := base
			if s.query.Service {
				c.Source, c.Priority = i+1, t.Priority
				// A record of weight 0 is to be chosen seldom, not never (RFC 2782).
				c.Weight = uint32(min(uint64(weight)*uint64(max(t.Weight, 1)), math.MaxUint32))
			}
			add(place{s.at.resolved(t), c})
		}
	}
	return out
}

// rebuild takes over what the names have brought. Endpoints that stay keep what
// is known of them and their connections.
func (r *roster) rebuild() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.opened || r.closed {
		return
	}
	places := r.places()
	r.endpoints = r.pool.swap(r, places, r.endpoints)
	r.candidates = make([]balance.Candidate, len(places))
	for i, ep := range r.endpoints {
		c := places[i].candidate
		c.State, c.Key, c.ID = ep.state, ep.at.url(), ep.id
		r.candidates[i] = c
	}
	for _, c := range r.choosers {
		c.compile()
	}
}

// refresh has the choices take over, soon, which endpoints are usable. It may be
// called in a request.
func (r *roster) refresh() {
	if r.stale.Add(1) > 1 {
		return // who is at it begins anew
	}
	go func() {
		for {
			seen := r.stale.Load()
			r.reassess()
			if r.stale.CompareAndSwap(seen, 0) {
				return
			}
		}
	}()
}

func (r *roster) reassess() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ep := range r.endpoints {
		ep.state.SetUsable(time.Since(ep.start), ep.usable())
	}
	for _, c := range r.choosers {
		c.selection.Load().set.Refresh()
	}
}

// await waits until each name has been looked up once, so that the requests that
// come right after a change do not fail for want of endpoints.
func (r *roster) await(ctx context.Context, deadline time.Time) {
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	for i := range r.sources {
		if w := r.sources[i].watch; w != nil {
			select {
			case <-w.First():
			case <-ctx.Done():
				return
			case <-timer.C:
				return
			}
		}
	}
}

// Name is a name that an upstream's endpoints come from, and how its lookup
// fares.
type Name struct {
	Name string
	// Err is nil when the last lookup succeeded, Since when they began to fail, and
	// Endpoints how many the last good one brought.
	Err       error
	Since     time.Time
	Endpoints int
}

// Names tells of the names that endpoints come from.
func (r *roster) Names() []Name {
	var out []Name
	for i := range r.sources {
		if s := &r.sources[i]; s.watch != nil {
			state := s.watch.State()
			out = append(out, Name{s.query.Name, state.Err, state.Since, len(state.Targets)})
		}
	}
	return out
}

// resolved returns the place of a target: where it is dialled is the target's,
// and what TLS verifies stays that of the name which the operator wrote, since
// what DNS says is not to be trusted. Of a service's name, the labels before the
// domain are none of its certificate's (RFC 6125, 6.2.1).
func (l location) resolved(t resolve.Target) location {
	l.brought = true
	_, port, _ := net.SplitHostPort(l.address)
	if t.Port != 0 {
		port = strconv.Itoa(int(t.Port))
		for strings.HasPrefix(l.name, "_") {
			_, l.name, _ = strings.Cut(l.name, ".")
		}
	}
	l.address = net.JoinHostPort(t.Host, port)
	l.host = l.address
	return l
}

// subsetKey writes labels as one text.
func subsetKey(labels map[string]string) string {
	pairs := make([][2]string, 0, len(labels))
	for k, v := range labels {
		pairs = append(pairs, [2]string{k, v})
	}
	slices.SortFunc(pairs, func(a, b [2]string) int { return cmp.Compare(a[0], b[0]) })
	return fmt.Sprintf("%q", pairs)
}
