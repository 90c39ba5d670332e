package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
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
}

// fire reports whether this write is the one that breaks. Transactions that only
// read do not count.
func (f *faulty) fire() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n--
	if f.n == -1 {
		f.fired = true
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

func faultRoute(i int) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "w", Name: fmt.Sprintf("r%d", i)},
		Spec:     &configv1.Resource_Route{Route: &configv1.Route{Public: true}},
	}
}

func faultApplication() *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "w", Name: "app"},
		Spec:     &configv1.Resource_Application{Application: &configv1.Application{}},
	}
}

// plainSealer is for tests that are not about sealing.
type plainSealer struct{}

func (plainSealer) Seal(plain, aad []byte) ([]byte, error)  { return append([]byte("#"), plain...), nil }
func (plainSealer) Open(sealed, aad []byte) ([]byte, error) { return sealed[1:], nil }

// still opens an embedded store whose background work does not run.
func still(t *testing.T, dir string) *Etcd {
	t.Helper()
	s, err := prepare(t.Context(), Config{Dir: dir, Sealer: plainSealer{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestEveryWriteBreaks breaks every single write of every operation in each way.
// The operation must happen exactly once all the same.
func TestEveryWriteBreaks(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := still(t, t.TempDir())
	kv := s.client.KV
	ops := map[string]func(at config.Version) (config.Version, error){
		"apply": func(at config.Version) (config.Version, error) {
			return s.Apply(ctx, at, &adminv1.Change{Upserts: []*configv1.Resource{faultRoute(0), faultRoute(1)}}, Meta{})
		},
		"staged": func(at config.Version) (config.Version, error) {
			s.maxOps = 10
			defer func() { s.maxOps = embeddedTxnOps - 16 }()
			var c adminv1.Change
			for i := range 150 {
				c.Upserts = append(c.Upserts, faultRoute(i))
			}
			v, err := s.Apply(ctx, at, &c, Meta{})
			if err == nil { // what the next write would do first
				_, err = again(ctx, func() (marks, error) { return s.settled(ctx) })
			}
			return v, err
		},
		"revoke": func(config.Version) (config.Version, error) {
			return s.Revoke(ctx, []*controlv1.Revocation{{Kind: controlv1.RevocationKind_REVOCATION_KIND_JTI, Key: make([]byte, 16)}}, Meta{})
		},
	}
	for name, op := range ops {
		for _, how := range []fault{lost, persisted, delayed} {
			for n := 0; ; n++ {
				s.client.KV = kv
				wipe(t, s)
				m, err := s.readMarks(ctx)
				if err != nil {
					t.Fatal(err)
				}
				f := &faulty{KV: kv, n: n, how: how}
				s.client.KV = f
				v, err := op(s.version(m.tip))
				if err != nil {
					t.Errorf("%s, write %d broken (%d): %v", name, n, how, err)
				}
				f.late()
				s.client.KV = kv
				h, err := s.History(ctx, 0, 10, "")
				if err != nil || len(h) != 1 || h[0].Version != v {
					t.Errorf("%s, write %d broken (%d): version %v, history %+v, %v; want it once", name, n, how, v, h, err)
				}
				st, err := s.Load(ctx)
				if err != nil || st.Version != v || len(st.Resources)+len(st.Revocations) != len(h[0].Edits)+len(h[0].Revocations) {
					t.Errorf("%s, write %d broken (%d): loaded %+v, %v", name, n, how, st, err)
				}
				if !f.fired {
					break
				}
				if t.Failed() {
					return
				}
			}
		}
	}
}

// wipe empties the store but for its identity.
func wipe(t *testing.T, s *Etcd) {
	t.Helper()
	for _, prefix := range []string{s.keys.resources(), s.keys.credentials(), s.keys.revocations(), s.keys.watched(), s.keys.staged(), s.keys.unfolded(), s.keys.prefix + "b/"} {
		if _, err := s.client.Delete(t.Context(), prefix, clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestItemWritesBreak does the same for items, whose one-time delete must never
// tell two callers that they won.
func TestItemWritesBreak(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := still(t, t.TempDir())
	kv := s.client.KV
	room := s.Items("join-tokens")
	for _, how := range []fault{lost, persisted, delayed} {
		f := &faulty{KV: kv, how: how}
		s.client.KV = f
		rev, err := room.Put(ctx, "t", []byte("x"), Write{})
		f.late()
		if err != nil {
			t.Errorf("create broken (%d): %v", how, err)
		}
		if got, err := room.Get(ctx, "t"); err != nil || got.Revision != rev {
			t.Errorf("create broken (%d): stored at %d, told %d, %v", how, got.Revision, rev, err)
		}
		f = &faulty{KV: kv, how: how}
		s.client.KV = f
		_, err = room.Delete(ctx, "t")
		f.late()
		if how == persisted && !errors.Is(err, ErrUnknown) || how != persisted && err != nil {
			t.Errorf("delete broken (%d): %v", how, err)
		}
		if _, err := room.Delete(ctx, "t"); !errors.Is(err, ErrNotFound) {
			t.Errorf("after a broken delete (%d): %v, want ErrNotFound", how, err)
		}
	}
}

// TestCallerGone: a caller that gives up while its commit is under way is told
// what became of it.
func TestCallerGone(t *testing.T) {
	t.Parallel()
	s := still(t, t.TempDir())
	m, err := s.readMarks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.client.KV = &hangUp{KV: s.client.KV, cancel: cancel}
	v, err := s.Apply(ctx, s.version(m.tip), &adminv1.Change{Upserts: []*configv1.Resource{faultRoute(0)}}, Meta{})
	if err != nil || v.Revision <= m.tip {
		t.Errorf("Apply: %v, %v; want the version, since it was committed", v, err)
	}
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

// TestUnfolded leaves a staged commit unfolded, as a crash does, and looks at it
// in every way.
func TestUnfolded(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := t.TempDir()
	s := still(t, dir)
	m, err := s.readMarks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v0, err := s.Apply(ctx, s.version(m.tip), &adminv1.Change{Upserts: []*configv1.Resource{faultRoute(0), faultApplication()}}, Meta{})
	if err != nil {
		t.Fatal(err)
	}
	cred := &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "w", Name: "k"},
		Spec:     &configv1.Resource_Credential{Credential: &configv1.Credential{Application: "app"}},
	}
	c := &adminv1.Change{Upserts: []*configv1.Resource{cred}, Deletes: []*controlv1.ResourceKey{config.KeyOf(faultRoute(0)).Proto()}}
	for i := range 40 {
		c.Upserts = append(c.Upserts, faultRoute(i+1))
	}
	s.maxOps = 10
	v, err := s.Apply(ctx, v0, c, Meta{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err = s.readMarks(ctx); err != nil || m.unfolded == nil {
		t.Fatalf("nothing is unfolded: %v", err)
	}
	check := func(when string) {
		t.Helper()
		st, err := s.Load(ctx)
		if err != nil || st.Version != v || len(st.Resources) != 41 {
			t.Fatalf("%s: loaded %v", when, err)
		}
		n := 0
		for _, err := range st.Credentials {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if _, err := s.GetCredential(ctx, "w", "k"); err != nil || n != 1 {
			t.Errorf("%s: %d credentials, %v", when, n, err)
		}
		if old, err := s.At(ctx, v0.Revision); err != nil || len(old) != 2 {
			t.Errorf("%s: At: %d resources, %v", when, len(old), err)
		}
	}
	check("unfolded")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = still(t, dir)
	check("reopened")
	if _, _, err := s.DeleteCredential(ctx, "w", "k", Meta{}); err != nil {
		t.Fatal(err)
	}
	if m, err = s.readMarks(ctx); err != nil || m.unfolded != nil {
		t.Errorf("a write left the commit unfolded: %v", err)
	}
}

// TestTidy drops history beyond the limit and orphaned pieces, and nothing else.
func TestTidy(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := still(t, t.TempDir())
	s.cfg.HistoryLimit = 20
	m, err := s.readMarks(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v := s.version(m.tip)
	var all []config.Version
	for i := range 60 {
		r := faultRoute(0)
		r.GetRoute().Priority = int32(i + 1)
		if v, err = s.Apply(ctx, v, &adminv1.Change{Upserts: []*configv1.Resource{r}}, Meta{}); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	if err := s.trim(ctx); err != nil {
		t.Fatal(err)
	}
	h, err := s.History(ctx, 0, 100, "")
	if err != nil || len(h) != 20 || h[19].Version != all[40] {
		t.Fatalf("History has %d records, %v", len(h), err)
	}
	if old, err := s.At(ctx, all[39].Revision); err != nil || old[0].GetRoute().GetPriority() != 40 {
		t.Errorf("At the state before the oldest record: %v, %v", old, err)
	}
	if _, err := s.At(ctx, all[38].Revision); !errors.Is(err, ErrCompacted) {
		t.Errorf("At what was dropped: %v, want ErrCompacted", err)
	}

	s.maxOps = 10
	c := new(adminv1.Change)
	for i := range 40 {
		c.Upserts = append(c.Upserts, faultRoute(i+1))
	}
	if _, err := s.Apply(ctx, v, c, Meta{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Put(ctx, s.keys.piece("orphan", 0), "x"); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]time.Time)
	for _, at := range []time.Duration{0, orphanAge} {
		if err := s.sweep(ctx, seen, time.Now().Add(at)); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := s.client.Get(ctx, s.keys.staged(), clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil || len(resp.Kvs) != 1 {
		t.Errorf("%d pieces left, %v; want the committed one", len(resp.Kvs), err)
	}
	if st, err := s.Load(ctx); err != nil || len(st.Resources) != 41 {
		t.Errorf("Load after the sweep: %v", err)
	}
}
