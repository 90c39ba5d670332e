package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestRestartKeepsTheCluster(t *testing.T) {
	t.Parallel()
	st := memoryStore(t)
	first := newReplica(t, st, "cp-1", "")
	if again, err := first.FirstOperator(t.Context()); err != nil || again != "" {
		t.Errorf("a second first operator %q, %v", again, err)
	}
	minted, err := first.client.MintToken(first.as(t.Context()), &adminv1.MintTokenRequest{Subject: "alice"}, grpc.WaitForReady(true))
	if err != nil || minted.Token == "" {
		t.Fatal(minted, err)
	}
	local := config.Key{Kind: "KeySet", Workspace: "default", Name: "local"}
	before, version := first.mirror.Current()
	keySet, _ := before.Get(local)
	first.stop()

	second := newReplica(t, st, "cp-1", first.operator)
	if err := second.Await(t.Context(), version); err != nil {
		t.Fatal(err)
	}
	a, b := first.shared, second.shared
	signA, _ := a.signing.Public()
	signB, _ := b.signing.Public()
	if !bytes.Equal(first.Authorities(), second.Authorities()) || !bytes.Equal(signA, signB) || !bytes.Equal(a.busKey.Key, b.busKey.Key) || len(a.busKey.Key) != 32 {
		t.Error("a restart made new secrets")
	}
	after, now := second.mirror.Current()
	if set, _ := after.Get(local); now != version || after.Digest() != before.Digest() || len(set.GetKeySet().GetKeys()) != 1 || set.GetKeySet().Keys[0].Kid != keySet.GetKeySet().Keys[0].Kid {
		t.Errorf("a restart changed the config: %v to %v", version, now)
	}
	if _, err := second.client.Status(second.as(t.Context()), &adminv1.StatusRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Errorf("the operator's credential after a restart: %v", err)
	}
	// What an operator has deleted stays deleted.
	second.apply(t, &adminv1.Change{Deletes: []*controlv1.ResourceKey{{Kind: "Issuer", Name: "local"}}})
	second.stop()
	third := newReplica(t, st, "cp-1", first.operator)
	if err := third.Await(t.Context(), config.Version{}); err != nil {
		t.Fatal(err)
	}
	current, _ := third.mirror.Current()
	for _, kind := range []string{"Issuer", "KeySet"} {
		if _, ok := current.Get(config.Key{Kind: kind, Workspace: "default", Name: "local"}); ok {
			t.Errorf("the deleted %s local came back", kind)
		}
	}
}

// Replicas that start at once on an empty store make one cluster.
func TestReplicasStartAtOnce(t *testing.T) {
	t.Parallel()
	st := memoryStore(t)
	planes := make([]*Plane, 8)
	operators := make([]string, len(planes))
	errs := make([]error, len(planes))
	var starting sync.WaitGroup
	for i := range planes {
		control, adminAt := listen(t), listen(t)
		defer func() { _, _ = control.Close(), adminAt.Close() }()
		starting.Go(func() {
			planes[i], errs[i] = New(t.Context(), Config{Name: fmt.Sprint("cp-", i), Store: st, Control: control, Admin: adminAt})
			if errs[i] == nil {
				operators[i], errs[i] = planes[i].FirstOperator(t.Context())
			}
		})
	}
	starting.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, p := range planes[1:] {
		if !bytes.Equal(p.Authorities(), planes[0].Authorities()) || !bytes.Equal(p.shared.busKey.Key, planes[0].shared.busKey.Key) {
			t.Error("two replicas have two sets of secrets")
		}
	}
	if n := len(slices.DeleteFunc(operators, func(s string) bool { return s == "" })); n != 1 {
		t.Errorf("%d first operators", n)
	}
	history, err := st.History(t.Context(), 0, 10, "")
	if err != nil || len(history) != 1 {
		t.Errorf("%d first revisions, %v", len(history), err)
	}
}

func TestTwoReplicas(t *testing.T) {
	t.Parallel()
	st := memoryStore(t)
	a := newReplica(t, st, "cp-a", "")
	b := newReplica(t, st, "cp-b", a.operator)
	newNode(t, a, "n-a")
	newNode(t, b, "n-b")
	replicas := []*replica{a, b}
	for i := range 10 {
		writer, reader := replicas[i%2], replicas[1-i%2]
		v := writer.apply(t, upsert(application("x", fmt.Sprint(i))))
		if err := reader.Await(t.Context(), v); err != nil || !reader.holds("x", fmt.Sprint(i)) || !writer.holds("x", fmt.Sprint(i)) {
			t.Fatalf("write %d on one replica is not on the other: %v", i, err)
		}
	}
	for _, r := range replicas {
		eventually(t, "both nodes are listed on both replicas", func() bool { return len(r.Nodes()) == 2 })
		resp, err := r.client.Wait(r.as(t.Context()), &adminv1.WaitRequest{Timeout: durationpb.New(20 * time.Second)})
		if err != nil || !resp.Convergence.Converged || resp.Convergence.Programmed != 2 {
			t.Errorf("%s: %v, %v", r.cfg.Name, resp, err)
		}
		st, err := r.client.Status(r.as(t.Context()), &adminv1.StatusRequest{})
		if err != nil || !slices.Equal(st.Replicas, []string{"cp-a", "cp-b"}) || len(st.Nodes) != 2 {
			t.Errorf("%s: %v, %v", r.cfg.Name, st, err)
		}
		for _, name := range []string{"n-a", "n-b"} {
			why, err := r.client.Why(r.as(t.Context()), &adminv1.WhyRequest{RequestId: "of-" + name})
			if err != nil || why.Record.Node != name {
				t.Errorf("%s asked of a request on %s: %v, %v", r.cfg.Name, name, why, err)
			}
		}
		if _, err := r.client.Why(r.as(t.Context()), &adminv1.WhyRequest{RequestId: "of-nobody"}); status.Code(err) != codes.NotFound {
			t.Errorf("%s: %v", r.cfg.Name, err)
		}
	}
	b.stop()
	eventually(t, "a stopped replica is not listed", func() bool {
		resp, err := a.client.Status(a.as(t.Context()), &adminv1.StatusRequest{})
		return err == nil && slices.Equal(resp.Replicas, []string{"cp-a"})
	})
}

// What the store holds and no check would accept is not served; the last state
// is, until what is stored is right again.
func TestInvalidStateIsNotServed(t *testing.T) {
	t.Parallel()
	st := memoryStore(t)
	r := newReplica(t, st, "cp-1", "")
	good := r.apply(t, upsert(application("a", "1")))
	bad := &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "nowhere", Name: "b"}, Spec: application("b", "").Spec}
	v, err := st.Apply(t.Context(), good, upsert(bad), store.Meta{Author: "somebody behind our back"})
	if err != nil {
		t.Fatal(err)
	}
	// The deny lane goes on all the same.
	if _, err := st.Revoke(t.Context(), []*controlv1.Revocation{revoked("mallory")}, store.Meta{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revocation beside the invalid state counts", func() bool { return r.mirror.revocations.Len() == 1 })
	if at := r.Version(); at != good || !r.holds("a", "1") {
		t.Errorf("at %v after the invalid %v", at, v)
	}
	state, err := st.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mended, err := st.Apply(t.Context(), state.Version, &adminv1.Change{Deletes: []*controlv1.ResourceKey{config.KeyOf(bad).Proto()}}, store.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Await(t.Context(), mended); err != nil || !r.holds("a", "1") {
		t.Error(err)
	}
}

// A store that cannot be read leaves the last state in place; a compaction in
// the meantime is a reload.
func TestStoreFailsAndComesBack(t *testing.T) {
	t.Parallel()
	memory := memoryStore(t)
	st := &faulty{Store: memory}
	r := newReplica(t, st, "cp-1", "")
	good := r.apply(t, upsert(application("a", "1"), application("gone", "")))
	st.set(func(f *faulty) { f.fail = errors.New("store down"); f.loads = 0 })
	eventually(t, "the mirror tries to load", func() bool { st.mu.Lock(); defer st.mu.Unlock(); return st.loads > 0 })
	if r.Version() != good || !r.holds("a", "1") {
		t.Error("the last state is gone with the store")
	}
	change := upsert(application("a", "2"))
	change.Deletes = []*controlv1.ResourceKey{{Kind: "Application", Name: "gone"}}
	next, err := memory.Apply(t.Context(), good, change, store.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	memory.Compact()
	st.set(func(f *faulty) { f.fail = nil })
	if err := r.Await(t.Context(), next); err != nil || !r.holds("a", "2") || r.holds("gone", "") {
		t.Errorf("after the store came back: %v", err)
	}
	// And it follows on.
	last := r.apply(t, upsert(application("a", "3")))
	if err := r.Await(t.Context(), last); err != nil || !r.holds("a", "3") {
		t.Error(err)
	}
}

// A restored store is a new epoch: it is served, and what was revoked before stays
// revoked.
func TestRestoredStore(t *testing.T) {
	t.Parallel()
	st := memoryStore(t)
	r := newReplica(t, st, "cp-1", "")
	if _, err := st.Revoke(t.Context(), []*controlv1.Revocation{revoked("mallory")}, store.Meta{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revocation is seen", func() bool { return r.mirror.revocations.Len() == 1 })
	st.Restore()
	if err := r.Await(t.Context(), config.Version{Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	if v := r.apply(t, upsert(application("a", "1"))); v.Epoch != 2 || r.mirror.revocations.Len() != 1 {
		t.Errorf("written as %v, %d revocations", v, r.mirror.revocations.Len())
	}
}

// A replica that cannot prove that it is current falls silent: its nodes hear no
// heartbeat, so that they grow stale and follow another. It goes on with the first
// proof.
func TestNoHeartbeatWithoutQuorum(t *testing.T) {
	t.Parallel()
	st := &faulty{Store: memoryStore(t)}
	r := newReplica(t, st, "cp-1", "")
	n := newNode(t, r, "n1")
	for range 3 {
		<-n.beats
	}
	st.set(func(f *faulty) { f.mute = true })
	// What was proved lasts a second; then there are two of silence.
	quiet := time.NewTimer(2 * time.Second)
	begin := time.Now()
	for last := begin; ; {
		select {
		case <-n.beats:
			last = time.Now()
			quiet.Reset(2 * time.Second)
			if last.Sub(begin) > 10*time.Second {
				t.Fatal("heartbeats go on without a proof")
			}
			continue
		case <-quiet.C:
		}
		break
	}
	// A commit that is seen is no proof that there is none newer.
	r.apply(t, upsert(application("a", "1")))
	select {
	case beat := <-n.beats:
		t.Errorf("a commit made a heartbeat: %v", beat)
	case <-time.After(600 * time.Millisecond):
	}
	st.set(func(f *faulty) { f.mute = false })
	if beat := <-n.beats; config.VersionOf(beat.Head) != r.Version() {
		t.Errorf("heartbeat %v at %v", beat, r.Version())
	}
}

// A crash between an operator and its credential must not lock everybody out.
func TestFirstOperatorAfterCrash(t *testing.T) {
	st := store.NewMemory()
	defer func() { _ = st.Close() }()
	if _, err := st.Items("operators").Put(t.Context(), "admin", nil, store.Write{}); err != nil {
		t.Fatal(err)
	}
	if credential, err := firstOperator(t.Context(), st); err != nil || credential == "" {
		t.Fatalf("after a crash: %q, %v", credential, err)
	}
	if credential, err := firstOperator(t.Context(), st); err != nil || credential != "" {
		t.Fatalf("a second first operator: %q, %v", credential, err)
	}
}
