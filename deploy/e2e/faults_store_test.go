package e2e_test

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/controlplane/store/etcdtest"
	"portcullis.dev/portcullis/dataplane"
	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/secret"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// etcd full: a write is refused with a reason that says what to do, serving and
// reading go on.
func TestStoreFull(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Config{Quota: 1 << 20})
	h := start(t, cluster.Config{Nodes: 1, Store: store.Config{Endpoints: etcd.Endpoints}})
	h.apply(public)
	traffic := h.load("/public", ok, 0)
	var refused error
	for i := range 100 {
		_, err := h.admin.Apply(t.Context(), &adminv1.ApplyRequest{Change: documents(t, stamped(fmt.Sprintf("v%d", i), 40))})
		if err != nil {
			refused = err
			break
		}
	}
	if status.Code(refused) != codes.ResourceExhausted || !strings.Contains(refused.Error(), "full") || !strings.Contains(refused.Error(), "quota") {
		t.Fatalf("a write to a full etcd: %v", refused)
	}
	if _, err := h.admin.Status(t.Context(), &adminv1.StatusRequest{}); err != nil {
		t.Errorf("reading while etcd is full: %v", err)
	}
	h.must("converge", h.Converge(within(t)))
	traffic.more(20)
	traffic.end()
}

// The control plane is cut off from etcd, which is written to and compacted by
// others meanwhile: it loads again, deletes are honoured, and no request fails.
func TestCompactedPastWatcher(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.Config{})
	at, err := url.Parse(etcd.Endpoints[0])
	if err != nil {
		t.Fatal(err)
	}
	between := newLink(t, at.Host)
	dir := t.TempDir()
	h := start(t, cluster.Config{Dir: dir, Nodes: 2, Store: store.Config{Endpoints: []string{"http://" + between.address()}}})
	h.apply(public + "---" + strings.NewReplacer("name: public", "name: doomed", "/public", "/doomed").Replace(public))
	traffic := h.load("/public", ok, 0, 1)
	before := h.Plane().Version()
	between.cut()
	// Another control plane, elsewhere, changes, deletes and compacts.
	other := h.otherStore(dir, etcd)
	change := documents(t, strings.NewReplacer("name: public", "name: fresh", "/public", "/fresh").Replace(public))
	change.Deletes = append(change.Deletes, config.Key{Kind: "Route", Workspace: "default", Name: "doomed"}.Proto())
	v, err := other.Apply(t.Context(), before, change, store.Meta{Author: "another"})
	h.must("apply elsewhere", err)
	raw := etcd.Client(t, "", "")
	_, err = raw.Compact(t.Context(), v.Revision)
	h.must("compact", err)
	traffic.more(20)
	between.mend()
	h.must("seen", h.Plane().Await(within(t), v))
	h.must("converge", h.Converge(within(t)))
	for node := range 2 {
		if a := h.get(node, "/doomed"); a.Reason != "no_route" {
			t.Errorf("node %d: a delete was lost: %+v", node, a)
		}
		if a := h.get(node, "/fresh"); a.Status != 200 {
			t.Errorf("node %d: an upsert was lost: %+v", node, a)
		}
	}
	traffic.end()
}

// sealer is that of the cluster's secrets.
func (h *harness) sealer(dir string) store.Sealer {
	h.t.Helper()
	s, err := secret.Load(secret.File{Path: filepath.Join(dir, "seal.key")})
	h.must("the cluster's keys", err)
	return s
}

// otherStore opens the cluster's store once more, as another replica does.
func (h *harness) otherStore(dir string, etcd *etcdtest.Cluster) *store.Etcd {
	h.t.Helper()
	s, err := store.Open(h.t.Context(), store.Config{Endpoints: etcd.Endpoints, Sealer: h.sealer(dir)})
	h.must("opening the store", err)
	h.t.Cleanup(func() { _ = s.Close() })
	return s
}

// A disk that is full: the node serves and takes new versions; only its copy
// stays behind, and it says so.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: a file system of a few KiB can be mounted by root only")
	}
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("SKIPPED: no tmpfs can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(small, syscall.MNT_DETACH) })
	var said lines
	h := start(t, cluster.Config{Nodes: 1, Adjust: func(_ int, cfg *dataplane.Config) {
		cfg.DataDir = small
		cfg.Log = said.logger()
	}})
	h.apply(public)
	traffic := h.load("/public", ok, 0)
	filler := filepath.Join(small, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	h.apply(stamped("one", 3))
	h.until("it says so", func() error {
		if !said.have("last-known-good state could not be saved") {
			return errors.New("not said")
		}
		return nil
	})
	h.apply(stamped("two", 3))
	if got, err := stampOf(h.get(0, "/r1/x")); err != nil || got != "two" {
		t.Errorf("with a full disk: %q, %v", got, err)
	}
	traffic.end()
	_ = os.Remove(filler)
	h.apply(stamped("three", 3))
	h.until("copies are written again", func() error {
		files, err := filepath.Glob(filepath.Join(small, "last-known-good", "*.lkg"))
		if err != nil || len(files) == 0 || !strings.Contains(files[len(files)-1], fmt.Sprintf("%020d.", h.Node(0).Version().Revision)) {
			return fmt.Errorf("%v, %v", files, err)
		}
		return nil
	})
}

// The clock was set back while a node was down: its peers still listen to it.
func TestClockSetBack(t *testing.T) {
	dir := t.TempDir()
	h := start(t, cluster.Config{Dir: dir, Nodes: 2})
	h.apply(fmt.Sprintf(limited, "split") + "---" + fmt.Sprintf(limited, "open"))
	h.must("stopping", h.StopNode(1))
	// What the node would have noted, had the clock been an hour ahead.
	boot := fmt.Sprintf("%d\n", time.Now().Add(time.Hour).UnixNano())
	h.must("writing", os.WriteFile(filepath.Join(dir, "nodes", "node-2", "boot"), []byte(boot), 0o600))
	for _, policy := range []string{"split", "open"} {
		before := h.Node(0).Limits().Received
		h.must("starting", h.StartNode(within(t), 1))
		h.runs(1, h.Plane().Version())
		h.until("node 0 hears what node 1 spends", func() error {
			h.get(1, "/limited-"+policy)
			if s := h.Node(0).Limits(); s.Received == before {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		h.must("stopping", h.StopNode(1))
	}
}

// A control plane of a later release wrote what this one does not understand: it
// serves nothing of it and says so, the nodes stay as they are and no request
// fails; when it is gone, all goes on.
func TestStoreFromLaterRelease(t *testing.T) {
	var said lines
	h := start(t, cluster.Config{Nodes: 2, Log: said.logger()})
	h.apply(public)
	before := h.Plane().Version()
	traffic := h.load("/public", ok, 0, 1)
	change := documents(t, strings.NewReplacer("name: public", "name: later", "/public", "/later").Replace(public))
	unknown := &configv1.Policy{}
	unknown.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 4000, protowire.BytesType), []byte("mfa")))
	later := change.Upserts[0]
	later.GetRoute().Policies = append(later.GetRoute().Policies, unknown)
	written, err := h.Store().Apply(t.Context(), before, change, store.Meta{Author: "later release"})
	h.must("writing", err)
	h.until("it says so", func() error {
		if !said.have("does not know") {
			return errors.New("not said")
		}
		return nil
	})
	traffic.more(40)
	for node := range 2 {
		if v := h.Node(node).Version(); v != before {
			t.Errorf("node %d went to %v", node, v)
		}
		if a := h.get(node, "/later"); a.Reason != "no_route" {
			t.Errorf("node %d serves a route without a policy that it does not know: %+v", node, a)
		}
	}
	gone, err := h.Store().Apply(t.Context(), written, &adminv1.Change{Deletes: []*controlv1.ResourceKey{config.KeyOf(later).Proto()}}, store.Meta{Author: "later release"})
	h.must("deleting", err)
	h.must("seen", h.Plane().Await(within(t), gone))
	h.must("converge", h.Converge(within(t)))
	traffic.more(20)
	traffic.end()
}
