package resolve

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lookupTimeout bounds one lookup, all servers and attempts included.
	lookupTimeout = 5 * time.Second
	// A name that has never been found is asked for more often.
	firstRetry = time.Second
)

// Config of a Hub.
type Config struct {
	// Lookup asks once; nil: Lookup of this package.
	Lookup func(context.Context, Query) ([]Target, error)
	// Log hears when a name begins and ends to fail; nil discards.
	Log *slog.Logger
}

// Hub looks up what is watched, each query once however many watch it, and
// nothing else. It is safe for concurrent use.
type Hub struct {
	cfg     Config
	running sync.WaitGroup

	mu      sync.Mutex
	lookups map[Query]*lookup
	closed  bool
}

// NewHub makes a hub that watches nothing.
func NewHub(cfg Config) *Hub {
	if cfg.Lookup == nil {
		cfg.Lookup = Lookup
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Hub{cfg: cfg, lookups: map[Query]*lookup{}}
}

// State is what is known of a name. It is immutable.
type State struct {
	// Targets of the last answer that was one, as Lookup gives them: a lookup that
	// fails, and an answer without targets, leave what was there. nil before the first.
	Targets []Target
	// Err is why the last lookup failed, nil when it did not; Since is when they
	// began to fail.
	Err   error
	Since time.Time
}

// lookup is one query that runs.
type lookup struct {
	query Query
	stop  context.CancelFunc
	state atomic.Pointer[State]
	// first is closed, by done, when the first lookup is over.
	first chan struct{}
	done  sync.Once
	// Guarded by Hub.mu.
	users int

	mu      sync.Mutex
	watches []*Watch
}

// Watch is one who wants to know.
type Watch struct {
	hub     *Hub
	lookup  *lookup
	changed func()
	close   sync.Once
}

// Watch has the query looked up until the watch is closed. changed is called
// once after each change of the targets, perhaps before Watch has returned, from
// one goroutine at a time; it must not block and must not open or close a watch.
// What another watch of the query has found already is in State at once.
func (h *Hub) Watch(q Query, changed func()) *Watch {
	if q.Refresh <= 0 {
		q.Refresh = DefaultRefresh
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.lookups[q]
	if l == nil {
		ctx, cancel := context.WithCancel(context.Background())
		l = &lookup{query: q, stop: cancel, first: make(chan struct{})}
		l.state.Store(&State{})
		h.lookups[q] = l
		if h.closed {
			cancel()
		}
		// After the watch is there, so that it is told of the first answer.
		defer h.running.Go(func() { h.run(ctx, l) })
	}
	l.users++
	w := &Watch{hub: h, lookup: l, changed: changed}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watches = append(l.watches, w)
	return w
}

// State returns what is known now.
func (w *Watch) State() *State { return w.lookup.state.Load() }

// First is closed when the name has been looked up once, found or not, or will
// not be any more.
func (w *Watch) First() <-chan struct{} { return w.lookup.first }

// Close ends the watch; changed is not called after it has returned. Calls after
// the first do nothing.
func (w *Watch) Close() {
	w.close.Do(func() {
		h, l := w.hub, w.lookup
		l.mu.Lock()
		l.watches = slices.DeleteFunc(l.watches, func(o *Watch) bool { return o == w })
		l.mu.Unlock()
		h.mu.Lock()
		defer h.mu.Unlock()
		if l.users--; l.users == 0 {
			l.stop()
			delete(h.lookups, l.query)
		}
	})
}

// Close ends all lookups and returns when they have ended. Watches stay as they
// are, and new ones find nothing.
func (h *Hub) Close() {
	h.mu.Lock()
	h.closed = true
	for _, l := range h.lookups {
		l.stop()
	}
	h.mu.Unlock()
	h.running.Wait()
}

func (h *Hub) run(ctx context.Context, l *lookup) {
	defer l.stop()
	defer l.done.Do(func() { close(l.first) })
	for ctx.Err() == nil {
		h.ask(ctx, l)
		wait := l.query.Refresh
		if l.state.Load().Targets == nil {
			wait = min(wait, firstRetry)
		}
		// Nodes that started together do not ask together.
		timer := time.NewTimer(wait - wait/10 + rand.N(wait/5+1))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// ask looks up once and tells whoever watches.
func (h *Hub) ask(ctx context.Context, l *lookup) {
	bounded, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	targets, err := h.cfg.Lookup(bounded, l.query)
	if ctx.Err() != nil {
		return
	}
	if err == nil && len(targets) == 0 {
		err = ErrEmpty
	}
	before := l.state.Load()
	next := &State{Targets: targets}
	if err != nil {
		next = &State{Targets: before.Targets, Err: err, Since: before.Since}
		if before.Err == nil {
			next.Since = time.Now()
			h.cfg.Log.Warn("a name of an upstream cannot be looked up, its last endpoints stay", "name", l.query.Name, "error", err)
		}
	} else if before.Err != nil {
		h.cfg.Log.Info("a name of an upstream can be looked up again", "name", l.query.Name, "failed_since", before.Since)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Store(next)
	if !slices.Equal(before.Targets, next.Targets) {
		for _, w := range l.watches {
			w.changed()
		}
	}
	l.done.Do(func() { close(l.first) })
}
