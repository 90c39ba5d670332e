package store

import (
	"context"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fault is how a transaction breaks.
type fault int

const (
	lost      fault = iota // it never arrives
	persisted              // it happens, and the answer is lost
	delayed                // its answer is lost, and it happens later
)

// faulty breaks the n-th write, counted from 0, that goes through it.
type faulty struct {
	clientv3.KV
	mu      sync.Mutex
	n       int
	how     fault
	fired   bool
	pending []func()
	// broken is told when it happens; may be nil.
	broken func()
}

// fire reports whether this write is the one that breaks. Transactions that only
// read do not count.
func (f *faulty) fire() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n--
	if f.n == -1 {
		f.fired = true
		if f.broken != nil {
			f.broken()
		}
		return true
	}
	return false
}

// late lets what was delayed happen.
func (f *faulty) late() {
	for _, do := range f.pending {
		do()
	}
}

func (f *faulty) Put(ctx context.Context, k, v string, opts ...clientv3.OpOption) (*clientv3.PutResponse, error) {
	if !f.fire() {
		return f.KV.Put(ctx, k, v, opts...)
	}
	switch f.how {
	case persisted:
		_, _ = f.KV.Put(ctx, k, v, opts...)
	case delayed:
		f.pending = append(f.pending, func() { _, _ = f.KV.Put(context.Background(), k, v, opts...) })
	}
	return nil, rpctypes.ErrLeaderChanged
}

func (f *faulty) Txn(ctx context.Context) clientv3.Txn {
	return &faultyTxn{f: f, ctx: ctx, Txn: f.KV.Txn(ctx)}
}

type faultyTxn struct {
	clientv3.Txn
	f      *faulty
	ctx    context.Context
	cmps   []clientv3.Cmp
	writes bool
	then   []clientv3.Op
	orElse []clientv3.Op
}

func (t *faultyTxn) If(cs ...clientv3.Cmp) clientv3.Txn {
	t.cmps = cs
	t.Txn = t.Txn.If(cs...)
	return t
}

func (t *faultyTxn) Then(ops ...clientv3.Op) clientv3.Txn {
	t.then = ops
	for _, op := range ops {
		t.writes = t.writes || !op.IsGet()
	}
	t.Txn = t.Txn.Then(ops...)
	return t
}

func (t *faultyTxn) Else(ops ...clientv3.Op) clientv3.Txn {
	t.orElse = ops
	t.Txn = t.Txn.Else(ops...)
	return t
}

func (t *faultyTxn) Commit() (*clientv3.TxnResponse, error) {
	if !t.writes || !t.f.fire() {
		return t.Txn.Commit()
	}
	switch t.f.how {
	case persisted:
		_, _ = t.Txn.Commit()
	case delayed:
		t.f.pending = append(t.f.pending, func() {
			_, _ = t.f.KV.Txn(context.Background()).If(t.cmps...).Then(t.then...).Else(t.orElse...).Commit()
		})
	}
	return nil, rpctypes.ErrLeaderChanged
}

// hangUp cancels the caller's context as soon as the first writing transaction
// has happened, and reports it as cancelled.
type hangUp struct {
	clientv3.KV
	cancel context.CancelFunc
	once   sync.Once
}

func (h *hangUp) Txn(ctx context.Context) clientv3.Txn {
	return &hangUpTxn{faultyTxn{f: &faulty{KV: h.KV, n: -1}, ctx: ctx, Txn: h.KV.Txn(ctx)}, h}
}

type hangUpTxn struct {
	faultyTxn
	h *hangUp
}

func (t *hangUpTxn) If(cs ...clientv3.Cmp) clientv3.Txn  { t.faultyTxn.If(cs...); return t }
func (t *hangUpTxn) Then(os ...clientv3.Op) clientv3.Txn { t.faultyTxn.Then(os...); return t }
func (t *hangUpTxn) Else(os ...clientv3.Op) clientv3.Txn { t.faultyTxn.Else(os...); return t }

func (t *hangUpTxn) Commit() (*clientv3.TxnResponse, error) {
	resp, err := t.Txn.Commit()
	if !t.writes {
		return resp, err
	}
	first := false
	t.h.once.Do(func() { first = true; t.h.cancel() })
	if first {
		return nil, context.Canceled
	}
	return resp, err
}
