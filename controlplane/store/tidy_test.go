package store

import (
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

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
	if _, ok, err := s.commit(ctx, commit{record: newRecord(Meta{}), current: m.revision}); ok || err != nil {
		t.Errorf("a commit went past one that is unfolded: %v, %v", ok, err)
	}
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

// TestMakeSpace fills an embedded server with what compaction frees, and expects
// it to help itself.
func TestMakeSpace(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s, err := prepare(ctx, Config{Dir: t.TempDir(), Sealer: plainSealer{}, Quota: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	room := s.Items("ca")
	for i := 0; err == nil && i < 200; i++ {
		_, err = room.Put(ctx, "x", make([]byte, 300<<10), Write{At: Overwrite})
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("a full store: %v, want ErrFull", err)
	}
	if err := s.makeSpace(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := room.Put(ctx, "x", []byte("x"), Write{At: Overwrite}); err != nil {
		t.Errorf("a write after space was made: %v", err)
	}
	if err := s.makeSpace(ctx); err != nil {
		t.Errorf("making space where there is enough: %v", err)
	}
}
