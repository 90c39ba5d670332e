package store

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// memoryProof is how often a watch of a Memory proves that it is current.
const memoryProof = 200 * time.Millisecond

// Watch implements Store.
func (s *Memory) Watch(ctx context.Context, after config.Version) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		last := after
		hinted := int64(-1)
		tick := time.NewTicker(memoryProof)
		defer tick.Stop()
		for {
			events, moved, err := s.since(ctx, last, &hinted)
			if err != nil {
				yield(Event{}, err)
				return
			}
			for _, e := range events {
				if e.Version.Revision > 0 {
					last = e.Version
				}
				if !yield(e, nil) {
					return
				}
			}
			select {
			case <-moved:
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}
}

// since returns what a watch has not seen, and a proof; and what is closed at the
// next change.
func (s *Memory) since(ctx context.Context, last config.Version, hinted *int64) ([]Event, <-chan struct{}, error) {
	asOf := time.Now()
	if err := s.enter(ctx); err != nil {
		return nil, nil, err
	}
	defer s.mu.Unlock()
	if tip := s.version(s.tip()); last.Epoch != s.epoch || last.Revision > tip.Revision || last.Revision < s.compacted {
		return nil, nil, fmt.Errorf("%w: asked for what follows %s, the store is at %s", ErrCompacted, last, tip)
	}
	var events []Event
	for _, h := range s.log {
		if h.Version.Revision > last.Revision {
			events = append(events, eventOf(cloneRecord(h), last))
			last = h.Version
		}
	}
	rooms := make(map[string]bool)
	for _, h := range s.hints {
		if *hinted >= 0 && h.revision > *hinted || *hinted < 0 && h.revision > last.Revision {
			rooms[h.room] = true
		}
	}
	*hinted = s.revision
	if len(rooms) > 0 {
		events = append(events, hint(rooms))
	}
	return append(events, Event{Progress: s.revision, AsOf: asOf}), s.moved, nil
}

func cloneRecord(h *HistoryRecord) *HistoryRecord {
	out := *h
	out.Edits = make([]Edit, len(h.Edits))
	for i, e := range h.Edits {
		out.Edits[i] = Edit{e.Key, proto.CloneOf(e.Before), proto.CloneOf(e.After)}
	}
	out.Revocations = make([]*controlv1.Revocation, len(h.Revocations))
	for i, r := range h.Revocations {
		out.Revocations[i] = proto.CloneOf(r)
	}
	return &out
}

// History implements Store.
func (s *Memory) History(ctx context.Context, before int64, limit int, workspace string) ([]*HistoryRecord, error) {
	if limit <= 0 {
		limit = 50
	}
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var out []*HistoryRecord
	for _, h := range slices.Backward(s.log) {
		if len(out) < limit && (before == 0 || h.Version.Revision < before) && touches(h, workspace) {
			out = append(out, cloneRecord(h))
		}
	}
	return out, nil
}

// At implements Store.
func (s *Memory) At(ctx context.Context, revision int64) ([]*configv1.Resource, error) {
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if revision > s.tip() || revision < 1 {
		return nil, fmt.Errorf("%w: revision %d; the newest is %d", ErrNotFound, revision, s.tip())
	}
	var now []*configv1.Resource
	for k, r := range s.stored {
		if k.Kind != kindCredential {
			now = append(now, r)
		}
	}
	var records []*HistoryRecord
	for _, h := range s.log {
		if h.Version.Revision > revision {
			records = append(records, h)
		}
	}
	out := undo(now, records)
	for i, r := range out {
		out[i] = proto.CloneOf(r)
	}
	return out, nil
}
