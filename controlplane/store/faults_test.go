package store

import (
	"context"
	"errors"
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

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
			for i := range 50 {
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

// TestNeverLater: a write that its caller was told did not happen does not happen
// later either, though it is still under way.
func TestNeverLater(t *testing.T) {
	t.Parallel()
	s := still(t, t.TempDir())
	m, err := s.readMarks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	kv := s.client.KV
	f := &faulty{KV: kv, how: delayed, broken: cancel}
	s.client.KV = f
	_, err = s.Apply(ctx, s.version(m.tip), &adminv1.Change{Upserts: []*configv1.Resource{faultRoute(0)}}, Meta{})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknown) {
		t.Errorf("Apply: %v; want to know that it did not happen", err)
	}
	s.client.KV = kv
	f.late()
	if st, err := s.Load(t.Context()); err != nil || len(st.Resources) != 0 || st.Version.Revision != m.tip {
		t.Errorf("the write happened later: %+v, %v", st, err)
	}
}
