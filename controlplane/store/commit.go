package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "portcullis.dev/portcullis/proto/store/v1"
)

// resolveTime bounds how long a write whose outcome is unknown is asked after,
// beyond the caller's own context.
const resolveTime = 15 * time.Second

// commit is one transaction that leaves a record.
type commit struct {
	record *storev1.Record
	// current is the store's revision when the commit was prepared.
	current int64
	// Conditions and writes, besides those that every commit has.
	when []clientv3.Cmp
	then []clientv3.Op
}

func newRecord(meta Meta) *storev1.Record {
	if meta.Time.IsZero() {
		meta.Time = time.Now()
	}
	return &storev1.Record{
		Id: newID(), Time: timestamppb.New(meta.Time), Author: meta.Author, Reason: meta.Reason,
	}
}

// commit returns the revision, or ok false when a condition did not hold. With
// errAgain nothing was and nothing will be written.
func (s *Etcd) commit(ctx context.Context, c commit) (revision int64, ok bool, err error) {
	value, err := proto.Marshal(c.record)
	if err != nil {
		return 0, false, fmt.Errorf("store: encoding a record: %w", err)
	}
	key := s.keys.record(c.current, c.record.Id)
	when := append(c.when,
		clientv3.Compare(clientv3.ModRevision(s.keys.identity()), "=", s.identity.Load().revision),
		clientv3.Compare(clientv3.CreateRevision(s.keys.unfolded()), "=", 0),
		clientv3.Compare(clientv3.CreateRevision(key), "=", 0))
	then := append(c.then, s.touch(s.keys.tip()), clientv3.OpPut(key, string(value)))
	resp, err := s.client.Txn(ctx).If(when...).Then(then...).Commit()
	switch {
	case err == nil && resp.Succeeded:
		s.nudge()
		return resp.Header.Revision, true, nil
	case err == nil:
		return 0, false, nil
	case refused(err):
		return 0, false, fmt.Errorf("store: committing: %w", explain(err))
	}
	s.log.Warn("outcome of a commit unknown, reading back", "record", c.record.Id, "error", err)
	revision, happened, rerr := s.resolve(ctx, key)
	if rerr != nil {
		return 0, false, fmt.Errorf("%w: commit %s: %w", ErrUnknown, c.record.Id, errors.Join(explain(err), rerr))
	}
	if !happened {
		return 0, false, fmt.Errorf("%w: %w", errAgain, explain(err))
	}
	s.nudge()
	return revision, true, nil
}

// resolve finds out whether the commit of a record happened. To say no for good
// it takes the record's place: the commit may still be under way, and is
// conditional on that place being free.
func (s *Etcd) resolve(ctx context.Context, key string) (revision int64, happened bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolveTime)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	var b backoff
	for {
		resp, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, "")).
			Else(clientv3.OpGet(key)).
			Commit()
		if err == nil {
			if resp.Succeeded {
				return 0, false, nil
			}
			kv := resp.Responses[0].GetResponseRange().Kvs[0]
			return kv.ModRevision, len(kv.Value) > 0, nil
		}
		if refused(err) {
			return s.lookup(ctx, key, err)
		}
		if b.wait(ctx) != nil {
			return 0, false, err
		}
	}
}

// lookup only reads whether the record is there, for when its place cannot be
// taken since etcd is full. That it is not there proves nothing.
func (s *Etcd) lookup(ctx context.Context, key string, cause error) (int64, bool, error) {
	resp, err := s.client.Get(ctx, key)
	if err != nil || len(resp.Kvs) == 0 {
		return 0, false, errors.Join(explain(cause), explain(err))
	}
	return resp.Kvs[0].ModRevision, len(resp.Kvs[0].Value) > 0, nil
}

// marks are what a write or a load starts from, all as of revision.
type marks struct {
	revision               int64
	tip, head, creds, deny int64
	unfolded               *storev1.Unfolded
	unfoldedAt             int64
}

// readTries bounds how often a read is tried while etcd elects a leader: some
// seconds.
const readTries = 12

// readTxn reads several keys as of one revision. The client tries a read of one
// key again when a leader changes, but no transaction, since it does not look
// whether that writes.
func (s *Etcd) readTxn(ctx context.Context, ops []clientv3.Op) (*clientv3.TxnResponse, error) {
	for b := (backoff{}); ; {
		resp, err := s.client.Txn(ctx).Then(ops...).Commit()
		if err == nil || ctx.Err() != nil || s.ctx.Err() != nil || !transient(err) || b.tries >= readTries || b.wait(ctx) != nil {
			return resp, err
		}
	}
}

// readMarks reads the marks, of the current revision. It notices a new identity.
func (s *Etcd) readMarks(ctx context.Context) (marks, error) {
	if s.ctx.Err() != nil {
		return marks{}, ErrClosed
	}
	keys := []string{s.keys.tip(), s.keys.head(), s.keys.keys(), s.keys.deny(), s.keys.unfolded(), s.keys.identity()}
	ops := make([]clientv3.Op, len(keys))
	for i, k := range keys {
		ops[i] = clientv3.OpGet(k)
	}
	resp, err := s.readTxn(ctx, ops)
	if err != nil {
		return marks{}, fmt.Errorf("store: reading: %w", explain(err))
	}
	m := marks{revision: resp.Header.Revision}
	at := make([]int64, len(keys))
	for i, r := range resp.Responses {
		if kvs := r.GetResponseRange().Kvs; len(kvs) > 0 {
			at[i] = kvs[0].ModRevision
			if keys[i] == s.keys.unfolded() {
				m.unfolded = new(storev1.Unfolded)
				if err := proto.Unmarshal(kvs[0].Value, m.unfolded); err != nil {
					return marks{}, fmt.Errorf("store: decoding the unfolded commit: %w", err)
				}
			}
		}
	}
	m.tip, m.head, m.creds, m.deny, m.unfoldedAt = at[0], at[1], at[2], at[3], at[4]
	if id := s.identity.Load(); at[5] != id.revision || resp.Header.ClusterId != id.cluster {
		if err := s.identify(ctx, false); err != nil {
			return marks{}, err
		}
		return s.readMarks(ctx)
	}
	return m, nil
}

// settled reads the marks when no staged commit is left to fold; it helps fold.
func (s *Etcd) settled(ctx context.Context) (marks, error) {
	m, err := s.readMarks(ctx)
	if err != nil || m.unfolded == nil {
		return m, err
	}
	if err := s.fold(ctx, m.unfolded, m.unfoldedAt); err != nil {
		return marks{}, err
	}
	return marks{}, errAgain
}

// nudge wakes maintain.
func (s *Etcd) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
