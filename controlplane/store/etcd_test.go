package store_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/controlplane/store/etcdtest"
	"portcullis.dev/portcullis/controlplane/store/storetest"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// TestExternal is on an external member with TLS, authentication, the least
// privilege, and etcd's default limits. The suite as a whole runs on it in
// slow_test.go.
func TestExternal(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := etcdtest.Start(t, etcdtest.Config{TLS: true, Username: "pc", Password: "secret", Prefix: "/pc/"})
	cfg := store.Config{Endpoints: c.Endpoints, TLS: c.TLS, Username: "pc", Password: "secret", Prefix: "/pc/", Sealer: storetest.Sealer()}
	s := open(t, cfg)
	v0 := version(t, s)
	change := storetest.Upserts(storetest.Application("w", "app"), storetest.Credential("w", "k", "app", 1))
	for i := range 300 { // more than etcd's 128
		change.Upserts = append(change.Upserts, storetest.Route("w", fmt.Sprintf("r%d", i), "/"))
	}
	v, err := s.Apply(ctx, v0, change, store.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	for e, err := range s.Watch(ctx, v0) {
		if err != nil || e.Version != v || len(e.Upserts) != 301 || len(e.CredentialPuts) != 1 {
			t.Errorf("watched %v with %d upserts, %v", e.Version, len(e.Upserts), err)
		}
		break
	}
	if st, err := s.Load(ctx); err != nil || st.Version != v || len(st.Resources) != 301 {
		t.Errorf("Load: %v", err)
	}
	for name, spoil := range map[string]func(*store.Config){
		"wrong password": func(c *store.Config) { c.Password = "guess" },
		"no user":        func(c *store.Config) { c.Username, c.Password = "", "" },
		"foreign prefix": func(c *store.Config) { c.Prefix = "/other/" },
		"no TLS":         func(c *store.Config) { c.TLS = nil },
	} {
		bad := cfg
		spoil(&bad)
		limit := 20 * time.Second
		if bad.TLS == nil {
			limit = 300 * time.Millisecond // it never answers
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		s, err := store.Open(ctx, bad)
		if err == nil {
			t.Errorf("%s: opened", name)
			_ = s.Close()
		} else if bad.TLS != nil && errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: not refused, but timed out: %v", name, err)
		}
		cancel()
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, cfg := range map[string]store.Config{
		"no sealer": {Dir: t.TempDir()},
		"nowhere":   {Sealer: storetest.Sealer()},
		"both":      {Sealer: storetest.Sealer(), Dir: "x", Endpoints: []string{"y"}},
		"prefix":    {Sealer: storetest.Sealer(), Dir: t.TempDir(), Prefix: "/x"},
	} {
		if _, err := store.Open(t.Context(), cfg); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// TestReopen: everything is there after a restart, in the same epoch, and a watch
// goes on where it was; a restore begins a new epoch that refuses the old one.
func TestReopen(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	cfg := store.Config{Dir: t.TempDir(), Sealer: storetest.Sealer()}
	s := open(t, cfg)
	v0 := version(t, s)
	v1, err := s.Apply(ctx, v0, storetest.Upserts(storetest.Route("w", "a", "/a"), storetest.Application("w", "app")), store.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	entry := storetest.Revocation(1, time.Now(), time.Now().Add(time.Hour))
	v2, err := s.Revoke(ctx, []*controlv1.Revocation{entry}, store.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, cfg)
	st, err := s.Load(ctx)
	if err != nil || st.Version != v2 || len(st.Resources) != 2 || len(st.Revocations) != 1 {
		t.Fatalf("reopened: %+v, %v", st, err)
	}
	for e, err := range s.Watch(ctx, v0) {
		if err != nil || e.Version != v1 {
			t.Errorf("watch after reopening: %v, %v", e.Version, err)
		}
		break
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Restored = true
	s = open(t, cfg)
	v3 := version(t, s)
	if v3.Epoch != 2 || v3.Compare(v2) <= 0 {
		t.Errorf("restored at %v after %v", v3, v2)
	}
	if st, err = s.Load(ctx); err != nil || len(st.Revocations) != 1 {
		t.Errorf("revocations after a restore: %v, %v", st.Revocations, err)
	}
	if _, err := s.Apply(ctx, v2, storetest.Upserts(storetest.Route("w", "b", "/")), store.Meta{}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a write planned before the restore: %v, want ErrConflict", err)
	}
	for _, err := range s.Watch(ctx, v2) {
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("a watch from before the restore: %v, want ErrCompacted", err)
		}
		break
	}
}

// TestRestoredUnderFeet: while one replica runs, another one begins an epoch.
func TestRestoredUnderFeet(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := etcdtest.Start(t, etcdtest.Config{})
	cfg := store.Config{Endpoints: c.Endpoints, Sealer: storetest.Sealer()}
	a := open(t, cfg)
	v := version(t, a)
	cfg.Restored = true
	open(t, cfg)
	if _, err := a.Apply(ctx, v, storetest.Upserts(storetest.Route("w", "a", "/")), store.Meta{}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a write in the old epoch: %v, want ErrConflict", err)
	}
	if now := version(t, a); now.Epoch != 2 {
		t.Errorf("the old replica is at %v, want epoch 2", now)
	}
}

func TestCompaction(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := etcdtest.Start(t, etcdtest.Config{})
	s := open(t, store.Config{Endpoints: c.Endpoints})
	v0 := version(t, s)
	v1, err := s.Apply(ctx, v0, storetest.Upserts(storetest.Application("w", "app"), storetest.Credential("w", "k", "app", 1)), store.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	v2, err := s.Apply(ctx, v1, storetest.Upserts(storetest.Route("w", "a", "/")), store.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client(t, "", "").Compact(ctx, v2.Revision); err != nil {
		t.Fatal(err)
	}
	for _, err := range s.Watch(ctx, v0) {
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("Watch from a compacted revision: %v, want ErrCompacted", err)
		}
		break
	}
	for _, err := range st.Credentials {
		if !errors.Is(err, store.ErrCompacted) {
			t.Errorf("credentials of a compacted version: %v, want ErrCompacted", err)
		}
	}
	for e, err := range s.Watch(ctx, v2) {
		if err != nil || e.Progress < v2.Revision {
			t.Errorf("Watch after the compaction: %+v, %v", e, err)
		}
		break
	}
	// History does not depend on what etcd keeps.
	if old, err := s.At(ctx, v1.Revision); err != nil || len(old) != 1 {
		t.Errorf("At a compacted revision: %d resources, %v", len(old), err)
	}
}

// TestSealed looks for secrets in the embedded server's files.
func TestSealed(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	dir := t.TempDir()
	s := open(t, store.Config{Dir: dir})
	issuer := &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "w", Name: "visible-name"},
		Spec:     &configv1.Resource_Issuer{Issuer: &configv1.Issuer{HmacSecret: "swordfish-one"}},
	}
	upstream := &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "w", Name: "u"},
		Spec:     &configv1.Resource_Upstream{Upstream: &configv1.Upstream{Tls: &configv1.UpstreamTLS{PrivateKey: "swordfish-two"}}},
	}
	v, err := s.Apply(ctx, version(t, s), storetest.Upserts(issuer, upstream), store.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(ctx, v, storetest.Deletes(issuer), store.Meta{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Items("ca").Put(ctx, "key", []byte("swordfish-three"), store.Write{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	named := false
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(b, []byte("swordfish")) {
			t.Errorf("%s holds a secret in clear", path)
		}
		named = named || bytes.Contains(b, []byte("visible-name"))
		return nil
	})
	if err != nil || !named {
		t.Errorf("the search itself: found the name %v, %v", named, err)
	}
	other, err := store.Open(ctx, store.Config{Dir: dir, Sealer: storetest.Sealer()})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Load(ctx); err == nil {
		t.Error("loaded with another key")
	}
}

// TestFull fills etcd up: writes say so, reads go on.
func TestFull(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := etcdtest.Start(t, etcdtest.Config{Quota: 4 << 20})
	s := open(t, store.Config{Endpoints: c.Endpoints})
	v := version(t, s)
	var err error
	for i := 0; err == nil && i < 100; i++ {
		v, err = s.Apply(ctx, v, storetest.Upserts(storetest.Route("w", "a", fmt.Sprintf("/%d/%s", i, strings.Repeat("x", 200<<10)))), store.Meta{})
	}
	if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), "NOSPACE") {
		t.Fatalf("a full etcd: %v, want ErrFull", err)
	}
	if _, err := s.PutCredential(ctx, storetest.Credential("w", "k", "app"), store.Meta{}); errors.Is(err, store.ErrUnknown) {
		t.Errorf("PutCredential: %v", err)
	}
	if _, err := s.Items("ca").Put(ctx, "x", []byte("x"), store.Write{}); !errors.Is(err, store.ErrFull) {
		t.Errorf("Items.Put: %v, want ErrFull", err)
	}
	if st, err := s.Load(ctx); err != nil || len(st.Resources) != 1 {
		t.Errorf("Load of a full etcd: %v", err)
	}
	for e, err := range s.Watch(ctx, version(t, s)) {
		if err != nil || e.Progress == 0 {
			t.Errorf("Watch of a full etcd: %+v, %v", e, err)
		}
		break
	}
}

// TestExpiry: revocations go when their leases do, and share them.
func TestExpiry(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	c := etcdtest.Start(t, etcdtest.Config{})
	a := open(t, store.Config{Endpoints: c.Endpoints})
	b := open(t, store.Config{Endpoints: c.Endpoints})
	expires := time.Now().Truncate(time.Minute).Add(10 * time.Minute)
	for i, s := range []*store.Etcd{a, b, a, b} {
		entry := storetest.Revocation(byte(i), time.Now(), expires.Add(time.Duration(-i)*time.Second))
		if _, err := s.Revoke(ctx, []*controlv1.Revocation{entry}, store.Meta{}); err != nil {
			t.Fatal(err)
		}
	}
	cl := c.Client(t, "", "")
	leases, err := cl.Leases(ctx)
	if err != nil || len(leases.Leases) != 1 {
		t.Fatalf("%d leases, %v; want one for the minute", len(leases.Leases), err)
	}
	id := leases.Leases[0].ID
	ttl, err := cl.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
	if err != nil || time.Now().Add(time.Duration(ttl.GrantedTTL)*time.Second).Before(expires) || len(ttl.Keys) != 5 {
		t.Errorf("the lease: %+v, %v", ttl, err)
	}
	if _, err := cl.Revoke(ctx, id); err != nil { // what its end does
		t.Fatal(err)
	}
	if st, err := a.Load(ctx); err != nil || len(st.Revocations) != 0 {
		t.Errorf("after the lease: %v, %v", st.Revocations, err)
	}
	// Both still remember the lease that is gone.
	for i, s := range []*store.Etcd{a, b} {
		if _, err := s.Revoke(ctx, []*controlv1.Revocation{storetest.Revocation(byte(i), time.Now(), expires)}, store.Meta{}); err != nil {
			t.Errorf("Revoke under a lease that ended: %v", err)
		}
	}
	if st, err := b.Load(ctx); err != nil || len(st.Revocations) != 2 {
		t.Errorf("Load: %v, %v", st.Revocations, err)
	}
}

func version(t *testing.T, s store.Store) config.Version {
	t.Helper()
	st, err := s.Load(t.Context())
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return st.Version
}

// crashDir tells a child process, this test binary again, to write until killed.
const crashDir = "PORTCULLIS_STORE_CRASH_DIR"

// TestCrash kills a process amid its writes: what it was told is committed is
// there afterwards.
func TestCrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashChild$")
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acknowledged := int64(0)
	lines := bufio.NewScanner(out)
	for n := 0; n < 30 && lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "committed %d", &acknowledged); err == nil {
			n++
		}
	}
	_ = cmd.Process.Kill()
	for lines.Scan() {
		_, _ = fmt.Sscanf(lines.Text(), "committed %d", &acknowledged)
	}
	_ = cmd.Wait()
	if acknowledged == 0 {
		t.Fatal("the child committed nothing")
	}
	s := open(t, store.Config{Dir: dir, Sealer: noSealer{}})
	st, err := s.Load(t.Context())
	if err != nil || st.Version.Revision < acknowledged {
		t.Fatalf("after the crash: %v, %v; acknowledged %d", st.Version, err, acknowledged)
	}
	h, err := s.History(t.Context(), 0, 1, "")
	if err != nil || h[0].Version != st.Version || len(st.Resources) != len(h[0].Edits) {
		t.Errorf("after the crash: %d resources, newest %+v, %v", len(st.Resources), h, err)
	}
}

// noSealer is the same in both processes.
type noSealer struct{}

func (noSealer) Seal(plain, _ []byte) ([]byte, error)  { return plain, nil }
func (noSealer) Open(sealed, _ []byte) ([]byte, error) { return sealed, nil }

func TestCrashChild(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("runs only as the child of TestCrash")
	}
	s := open(t, store.Config{Dir: dir, Sealer: noSealer{}})
	v := version(t, s)
	for i := 0; ; i++ {
		var rs []*configv1.Resource
		for n := range 20 {
			rs = append(rs, storetest.Route("w", fmt.Sprintf("r%d", n), fmt.Sprintf("/%d", i)))
		}
		var err error
		if v, err = s.Apply(context.Background(), v, storetest.Upserts(rs...), store.Meta{}); err != nil {
			t.Fatal(err)
		}
		fmt.Printf("committed %d\n", v.Revision)
	}
}
