package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"portcullis.dev/portcullis/pkg/config"
)

// lazyTransfer is encoded by the first node that needs it.
type lazyTransfer struct {
	once sync.Once
	t    *transfer
	err  error
}

func (l *lazyTransfer) get(make func() (*transfer, error)) (*transfer, error) {
	l.once.Do(func() { l.t, l.err = make() })
	return l.t, l.err
}

var errMoved = errors.New("the head has moved on")

// delta returns the encoded changes from..to; errMoved when to is not the head
// any more or from has fallen out of the ring.
func (h *Hub) delta(step Step) (*transfer, error) {
	return h.encoded(h.deltas, step, func() (*transfer, error) {
		h.mu.RLock()
		head, signature := h.head, h.signature
		if head.Version != step.To || !h.ring.covers(step.From) {
			h.mu.RUnlock()
			return nil, errMoved
		}
		m := h.ring.since(step.From)
		h.mu.RUnlock()
		c := newChunker(step.To, step.From, h.cfg.ChunkBytes)
		c.revocations(slices.Values(m.revocations))
		c.deletes(m.deletes)
		c.resources(slices.Values(m.upserts))
		c.credentials(packed(m.credentials, m.credentialDeletes, h.cfg.ChunkBytes))
		return c.finish(head, signature)
	})
}

// denial returns the encoded deny lane from..to.
func (h *Hub) denial(step Step) (*transfer, error) {
	return h.encoded(h.denials, step, func() (*transfer, error) {
		h.mu.RLock()
		head := h.head
		if head.Version != step.To || !h.ring.covers(step.From) {
			h.mu.RUnlock()
			return nil, errMoved
		}
		entries := h.ring.revocationsSince(step.From)
		h.mu.RUnlock()
		c := newLaneChunker(step.To, step.From, h.cfg.ChunkBytes)
		c.revocations(slices.Values(entries))
		return c.finish(head, nil)
	})
}

func (h *Hub) encoded(cache map[config.Version]*lazyTransfer, step Step, make func() (*transfer, error)) (*transfer, error) {
	h.mu.Lock()
	if h.head.Version != step.To {
		h.mu.Unlock()
		return nil, errMoved
	}
	l := cache[step.From]
	if l == nil {
		l = &lazyTransfer{}
		cache[step.From] = l
	}
	h.mu.Unlock()
	return l.get(make)
}

// fullIdle is how long an encoded full state is kept after its last use, so that
// a thousand nodes that come back share one.
const fullIdle = 10 * time.Second

// fullState is the last full state that was encoded, and whoever waits for one.
type fullState struct {
	mu       sync.Mutex
	ready    *transfer
	used     time.Time
	failed   time.Time
	building bool
	waiting  map[*node]struct{}
}

func (f *fullState) expire(now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ready != nil && now.Sub(f.used) > fullIdle {
		f.ready = nil
	}
	// Also retries after a failure.
	if !f.building && now.Sub(f.failed) > time.Second {
		f.wakeWaiting()
	}
}

func (f *fullState) forget(n *node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waiting, n)
}

// takeFull returns an encoded full state that a delta can bring to the head, and for
// which ok returns true. Without one it has one made and returns nil; n is woken
// when to ask again.
func (h *Hub) takeFull(n *node, ok func(config.Version) bool) *transfer {
	f := &h.full
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ready != nil && h.reaches(f.ready.version) && ok(f.ready.version) {
		f.used = time.Now()
		return f.ready
	}
	if n.gone.Load() {
		return nil
	}
	if f.waiting == nil {
		f.waiting = map[*node]struct{}{}
	}
	f.waiting[n] = struct{}{}
	if !f.building && time.Since(f.failed) > time.Second && h.start(1) {
		f.building, f.ready = true, nil
		go h.buildFull()
	}
	return nil
}

// reaches reports whether a node at v gets to the head by a delta.
func (h *Hub) reaches(v config.Version) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return v.Compare(h.head.Version) >= 0 || h.ring.covers(v)
}

func (h *Hub) buildFull() {
	defer h.running.Done()
	wanted := h.Head().Version
	t, err := h.encodeFull(h.life)
	if err == nil && t.version.Compare(wanted) < 0 {
		err = fmt.Errorf("the full state is at %v, behind the head %v", t.version, wanted)
	}
	f := &h.full
	f.mu.Lock()
	defer f.mu.Unlock()
	f.building = false
	if err != nil {
		f.failed = time.Now()
		h.cfg.Logger.Error("encode the full state", "err", err)
		return
	}
	f.ready, f.used = t, time.Now()
	f.wakeWaiting()
}

// wakeWaiting wakes whoever waits; f.mu is held.
func (f *fullState) wakeWaiting() {
	for n := range f.waiting {
		n.wake()
	}
	clear(f.waiting)
}

func (h *Hub) encodeFull(ctx context.Context) (*transfer, error) {
	s, err := h.cfg.Full(ctx)
	if err != nil {
		return nil, fmt.Errorf("load the full state: %w", err)
	}
	release := sync.OnceFunc(func() {
		if s.Release != nil {
			s.Release()
		}
	})
	defer release()
	if s.Version.IsZero() {
		return nil, errors.New("the full state has no version")
	}
	c := newChunker(s.Version, config.Version{}, h.cfg.ChunkBytes)
	if s.Revocations != nil {
		c.revocations(s.Revocations)
	}
	if s.Credentials != nil {
		c.credentials(s.Credentials(h.cfg.ChunkBytes))
	}
	release()
	c.resources(s.Resources)
	return c.finish(s.Head, h.cfg.Sign(s.Version, s.Digest))
}

// slots cap how many nodes are being sent a full state. First come, first
// served; one that waits goes on getting heartbeats and revocations.
type slots struct {
	mu    sync.Mutex
	free  int
	queue []*node
	given map[*node]bool
}

// acquire reports whether n has a slot; if not, n is woken when it gets one. One
// that is gone gets none: nobody would release it.
func (s *slots) acquire(n *node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.gone.Load() {
		return false
	}
	if s.given[n] {
		return true
	}
	if s.given == nil {
		s.given = map[*node]bool{}
	}
	if s.free > 0 {
		s.free--
		s.given[n] = true
		return true
	}
	if !slices.Contains(s.queue, n) {
		s.queue = append(s.queue, n)
	}
	return false
}

// release gives n's slot, or its place in the queue, to the next.
func (s *slots) release(n *node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue, n); i >= 0 {
		s.queue = slices.Delete(s.queue, i, i+1)
	}
	if !s.given[n] {
		return
	}
	delete(s.given, n)
	if len(s.queue) == 0 {
		s.free++
		return
	}
	next := s.queue[0]
	s.queue = s.queue[1:]
	s.given[next] = true
	next.wake()
}
