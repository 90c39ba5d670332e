package store

import (
	"context"
	"fmt"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	storev1 "portcullis.dev/portcullis/proto/store/v1"
)

// wanted is what a change asks for, by key: nil asks for deletion.
type wanted struct {
	keys  []config.Key
	after map[config.Key]*configv1.Resource
}

// want sorts a change out, and refuses one that says two things about one key.
func want(change *adminv1.Change) (wanted, error) {
	w := wanted{after: make(map[config.Key]*configv1.Resource, len(change.GetUpserts())+len(change.GetDeletes()))}
	add := func(k config.Key, r *configv1.Resource) error {
		if err := checkKey(k); err != nil {
			return err
		}
		if _, twice := w.after[k]; twice {
			return fmt.Errorf("%w: the change names %s twice", ErrInvalid, k)
		}
		w.after[k] = r
		w.keys = append(w.keys, k)
		return nil
	}
	for _, r := range change.GetUpserts() {
		if err := add(config.KeyOf(r), r); err != nil {
			return wanted{}, err
		}
	}
	for _, k := range change.GetDeletes() {
		if err := add(config.KeyOfProto(k), nil); err != nil {
			return wanted{}, err
		}
	}
	return w, nil
}

// Apply implements Store.
func (s *Etcd) Apply(ctx context.Context, at config.Version, change *adminv1.Change, meta Meta) (config.Version, error) {
	w, err := want(change)
	if err != nil {
		return config.Version{}, err
	}
	return again(ctx, func() (config.Version, error) { return s.apply(ctx, at, w, meta) })
}

func (s *Etcd) apply(ctx context.Context, at config.Version, w wanted, meta Meta) (config.Version, error) {
	m, err := s.settled(ctx)
	if err != nil {
		return config.Version{}, err
	}
	if err := movedPast(at, s.version(m.tip), m.head); err != nil {
		return config.Version{}, err
	}
	d, err := s.draft(ctx, w, m.revision)
	if err != nil {
		return config.Version{}, err
	}
	if len(d.edits) == 0 {
		return s.version(m.tip), nil
	}
	c := commit{record: newRecord(meta), current: m.revision}
	if d.config {
		c.then = append(c.then, s.touch(s.keys.head()))
	}
	if len(d.credentials) > 0 {
		c.then = append(c.then, s.touch(s.keys.keys()))
	}
	c.when = append(c.when, clientv3.Compare(clientv3.ModRevision(s.keys.head()), "=", m.head))
	if len(d.edits)+len(d.credentials)+8 > s.maxOps || d.bytes > s.maxBytes {
		return s.applyStaged(ctx, c, d, m)
	}
	c.when = append(c.when, d.credentials...)
	c.then = append(c.then, s.writes(d.edits)...)
	c.record.Edits = d.edits
	return s.applied(ctx, c, m)
}

// applied commits, and says which condition failed when one did.
func (s *Etcd) applied(ctx context.Context, c commit, m marks) (config.Version, error) {
	revision, ok, err := s.commit(ctx, c)
	if err != nil {
		return config.Version{}, err
	}
	if ok {
		return s.version(revision), nil
	}
	now, err := s.readMarks(ctx)
	if err != nil {
		return config.Version{}, err
	}
	if now.head != m.head {
		return config.Version{}, fmt.Errorf("%w: revision %d was committed meanwhile", ErrConflict, now.head)
	}
	return config.Version{}, errAgain
}

// movedPast fails when the config lane's head is not what at has seen.
func movedPast(at, tip config.Version, head int64) error {
	switch {
	case at.Epoch != tip.Epoch:
		return fmt.Errorf("%w: planned in epoch %d, now in %d", ErrConflict, at.Epoch, tip.Epoch)
	case head > at.Revision:
		return fmt.Errorf("%w: planned on revision %d, now at %d", ErrConflict, at.Revision, head)
	case at.Revision > tip.Revision:
		return fmt.Errorf("%w: planned on revision %d, which is ahead of the newest, %d", ErrConflict, at.Revision, tip.Revision)
	}
	return nil
}

// draft is a change worked out against what is stored.
type draft struct {
	edits []*storev1.Edit
	// bytes of the values that a commit of the edits writes.
	bytes int
	// config: some edit is of the config lane.
	config bool
	// credentials: a condition for each credential, that it is as the draft saw it.
	credentials []clientv3.Cmp
}

// draft reads what the change replaces, as of a revision, and leaves out what
// changes nothing.
func (s *Etcd) draft(ctx context.Context, w wanted, revision int64) (draft, error) {
	var d draft
	for keys := range slices.Chunk(w.keys, externalTxnOps) {
		ops := make([]clientv3.Op, len(keys))
		for i, k := range keys {
			ops[i] = clientv3.OpGet(s.keys.resource(k), clientv3.WithRev(revision))
		}
		resp, err := s.readTxn(ctx, ops)
		if err != nil {
			return draft{}, fmt.Errorf("store: reading what a change replaces: %w", explain(err))
		}
		for i, k := range keys {
			var before []byte
			var at int64
			if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
				before, at = kvs[0].Value, kvs[0].ModRevision
			}
			if err := s.edit(&d, k, before, at, w.after[k]); err != nil {
				return draft{}, err
			}
		}
	}
	return d, nil
}

func (s *Etcd) edit(d *draft, k config.Key, before []byte, at int64, after *configv1.Resource) error {
	value, err := s.codec.encode(k, after)
	if err != nil {
		return err
	}
	if same, err := s.codec.same(k, before, value, after); same || err != nil {
		return err
	}
	if len(value) > maxResource {
		return fmt.Errorf("%w: %s is %d bytes, at most %d can be stored", ErrTooLarge, k, len(value), maxResource)
	}
	d.edits = append(d.edits, &storev1.Edit{Key: k.Proto(), Before: before, After: value})
	d.bytes += 2*len(value) + len(before) + 4*(len(k.Kind)+len(k.Workspace)+len(k.Name))
	if k.Kind == kindCredential {
		d.credentials = append(d.credentials, clientv3.Compare(clientv3.ModRevision(s.keys.resource(k)), "=", at))
	} else {
		d.config = true
	}
	return nil
}

// writes puts the edits where their resources are stored.
func (s *Etcd) writes(edits []*storev1.Edit) []clientv3.Op {
	ops := make([]clientv3.Op, len(edits))
	for i, e := range edits {
		key := s.keys.resource(config.KeyOfProto(e.Key))
		if len(e.After) == 0 {
			ops[i] = clientv3.OpDelete(key)
		} else {
			ops[i] = clientv3.OpPut(key, string(e.After))
		}
	}
	return ops
}
