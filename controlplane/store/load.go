package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
	storev1 "portcullis.dev/portcullis/proto/store/v1"
)

// Load implements Store.
func (s *Etcd) Load(ctx context.Context) (*State, error) {
	m, err := s.readMarks(ctx)
	if err != nil {
		return nil, err
	}
	over, err := s.overlay(ctx, m)
	if err != nil {
		return nil, err
	}
	st := &State{Version: s.version(m.tip), RevocationsRevision: m.deny}
	if st.Resources, err = s.loadResources(ctx, m.revision, over); err != nil {
		return nil, err
	}
	if st.Revocations, err = s.loadRevocations(ctx, m.revision); err != nil {
		return nil, err
	}
	st.Credentials = s.streamCredentials(ctx, m.revision, over)
	return st, nil
}

// overlay is what a staged commit that is not yet folded says, by key; empty
// values are deletions.
type overlay map[config.Key][]byte

func (s *Etcd) overlay(ctx context.Context, m marks) (overlay, error) {
	if m.unfolded == nil {
		return nil, nil
	}
	over := make(overlay)
	for n := range m.unfolded.Pieces {
		p, err := s.piece(ctx, m.unfolded.Id, n, m.revision)
		if err != nil {
			return nil, err
		}
		for _, e := range p.Edits {
			over[config.KeyOfProto(e.Key)] = e.After
		}
	}
	return over, nil
}

// stored yields the resources under a prefix as of a revision, the overlay's
// last. Keys outside the prefix's lane are not the overlay's to yield.
func (s *Etcd) stored(ctx context.Context, prefix string, revision int64, over overlay, lane func(config.Key) bool) iter.Seq2[*configv1.Resource, error] {
	return func(yield func(*configv1.Resource, error) bool) {
		for kv, err := range s.scan(ctx, prefix, revision) {
			if err != nil {
				yield(nil, err)
				return
			}
			k, err := s.keys.keyOf(string(kv.Key))
			if _, covered := over[k]; covered && err == nil {
				continue
			}
			var r *configv1.Resource
			if err == nil {
				r, err = s.codec.decode(k, kv.Value)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
		for k, value := range over {
			if len(value) == 0 || !lane(k) {
				continue
			}
			r, err := s.codec.decode(k, value)
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

func (s *Etcd) loadResources(ctx context.Context, revision int64, over overlay) ([]*configv1.Resource, error) {
	isConfig := func(k config.Key) bool { return k.Kind != kindCredential }
	var out []*configv1.Resource
	for r, err := range s.stored(ctx, s.keys.resources(), revision, over, isConfig) {
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	sortResources(out)
	return out, nil
}

func sortResources(rs []*configv1.Resource) {
	slices.SortFunc(rs, func(a, b *configv1.Resource) int { return config.KeyOf(a).Compare(config.KeyOf(b)) })
}

func (s *Etcd) streamCredentials(ctx context.Context, revision int64, over overlay) iter.Seq2[*configv1.Resource, error] {
	isCredential := func(k config.Key) bool { return k.Kind == kindCredential }
	if !slices.ContainsFunc(slices.Collect(maps.Keys(over)), isCredential) {
		over = nil
	}
	return s.stored(ctx, s.keys.credentials(), revision, over, isCredential)
}

func (s *Etcd) loadRevocations(ctx context.Context, revision int64) ([]*controlv1.Revocation, error) {
	var out []*controlv1.Revocation
	for kv, err := range s.scan(ctx, s.keys.revocations(), revision) {
		if err != nil {
			return nil, err
		}
		r, err := decodeRevocation(kv)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func decodeRevocation(kv *mvccpb.KeyValue) (*controlv1.Revocation, error) {
	r := new(controlv1.Revocation)
	if err := proto.Unmarshal(kv.Value, r); err != nil {
		return nil, fmt.Errorf("store: decoding a revocation: %w", err)
	}
	r.Revision = kv.ModRevision
	return r, nil
}

// scan yields everything under a prefix as of a revision, in order, in constant
// memory. A scan that breaks off goes on where it was.
func (s *Etcd) scan(ctx context.Context, prefix string, revision int64) iter.Seq2[*mvccpb.KeyValue, error] {
	return func(yield func(*mvccpb.KeyValue, error) bool) {
		from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
		chunks := s.firstPage
		var b backoff
		for {
			stopped := false
			err := chunks(ctx, from, end, revision, func(kvs []*mvccpb.KeyValue) bool {
				for _, kv := range kvs {
					from = string(kv.Key) + "\x00"
					b = backoff{}
					if !yield(kv, nil) {
						stopped = true
						return false
					}
				}
				return true
			})
			switch {
			case stopped || err == nil:
				return
			case errors.Is(err, errMore):
				chunks = s.streamed
			case codeOf(err) == codes.Unimplemented:
				chunks = s.paged // an etcd before 3.7
			case ctx.Err() != nil || !transient(err) || b.tries > 20 || b.wait(ctx) != nil:
				yield(nil, fmt.Errorf("store: reading %s: %w", prefix, explain(err)))
				return
			}
		}
	}
}

// pageSize is how many keys one answer holds.
const pageSize = 1000

var errMore = errors.New("store: the range goes on")

// firstPage reads a range of one page, and says errMore when it goes on. Small
// ranges are the rule, and cost less so: with password authentication etcd's
// client authenticates anew for each stream, which etcd makes slow on purpose.
func (s *Etcd) firstPage(ctx context.Context, from, end string, revision int64, each func([]*mvccpb.KeyValue) bool) error {
	resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(pageSize))
	switch {
	case err != nil:
		return err
	case each(resp.Kvs) && resp.More:
		return errMore
	}
	return nil
}

// streamed reads a range with etcd's range stream.
func (s *Etcd) streamed(ctx context.Context, from, end string, revision int64, each func([]*mvccpb.KeyValue) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	ch, err := s.streams.GetStream(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision))
	if err != nil {
		cancel()
		return err
	}
	// The stream's goroutine ends only when somebody takes what it holds.
	defer func() {
		cancel()
		for range ch {
		}
	}()
	for resp := range ch {
		if err := resp.Err(); err != nil {
			return err
		}
		if !each(resp.Kvs) {
			return nil
		}
	}
	return nil
}

// paged reads a range page by page.
func (s *Etcd) paged(ctx context.Context, from, end string, revision int64, each func([]*mvccpb.KeyValue) bool) error {
	for {
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(pageSize))
		if err != nil {
			return err
		}
		if !each(resp.Kvs) || !resp.More {
			return nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// decodeRecord reads a commit's record, its pieces included. It returns nil for a
// void one. What resources were before is read only when that is asked for, and of
// credentials.
func (s *Etcd) decodeRecord(ctx context.Context, kv *mvccpb.KeyValue, before bool) (*HistoryRecord, error) {
	if len(kv.Value) == 0 {
		return nil, nil
	}
	var rec storev1.Record
	if err := proto.Unmarshal(kv.Value, &rec); err != nil {
		return nil, fmt.Errorf("store: decoding the record of revision %d: %w", kv.ModRevision, err)
	}
	h := &HistoryRecord{
		Version: s.version(kv.ModRevision), Time: rec.Time.AsTime(),
		Author: rec.Author, Reason: rec.Reason, Revocations: rec.Revocations,
	}
	for _, r := range h.Revocations {
		r.Revision = kv.ModRevision
	}
	if err := s.addEdits(h, rec.Edits, before); err != nil {
		return nil, err
	}
	for n := range rec.Pieces {
		p, err := s.piece(ctx, rec.Id, n, 0)
		if err != nil {
			return nil, err
		}
		if err := s.addEdits(h, p.Edits, before); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (s *Etcd) addEdits(h *HistoryRecord, edits []*storev1.Edit, before bool) (err error) {
	h.Edits = slices.Grow(h.Edits, len(edits))
	for _, e := range edits {
		edit := Edit{Key: config.KeyOfProto(e.Key)}
		if before || edit.Key.Kind == kindCredential {
			if edit.Before, err = s.codec.decode(edit.Key, e.Before); err != nil {
				return err
			}
		}
		if edit.After, err = s.codec.decode(edit.Key, e.After); err != nil {
			return err
		}
		h.Edits = append(h.Edits, edit)
	}
	return nil
}
