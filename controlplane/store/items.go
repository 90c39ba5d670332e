package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// items is a room on etcd.
type items struct {
	s    *Etcd
	room string
}

// Items implements Store.
func (s *Etcd) Items(room string) ItemStore { return items{s, room} }

func (i items) key(name string) (string, error) {
	if err := checkItem(i.room, name); err != nil {
		return "", err
	}
	if i.s.ctx.Err() != nil {
		return "", ErrClosed
	}
	return i.s.keys.room(i.room) + name, nil
}

func checkItem(room, name string) error {
	bad := func(r rune) bool { return (r < 'a' || r > 'z') && r != '-' }
	switch {
	case room == "" || strings.ContainsFunc(room, bad):
		return fmt.Errorf("%w: %q is no name of a room", ErrInvalid, room)
	case name == "" || len(name) > 255:
		return fmt.Errorf("%w: an item's name has 1 to 255 bytes", ErrInvalid)
	}
	return nil
}

func (i items) aad(name string) []byte { return []byte("item\x00" + i.room + "\x00" + name) }

func (i items) decode(kv *mvccpb.KeyValue) (Item, error) {
	name := strings.TrimPrefix(string(kv.Key), i.s.keys.room(i.room))
	value, err := i.s.cfg.Sealer.Open(kv.Value, i.aad(name))
	if err != nil {
		return Item{}, fmt.Errorf("store: opening %s/%s: %w", i.room, name, err)
	}
	return Item{Name: name, Value: value, Revision: kv.ModRevision}, nil
}

// Get implements ItemStore.
func (i items) Get(ctx context.Context, name string) (Item, error) {
	key, err := i.key(name)
	if err != nil {
		return Item{}, err
	}
	kv, err := i.read(ctx, key)
	if err != nil {
		return Item{}, err
	}
	if kv == nil {
		return Item{}, fmt.Errorf("%w: %s/%s", ErrNotFound, i.room, name)
	}
	return i.decode(kv)
}

// read returns nil when there is no such key.
func (i items) read(ctx context.Context, key string) (*mvccpb.KeyValue, error) {
	resp, err := i.s.client.Get(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("store: reading %s: %w", i.room, explain(err))
	}
	if len(resp.Kvs) == 0 {
		return nil, nil
	}
	return resp.Kvs[0], nil
}

// List implements ItemStore.
func (i items) List(ctx context.Context) ([]Item, error) {
	if _, err := i.key("any"); err != nil {
		return nil, err
	}
	var out []Item
	for kv, err := range i.s.scan(ctx, i.s.keys.room(i.room), 0) {
		if err != nil {
			return nil, err
		}
		item, err := i.decode(kv)
		if err != nil {
			return nil, err
		}
		out = append(out, item)
	}
	return out, nil
}

// Put implements ItemStore.
func (i items) Put(ctx context.Context, name string, value []byte, w Write) (int64, error) {
	key, err := i.key(name)
	if err != nil {
		return 0, err
	}
	sealed, err := i.s.cfg.Sealer.Seal(value, i.aad(name))
	if err != nil {
		return 0, fmt.Errorf("store: sealing %s/%s: %w", i.room, name, err)
	}
	var lease clientv3.LeaseID
	if w.TTL > 0 {
		granted, err := i.s.client.Grant(ctx, seconds(w.TTL))
		if err != nil {
			return 0, fmt.Errorf("store: granting a lease: %w", explain(err))
		}
		lease = granted.ID
	}
	revision, err := i.put(ctx, key, sealed, w.At, lease)
	if err != nil && lease != 0 && !isUnknown(err) {
		i.s.release(ctx, lease)
	}
	return revision, err
}

func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// put is a compare-and-swap that may be tried again when its outcome is unknown:
// sealed bytes are unique, so a try that did happen is recognised by them.
func (i items) put(ctx context.Context, key string, sealed []byte, at int64, lease clientv3.LeaseID) (int64, error) {
	unknown := false
	var b backoff
	for {
		expect := at
		if at == Overwrite {
			kv, err := i.read(ctx, key)
			if err != nil {
				return 0, err
			}
			if expect = 0; kv != nil {
				expect = kv.ModRevision
			}
		}
		resp, err := i.s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", expect)).
			Then(clientv3.OpPut(key, string(sealed), clientv3.WithLease(lease))).
			Else(clientv3.OpGet(key)).
			Commit()
		switch {
		case err == nil && resp.Succeeded:
			return resp.Header.Revision, nil
		case err == nil:
			kvs := resp.Responses[0].GetResponseRange().Kvs
			if unknown && len(kvs) > 0 && bytes.Equal(kvs[0].Value, sealed) {
				return kvs[0].ModRevision, nil
			}
			if at == Overwrite {
				continue
			}
			return 0, conflictOf(at, len(kvs) > 0)
		case refused(err):
			return 0, fmt.Errorf("store: writing %s: %w", i.room, explain(err))
		}
		unknown = true
		if b.wait(ctx) != nil {
			return 0, fmt.Errorf("%w: writing %s: %w", ErrUnknown, i.room, err)
		}
	}
}

func conflictOf(at int64, there bool) error {
	switch {
	case at == 0:
		return ErrExists
	case !there:
		return fmt.Errorf("%w: the item is gone", ErrConflict)
	}
	return ErrConflict
}

// Delete implements ItemStore.
func (i items) Delete(ctx context.Context, name string) (Item, error) {
	key, err := i.key(name)
	if err != nil {
		return Item{}, err
	}
	unknown := false
	var b backoff
	for {
		kv, err := i.read(ctx, key)
		if err != nil {
			return Item{}, err
		}
		if kv == nil && unknown {
			// We or somebody else; whoever must be sure to be the one is not.
			return Item{}, fmt.Errorf("%w: %s/%s is gone", ErrUnknown, i.room, name)
		}
		if kv == nil {
			return Item{}, fmt.Errorf("%w: %s/%s", ErrNotFound, i.room, name)
		}
		item, err := i.decode(kv)
		if err != nil {
			return Item{}, err
		}
		resp, err := i.s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).
			Then(clientv3.OpDelete(key)).
			Commit()
		switch {
		case err == nil && resp.Succeeded:
			return item, nil
		case err == nil:
			continue
		case refused(err):
			return Item{}, fmt.Errorf("store: deleting %s/%s: %w", i.room, name, explain(err))
		}
		unknown = true
		if b.wait(ctx) != nil {
			return Item{}, fmt.Errorf("%w: deleting %s/%s: %w", ErrUnknown, i.room, name, err)
		}
	}
}

// Hold implements ItemStore.
func (i items) Hold(ctx context.Context, name string, value []byte, ttl time.Duration) error {
	key, err := i.key(name)
	if err != nil {
		return err
	}
	sealed, err := i.s.cfg.Sealer.Seal(value, i.aad(name))
	if err != nil {
		return fmt.Errorf("store: sealing %s/%s: %w", i.room, name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(i.s.ctx, cancel)
	defer stop()
	var b backoff
	for {
		err := i.hold(ctx, key, sealed, ttl)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && refused(err) {
			return err
		}
		i.s.log.Warn("a held item was lost, writing it again", "room", i.room, "item", name, "error", err)
		if b.wait(ctx) != nil {
			return nil
		}
	}
}

// hold keeps the item under one lease. It returns when the lease is lost or ctx
// ends.
func (i items) hold(ctx context.Context, key string, sealed []byte, ttl time.Duration) error {
	lease, err := i.s.client.Grant(ctx, seconds(ttl))
	if err != nil {
		return fmt.Errorf("store: granting a lease: %w", explain(err))
	}
	defer i.s.release(ctx, lease.ID)
	if _, err := i.put(ctx, key, sealed, Overwrite, lease.ID); err != nil {
		return err
	}
	alive, err := i.s.client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return fmt.Errorf("store: keeping a lease alive: %w", explain(err))
	}
	for range alive {
	}
	return errors.New("store: lease lost")
}

// release ends a lease and what hangs on it, as well as it can: it ends by itself
// otherwise.
func (s *Etcd) release(ctx context.Context, id clientv3.LeaseID) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if _, err := s.client.Revoke(ctx, id); err != nil {
		s.log.Warn("a lease was not given back; it ends by itself", "error", err)
	}
}
