package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	storev1 "portcullis.dev/portcullis/proto/store/v1"
)

const (
	tidyEvery = time.Minute
	// orphanAge is how old uncommitted pieces are before they are swept.
	orphanAge = time.Hour
)

// maintain folds staged commits, trims history, sweeps orphans, and makes space
// in the embedded server. Several replicas may do so at once.
func (s *Etcd) maintain(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	orphans := make(map[string]time.Time)
	for {
		if err := s.foldPending(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("folding a staged commit failed; the next write does it", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			continue
		case <-tick.C:
		}
		err := errors.Join(s.trim(ctx), s.sweep(ctx, orphans, time.Now()), s.makeSpace(ctx))
		if err != nil && ctx.Err() == nil {
			s.log.Warn("tidying the store failed", "error", err)
		}
	}
}

func (s *Etcd) foldPending(ctx context.Context) error {
	resp, err := s.client.Get(ctx, s.keys.unfolded())
	if err != nil || len(resp.Kvs) == 0 {
		return explain(err)
	}
	var u storev1.Unfolded
	if err := proto.Unmarshal(resp.Kvs[0].Value, &u); err != nil {
		return fmt.Errorf("store: decoding the unfolded commit: %w", err)
	}
	return s.fold(ctx, &u, resp.Kvs[0].ModRevision)
}

// trim drops the oldest records once there are a tenth more than the limit, in
// order, and remembers up to where, so that At never answers from a history with
// a hole.
func (s *Etcd) trim(ctx context.Context) error {
	count, err := s.client.Get(ctx, s.keys.history(), clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return fmt.Errorf("store: counting history: %w", explain(err))
	}
	excess := count.Count - int64(s.cfg.HistoryLimit)
	if excess <= int64(s.cfg.HistoryLimit/10) {
		return nil
	}
	resp, err := s.client.Get(ctx, s.keys.history(), clientv3.WithPrefix(), clientv3.WithKeysOnly(),
		clientv3.WithSort(clientv3.SortByModRevision, clientv3.SortAscend), clientv3.WithLimit(excess))
	if err != nil {
		return fmt.Errorf("store: listing history: %w", explain(err))
	}
	for part := range slices.Chunk(resp.Kvs, externalTxnOps/3-2) {
		mark, err := s.client.Get(ctx, s.keys.trimmed())
		if err != nil {
			return fmt.Errorf("store: trimming: %w", explain(err))
		}
		var at int64
		if len(mark.Kvs) > 0 {
			at = mark.Kvs[0].ModRevision
		}
		newest := part[len(part)-1].ModRevision
		ops := []clientv3.Op{clientv3.OpPut(s.keys.trimmed(), strconv.FormatInt(newest, 10))}
		for _, kv := range part {
			_, id, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), s.keys.history()), "-")
			ops = append(ops, clientv3.OpDelete(string(kv.Key)), clientv3.OpDelete(s.keys.committed(id)),
				clientv3.OpDelete(s.keys.pieces(id), clientv3.WithPrefix()))
		}
		// Another replica at it: it has moved the mark. Pieces not yet folded stay.
		txn, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(s.keys.trimmed()), "=", at),
				clientv3.Compare(clientv3.CreateRevision(s.keys.unfolded()), "=", 0)).
			Then(ops...).Commit()
		if err != nil {
			return fmt.Errorf("store: trimming: %w", explain(err))
		}
		if !txn.Succeeded {
			return nil
		}
	}
	return nil
}

// sweep deletes pieces that nobody has committed for long. seen remembers since
// when by this process's clock, so that clocks need not agree.
func (s *Etcd) sweep(ctx context.Context, seen map[string]time.Time, now time.Time) error {
	resp, err := s.client.Get(ctx, s.keys.staged(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("store: listing pieces: %w", explain(err))
	}
	present := make(map[string]bool)
	for _, kv := range resp.Kvs {
		id, _, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), s.keys.staged()), "/")
		present[id] = true
	}
	for id := range seen {
		if !present[id] {
			delete(seen, id)
		}
	}
	for id := range present {
		since, ok := seen[id]
		if !ok {
			seen[id] = now
			continue
		}
		if now.Sub(since) >= orphanAge {
			s.unstage(ctx, id) // does nothing to committed ones
		}
	}
	return nil
}

// makeSpace compacts, defragments and disarms a full embedded server. An
// external one is its operator's to look after.
func (s *Etcd) makeSpace(ctx context.Context) error {
	if s.embedded == nil {
		return nil
	}
	alarms, err := s.client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("store: asking for alarms: %w", err)
	}
	full := slices.ContainsFunc(alarms.Alarms, func(a *etcdserverpb.AlarmMember) bool {
		return a.Alarm == etcdserverpb.AlarmType_NOSPACE
	})
	if !full {
		return nil
	}
	now, err := s.client.Get(ctx, s.keys.tip())
	if err != nil {
		return fmt.Errorf("store: making space: %w", explain(err))
	}
	if _, err := s.client.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical()); err != nil && !errors.Is(explain(err), ErrCompacted) {
		return fmt.Errorf("store: compacting: %w", explain(err))
	}
	server := s.embedded.etcd.Server
	if err := server.Backend().Defrag(); err != nil {
		return fmt.Errorf("store: defragmenting: %w", err)
	}
	if server.Backend().Size() > server.Cfg.QuotaBackendBytes/10*9 {
		return fmt.Errorf("%w: compaction did not make enough space", ErrFull)
	}
	for _, a := range alarms.Alarms {
		if _, err := s.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return fmt.Errorf("store: disarming: %w", err)
		}
	}
	s.log.Info("embedded etcd was full; made space", "bytes", server.Backend().Size())
	return nil
}
