package store

import (
	"context"
	"fmt"
	"iter"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/config"
	storev1 "portcullis.dev/portcullis/proto/store/v1"
)

// A change too large for one transaction is staged: its edits are first written
// as pieces that nobody reads; then one small transaction makes them count, with
// a record that refers to the pieces and a mark, unfolded. Loads see the commit
// through the mark; watchers see the one record. Whoever writes next, and
// maintain, folds: copies the pieces to the resources' own keys and removes the
// mark. Folding changes nothing that anybody can see, and several may do it at
// once.

// foldWorkers is how many folding transactions are under way at once.
const foldWorkers = 4

// foldOps bounds one of them, since other writes wait for it: some milliseconds.
const foldOps = 1000

func (s *Etcd) applyStaged(ctx context.Context, c commit, d draft, m marks) (config.Version, error) {
	id := c.record.Id
	n, err := s.stage(ctx, id, d.edits)
	if err != nil {
		s.unstage(ctx, id)
		return config.Version{}, err
	}
	mark, err := proto.Marshal(&storev1.Unfolded{Id: id, Pieces: n})
	if err != nil {
		return config.Version{}, fmt.Errorf("store: encoding a staged commit: %w", err)
	}
	c.record.Pieces = n
	// The sweep deletes all pieces of an id at once: the first stands for all.
	c.when = append(c.when, clientv3.Compare(clientv3.CreateRevision(s.keys.piece(id, 0)), ">", 0))
	if len(d.credentials) > 0 {
		// Too many to be compared one by one.
		c.when = append(c.when, clientv3.Compare(clientv3.ModRevision(s.keys.keys()), "=", m.creds))
	}
	c.then = append(c.then,
		clientv3.OpPut(s.keys.unfolded(), string(mark)),
		clientv3.OpPut(s.keys.committed(id), s.keys.record(c.current, id)))
	v, err := s.applied(ctx, c, m)
	if err != nil && !isUnknown(err) {
		s.unstage(ctx, id)
	}
	return v, err
}

// stage writes the pieces and returns their number.
func (s *Etcd) stage(ctx context.Context, id string, edits []*storev1.Edit) (uint32, error) {
	var n uint32
	for piece := range pack(edits) {
		value, err := proto.Marshal(piece)
		if err != nil {
			return 0, fmt.Errorf("store: encoding a piece: %w", err)
		}
		// A put may be repeated: it writes the same again.
		var b backoff
		for {
			_, err = s.client.Put(ctx, s.keys.piece(id, n), string(value))
			if err == nil {
				break
			}
			if refused(err) || b.wait(ctx) != nil {
				return 0, fmt.Errorf("store: staging: %w", explain(err))
			}
		}
		n++
	}
	return n, nil
}

// pack cuts edits into pieces of about pieceBytes.
func pack(edits []*storev1.Edit) iter.Seq[*storev1.Piece] {
	return func(yield func(*storev1.Piece) bool) {
		first, size := 0, 0
		for i, e := range edits {
			n := proto.Size(e) + 8
			if i > first && size+n > pieceBytes {
				if !yield(&storev1.Piece{Edits: edits[first:i]}) {
					return
				}
				first, size = i, 0
			}
			size += n
		}
		yield(&storev1.Piece{Edits: edits[first:]})
	}
}

// unstage takes pieces back, as well as it can: the sweep gets what is left.
func (s *Etcd) unstage(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resolveTime)
	defer cancel()
	stop := context.AfterFunc(s.ctx, cancel)
	defer stop()
	_, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(s.keys.committed(id)), "=", 0)).
		Then(clientv3.OpDelete(s.keys.pieces(id), clientv3.WithPrefix())).
		Commit()
	if err != nil {
		s.log.Warn("pieces of a failed commit left behind", "id", id, "error", err)
	}
}

// piece reads one piece as of a revision, 0 being the current one.
func (s *Etcd) piece(ctx context.Context, id string, n uint32, revision int64) (*storev1.Piece, error) {
	resp, err := s.client.Get(ctx, s.keys.piece(id, n), clientv3.WithRev(revision))
	if err != nil {
		return nil, fmt.Errorf("store: reading a staged commit: %w", explain(err))
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("%w: piece %d of commit %s was dropped", ErrCompacted, n, id)
	}
	p := new(storev1.Piece)
	if err := proto.Unmarshal(resp.Kvs[0].Value, p); err != nil {
		return nil, fmt.Errorf("store: decoding piece %d of commit %s: %w", n, id, err)
	}
	return p, nil
}

// fold copies a staged commit to the resources' own keys. It may be repeated and
// run on several replicas: each write is conditional on the mark being there.
func (s *Etcd) fold(ctx context.Context, u *storev1.Unfolded, at int64) error {
	mark := clientv3.Compare(clientv3.ModRevision(s.keys.unfolded()), "=", at)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, foldWorkers)
	var workers sync.WaitGroup
	defer workers.Wait()
	for n := range u.Pieces {
		p, err := s.piece(ctx, u.Id, n, at)
		if err != nil {
			return firstCause(ctx, err)
		}
		for ops := range s.chunk(s.writes(p.Edits), p.Edits) {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			workers.Go(func() {
				defer func() { <-slots }()
				if err := s.repeat(ctx, mark, ops); err != nil {
					cancel(err)
				}
			})
		}
	}
	workers.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.repeat(ctx, mark, []clientv3.Op{clientv3.OpDelete(s.keys.unfolded())})
}

func firstCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// repeat writes what may be written more than once, until it is certain to have
// been written or the condition fails.
func (s *Etcd) repeat(ctx context.Context, when clientv3.Cmp, ops []clientv3.Op) error {
	var b backoff
	for {
		_, err := s.client.Txn(ctx).If(when).Then(ops...).Commit()
		if err == nil {
			return nil
		}
		if refused(err) || b.wait(ctx) != nil {
			return fmt.Errorf("store: folding: %w", explain(err))
		}
	}
}

// chunk groups operations into transactions within the limits.
func (s *Etcd) chunk(ops []clientv3.Op, edits []*storev1.Edit) iter.Seq[[]clientv3.Op] {
	return func(yield func([]clientv3.Op) bool) {
		first, size := 0, 0
		for i, e := range edits {
			n := len(e.After) + 256
			if i > first && (size+n > s.maxBytes || i-first >= min(s.maxOps-8, foldOps)) {
				if !yield(ops[first:i]) {
					return
				}
				first, size = i, 0
			}
			size += n
		}
		yield(ops[first:])
	}
}
