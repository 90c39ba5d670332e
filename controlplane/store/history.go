package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	clientv3 "go.etcd.io/etcd/client/v3"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// History implements Store. It sorts the keys of the whole history, which the
// history's limit bounds.
func (s *Etcd) History(ctx context.Context, before int64, limit int, workspace string) ([]*HistoryRecord, error) {
	if limit <= 0 {
		limit = 50
	}
	opts := []clientv3.OpOption{
		clientv3.WithPrefix(), clientv3.WithKeysOnly(),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortDescend),
	}
	if before > 0 {
		opts = append(opts, clientv3.WithMaxModRev(before-1))
	}
	resp, err := s.client.Get(ctx, s.keys.history(), opts...)
	if err != nil {
		return nil, fmt.Errorf("store: listing history: %w", explain(err))
	}
	var out []*HistoryRecord
	for _, kv := range resp.Kvs {
		if len(out) == limit {
			break
		}
		one, err := s.client.Get(ctx, string(kv.Key))
		if err != nil {
			return nil, fmt.Errorf("store: reading history: %w", explain(err))
		}
		if len(one.Kvs) == 0 {
			break // trimmed meanwhile, and so is all that is older
		}
		h, err := s.decodeRecord(ctx, one.Kvs[0], true)
		if err != nil {
			return nil, err
		}
		if h != nil && touches(h, workspace) {
			out = append(out, h)
		}
	}
	return out, nil
}

// Tip implements Store.
func (s *Etcd) Tip(ctx context.Context) (config.Version, error) {
	m, err := s.readMarks(ctx)
	if err != nil {
		return config.Version{}, err
	}
	return s.version(m.tip), nil
}

// touches reports whether a commit changes something of a workspace; every commit
// touches the empty one.
func touches(h *HistoryRecord, workspace string) bool {
	return workspace == "" || slices.ContainsFunc(h.Edits, func(e Edit) bool {
		return e.Key.Workspace == workspace || e.Key.Kind == config.KindWorkspace && e.Key.Name == workspace
	})
}

// At implements Store: it takes the current resources and undoes, newest first,
// every commit after the revision.
func (s *Etcd) At(ctx context.Context, revision int64) ([]*configv1.Resource, error) {
	m, err := s.readMarks(ctx)
	if err != nil {
		return nil, err
	}
	if revision > m.tip || revision < 1 {
		return nil, fmt.Errorf("%w: revision %d; the newest is %d", ErrNotFound, revision, m.tip)
	}
	trimmed, err := s.trimmedRevision(ctx, m.revision)
	if err != nil {
		return nil, err
	}
	if revision < trimmed {
		return nil, fmt.Errorf("%w: history before revision %d was dropped", ErrCompacted, trimmed)
	}
	over, err := s.overlay(ctx, m)
	if err != nil {
		return nil, err
	}
	now, err := s.loadResources(ctx, m.revision, over)
	if err != nil {
		return nil, err
	}
	var records []*HistoryRecord
	for kv, err := range s.scan(ctx, s.keys.history(), m.revision) {
		if err != nil {
			return nil, err
		}
		if kv.ModRevision <= revision {
			continue
		}
		h, err := s.decodeRecord(ctx, kv, true)
		if err != nil {
			return nil, err
		}
		if h != nil {
			records = append(records, h)
		}
	}
	return undo(now, records), nil
}

// undo takes commits back from a set of resources.
func undo(now []*configv1.Resource, records []*HistoryRecord) []*configv1.Resource {
	set := make(map[config.Key]*configv1.Resource, len(now))
	for _, r := range now {
		set[config.KeyOf(r)] = r
	}
	slices.SortFunc(records, func(a, b *HistoryRecord) int { return b.Version.Compare(a.Version) })
	for _, h := range records {
		for _, e := range h.Edits {
			switch {
			case e.Key.Kind == kindCredential:
			case e.Before == nil:
				delete(set, e.Key)
			default:
				set[e.Key] = e.Before
			}
		}
	}
	out := slices.Collect(maps.Values(set))
	sortResources(out)
	return out
}

// trimmedRevision is that of the newest record that was dropped, as of a
// revision.
func (s *Etcd) trimmedRevision(ctx context.Context, revision int64) (int64, error) {
	resp, err := s.client.Get(ctx, s.keys.trimmed(), clientv3.WithRev(revision))
	if err != nil {
		return 0, fmt.Errorf("store: reading: %w", explain(err))
	}
	if len(resp.Kvs) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseInt(string(resp.Kvs[0].Value), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("store: decoding: %w", err)
	}
	return n, nil
}
