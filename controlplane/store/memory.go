package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Memory is Store in memory, for tests of what stands on a store. Use NewMemory.
type Memory struct {
	mu sync.Mutex
	// Owned by mu.
	revision    int64
	epoch       uint64
	head, deny  int64
	stored      map[config.Key]*configv1.Resource
	revocations map[string]*controlv1.Revocation
	// log is all commits since compacted, oldest first.
	log       []*HistoryRecord
	compacted int64
	items     map[string]map[string]memoryItem
	// hints are the rooms that changed, oldest first.
	hints  []roomHint
	closed bool
	// moved is closed and replaced at every change.
	moved chan struct{}
}

type memoryItem struct {
	Item
	expires time.Time
}

type roomHint struct {
	revision int64
	room     string
}

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{
		revision: 1, head: 1, deny: 1, epoch: 1,
		stored:      make(map[config.Key]*configv1.Resource),
		revocations: make(map[string]*controlv1.Revocation),
		items:       make(map[string]map[string]memoryItem),
		moved:       make(chan struct{}),
	}
}

// Compact forgets what was committed up to now: a Watch from before fails with
// ErrCompacted.
func (s *Memory) Compact() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compacted = s.tip()
}

// Restore begins a new epoch, as a restore from backup does.
func (s *Memory) Restore() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	s.revision++
	s.head, s.deny, s.compacted = s.revision, s.revision, s.revision
	s.move()
}

// Tip implements Store.
func (s *Memory) Tip(context.Context) (config.Version, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.version(s.tip()), nil
}

// tip is the newest commit's revision. Needs mu.
func (s *Memory) tip() int64 {
	tip := max(s.head, s.deny)
	if len(s.log) > 0 {
		tip = max(tip, s.log[len(s.log)-1].Version.Revision)
	}
	return tip
}

// move wakes all watches. Needs mu.
func (s *Memory) move() {
	close(s.moved)
	s.moved = make(chan struct{})
}

// enter locks, unless the store or the context has ended.
func (s *Memory) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	return nil
}

func (s *Memory) version(revision int64) config.Version {
	return config.Version{Epoch: s.epoch, Revision: revision}
}

// Load implements Store.
func (s *Memory) Load(ctx context.Context) (*State, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	s.expire(time.Now())
	st := &State{Version: s.version(s.tip()), RevocationsRevision: s.deny}
	var credentials []*configv1.Resource
	for k, r := range s.stored {
		if k.Kind == kindCredential {
			credentials = append(credentials, proto.CloneOf(r))
		} else {
			st.Resources = append(st.Resources, proto.CloneOf(r))
		}
	}
	sortResources(st.Resources)
	for _, r := range s.revocations {
		st.Revocations = append(st.Revocations, proto.CloneOf(r))
	}
	st.Credentials = func(yield func(*configv1.Resource, error) bool) {
		for _, r := range credentials {
			if !yield(r, nil) {
				return
			}
		}
	}
	return st, nil
}

// expire drops revocations and items whose time has passed. Needs mu.
func (s *Memory) expire(now time.Time) {
	for id, r := range s.revocations {
		if r.ExpiresAt != nil && r.ExpiresAt.AsTime().Add(revocationGrace).Before(now) {
			delete(s.revocations, id)
		}
	}
	for _, room := range s.items {
		for name, item := range room {
			if !item.expires.IsZero() && !now.Before(item.expires) {
				delete(room, name)
			}
		}
	}
}

// Apply implements Store.
func (s *Memory) Apply(ctx context.Context, at config.Version, change *adminv1.Change, meta Meta) (config.Version, error) {
	w, err := want(change)
	if err != nil {
		return config.Version{}, err
	}
	if err := s.enter(ctx); err != nil {
		return config.Version{}, err
	}
	defer s.mu.Unlock()
	if err := movedPast(at, s.version(s.tip()), s.head); err != nil {
		return config.Version{}, err
	}
	for _, k := range w.keys {
		if n := proto.Size(w.after[k]); n >= maxResource {
			return config.Version{}, fmt.Errorf("%w: %s is %d bytes, at most %d can be stored", ErrTooLarge, k, n, maxResource)
		}
	}
	return s.write(w, meta), nil
}

// write commits what differs. Needs mu.
func (s *Memory) write(w wanted, meta Meta) config.Version {
	h := s.record(meta)
	for _, k := range w.keys {
		before, after := s.stored[k], w.after[k]
		if before == nil && after == nil || before != nil && after != nil && proto.Equal(before, after) {
			continue
		}
		e := Edit{Key: k, Before: before}
		if after == nil {
			delete(s.stored, k)
		} else {
			e.After = proto.CloneOf(after)
			s.stored[k] = e.After
		}
		h.Edits = append(h.Edits, e)
	}
	if len(h.Edits) == 0 {
		return s.version(s.tip())
	}
	s.commit(h)
	if slices.ContainsFunc(h.Edits, func(e Edit) bool { return e.Key.Kind != kindCredential }) {
		s.head = h.Version.Revision
	}
	return h.Version
}

func (s *Memory) record(meta Meta) *HistoryRecord {
	if meta.Time.IsZero() {
		meta.Time = time.Now()
	}
	return &HistoryRecord{Time: meta.Time.UTC(), Author: meta.Author, Reason: meta.Reason}
}

// commit gives a record its revision. Needs mu.
func (s *Memory) commit(h *HistoryRecord) {
	s.revision++
	h.Version = s.version(s.revision)
	for _, r := range h.Revocations {
		r.Revision = s.revision
	}
	s.log = append(s.log, h)
	s.move()
}

// Revoke implements Store.
func (s *Memory) Revoke(ctx context.Context, entries []*controlv1.Revocation, meta Meta) (config.Version, error) {
	all, err := merged(entries)
	if err != nil {
		return config.Version{}, err
	}
	if err := s.enter(ctx); err != nil {
		return config.Version{}, err
	}
	defer s.mu.Unlock()
	s.expire(time.Now())
	h := s.record(meta)
	for _, r := range all {
		old := s.revocations[revocationID(r)]
		next := stronger(old, r)
		if old != nil && sameBounds(old, next) {
			continue
		}
		s.revocations[revocationID(r)] = next
		h.Revocations = append(h.Revocations, next)
	}
	if len(h.Revocations) == 0 {
		return s.version(s.tip()), nil
	}
	s.commit(h)
	s.deny = h.Version.Revision
	return h.Version, nil
}

// Close implements Store.
func (s *Memory) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		s.move()
	}
	return nil
}
