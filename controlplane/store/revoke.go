package store

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// revocationGrace is how much longer than asked an entry is kept, for clocks that
// differ.
const revocationGrace = time.Minute

// revocationID is an entry's identity: there is one entry for each.
func revocationID(r *controlv1.Revocation) string {
	return fmt.Sprintf("%02x", int32(r.GetKind())) + hex.EncodeToString(r.GetKey())
}

func checkRevocation(r *controlv1.Revocation) error {
	switch {
	case r.GetKind() == controlv1.RevocationKind_REVOCATION_KIND_UNSPECIFIED:
		return fmt.Errorf("%w: a revocation without kind", ErrInvalid)
	case len(r.GetKey()) != 16:
		return fmt.Errorf("%w: a revocation's key has 16 bytes, not %d", ErrInvalid, len(r.GetKey()))
	}
	return nil
}

// stronger returns an entry that revokes all that either does, for as long as
// either does. a may be nil.
func stronger(a, b *controlv1.Revocation) *controlv1.Revocation {
	out := &controlv1.Revocation{Kind: b.Kind, Key: b.Key}
	if a == nil {
		out.RevokedBefore, out.ExpiresAt = b.RevokedBefore, b.ExpiresAt
		return out
	}
	out.RevokedBefore = later(a.RevokedBefore, b.RevokedBefore)
	out.ExpiresAt = later(a.ExpiresAt, b.ExpiresAt)
	return out
}

// later returns the later of two times, where unset is the end of time.
func later(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if a == nil || b == nil {
		return nil
	}
	if a.AsTime().After(b.AsTime()) {
		return a
	}
	return b
}

// merged is the entries asked for, one for each identity, in order of identity.
func merged(entries []*controlv1.Revocation) ([]*controlv1.Revocation, error) {
	byID := make(map[string]*controlv1.Revocation, len(entries))
	for _, r := range entries {
		if err := checkRevocation(r); err != nil {
			return nil, err
		}
		byID[revocationID(r)] = stronger(byID[revocationID(r)], r)
	}
	out := make([]*controlv1.Revocation, 0, len(byID))
	for _, id := range slices.Sorted(maps.Keys(byID)) {
		out = append(out, byID[id])
	}
	return out, nil
}

// sameBounds reports whether b revokes no more than a.
func sameBounds(a, b *controlv1.Revocation) bool {
	return proto.Equal(a.GetRevokedBefore(), b.GetRevokedBefore()) && proto.Equal(a.GetExpiresAt(), b.GetExpiresAt())
}

// Revoke implements Store. More than a hundred entries take several commits, and
// the version is the last one's; after an error some may have been made.
func (s *Etcd) Revoke(ctx context.Context, entries []*controlv1.Revocation, meta Meta) (config.Version, error) {
	all, err := merged(entries)
	if err != nil {
		return config.Version{}, err
	}
	var v config.Version
	for part := range slices.Chunk(all, 100) {
		if v, err = again(ctx, func() (config.Version, error) { return s.revoke(ctx, part, meta) }); err != nil {
			return config.Version{}, err
		}
	}
	if len(all) == 0 {
		m, err := s.readMarks(ctx)
		return s.version(m.tip), err
	}
	return v, nil
}

func (s *Etcd) revoke(ctx context.Context, entries []*controlv1.Revocation, meta Meta) (config.Version, error) {
	m, err := s.settled(ctx)
	if err != nil {
		return config.Version{}, err
	}
	ops := make([]clientv3.Op, len(entries))
	for i, r := range entries {
		ops[i] = clientv3.OpGet(s.keys.revocations() + revocationID(r))
	}
	resp, err := s.readTxn(ctx, ops)
	if err != nil {
		return config.Version{}, fmt.Errorf("store: reading revocations: %w", explain(err))
	}
	c := commit{record: newRecord(meta), current: m.revision}
	for i, r := range entries {
		var old *controlv1.Revocation
		if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			if old, err = decodeRevocation(kvs[0]); err != nil {
				return config.Version{}, err
			}
		}
		if err := s.addRevocation(ctx, &c, old, stronger(old, r)); err != nil {
			return config.Version{}, err
		}
	}
	if len(c.record.Revocations) == 0 {
		return s.version(m.tip), nil
	}
	c.then = append(c.then, s.touch(s.keys.deny()))
	revision, ok, err := s.commit(ctx, c)
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		s.leases.forget()
		return config.Version{}, fmt.Errorf("%w: %w", errAgain, err)
	case err != nil:
		return config.Version{}, err
	case !ok:
		return config.Version{}, errAgain
	}
	return s.version(revision), nil
}

func (s *Etcd) addRevocation(ctx context.Context, c *commit, old, r *controlv1.Revocation) error {
	if old != nil && sameBounds(old, r) {
		return nil
	}
	key := s.keys.revocations() + revocationID(r)
	value, err := proto.Marshal(r)
	if err != nil {
		return fmt.Errorf("store: encoding a revocation: %w", err)
	}
	var opts []clientv3.OpOption
	if r.ExpiresAt != nil {
		id, err := s.leases.until(ctx, s, r.ExpiresAt.AsTime())
		if err != nil {
			return err
		}
		opts = append(opts, clientv3.WithLease(id))
	}
	c.when = append(c.when, clientv3.Compare(clientv3.ModRevision(key), "=", old.GetRevision()))
	c.then = append(c.then, clientv3.OpPut(key, string(value), opts...))
	c.record.Revocations = append(c.record.Revocations, r)
	return nil
}

// leases are etcd leases by expiry minute: all entries that expire in a minute
// share one, on all replicas. etcd may prolong a lease when its leader changes;
// it never shortens one.
type leases struct {
	mu      sync.Mutex
	minutes map[int64]clientv3.LeaseID
}

// until returns a lease that lasts past a time.
func (l *leases) until(ctx context.Context, s *Etcd, t time.Time) (clientv3.LeaseID, error) {
	minute := t.Add(time.Minute-time.Nanosecond).Unix() / 60
	l.mu.Lock()
	id, ok := l.minutes[minute]
	l.mu.Unlock()
	if ok {
		return id, nil
	}
	id, err := s.sharedLease(ctx, minute)
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now().Unix() / 60
	maps.DeleteFunc(l.minutes, func(m int64, _ clientv3.LeaseID) bool { return m < now })
	if l.minutes == nil {
		l.minutes = make(map[int64]clientv3.LeaseID)
	}
	l.minutes[minute] = id
	return id, nil
}

// forget drops what is known: some lease has ended.
func (l *leases) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.minutes)
}

// sharedLease finds or makes the minute's lease. Of several that are made at once
// one is kept.
func (s *Etcd) sharedLease(ctx context.Context, minute int64) (clientv3.LeaseID, error) {
	key := s.keys.lease(minute)
	resp, err := s.client.Get(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("store: finding a lease: %w", explain(err))
	}
	if len(resp.Kvs) > 0 {
		return parseLease(resp.Kvs[0].Value)
	}
	ttl := max(time.Until(time.Unix(minute*60, 0)), 0) + revocationGrace
	lease, err := s.client.Grant(ctx, int64(ttl/time.Second)+1)
	if err != nil {
		return 0, fmt.Errorf("store: granting a lease: %w", explain(err))
	}
	txn, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
		Then(clientv3.OpPut(key, strconv.FormatInt(int64(lease.ID), 16), clientv3.WithLease(lease.ID))).
		Else(clientv3.OpGet(key)).
		Commit()
	if err != nil {
		return 0, fmt.Errorf("store: sharing a lease: %w", explain(err))
	}
	if txn.Succeeded {
		return lease.ID, nil
	}
	if _, err := s.client.Revoke(ctx, lease.ID); err != nil {
		s.log.Warn("a lease that lost the race was not given back; it ends by itself", "error", err)
	}
	return parseLease(txn.Responses[0].GetResponseRange().Kvs[0].Value)
}

func parseLease(b []byte) (clientv3.LeaseID, error) {
	id, err := strconv.ParseInt(string(b), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("store: decoding a lease: %w", err)
	}
	return clientv3.LeaseID(id), nil
}
