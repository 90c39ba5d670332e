package admin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestRefusedChanges(t *testing.T) {
	f := newFixture(t, nil)
	twice := upsert(application("shop", "a", "1"), application("shop", "a", "2"))
	putAndDelete := upsert(application("shop", "a", "1"))
	putAndDelete.Deletes = remove("Application", "shop", "a").Deletes
	defaulted := upsert(application("", "a", "1"), application("default", "a", "2"))
	keySet := &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "shop", Name: "own"}, Spec: &configv1.Resource_KeySet{KeySet: &configv1.KeySet{}}}
	credential := &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "shop", Name: "k"}, Spec: &configv1.Resource_Credential{Credential: &configv1.Credential{Application: "app"}}}
	for name, c := range map[string]struct {
		change *adminv1.Change
		reason string
	}{
		"nothing": {&adminv1.Change{}, ""}, "none": {nil, ""}, "no metadata": {upsert(&configv1.Resource{Spec: application("shop", "a", "").Spec}), ""},
		"no spec": {upsert(&configv1.Resource{Metadata: &configv1.Metadata{Workspace: "shop", Name: "a"}}), ""},
		"twice":   {twice, ""}, "put and deleted": {putAndDelete, ""}, "twice by default": {defaulted, ""},
		"key set": {upsert(keySet), ""}, "delete key set": {remove("KeySet", "shop", "own"), ""},
		"credential": {upsert(credential), ""}, "delete credential": {remove("Credential", "shop", "k"), ""},
		"unknown kind": {remove("Secret", "shop", "k"), ""}, "long reason": {upsert(application("shop", "a", "")), strings.Repeat("a", maxReason+1)},
		"not valid": {upsert(application("nowhere", "a", "")), ""}, "in use": {remove("Workspace", "", "shop"), ""},
		"bad name": {upsert(application("shop", "A/b", "")), ""}, "the default workspace": {remove("Workspace", "", "default"), ""},
		"many": {&adminv1.Change{Deletes: make([]*controlv1.ResourceKey, maxChangeKeys+1)}, ""},
	} {
		before := f.writes(t)
		f.as(t, "admin")
		_, err := f.client.Apply(f.as(t, "admin"), &adminv1.ApplyRequest{Change: c.change, Reason: c.reason})
		if name == "many" && err != nil && status.Code(err) == codes.ResourceExhausted {
			continue // larger than this client may send
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
		if n := f.writes(t) - before - 1; n > 2 { // the operator's own two, once
			t.Errorf("%s: written %d times", name, n)
		}
	}
}

// Problems travel as details, so that a client can show where each one is.
func TestProblemsAreDetails(t *testing.T) {
	f := newFixture(t, nil)
	bad := upsert(decode(t, `{apiVersion: portcullis.dev/v1, kind: Route, metadata: {workspace: shop, name: r}, spec: {matches: [{path: {exact: /a}}], backends: [{upstream: nowhere}]}}`)...)
	_, err := f.client.Apply(f.as(t, "editor"), &adminv1.ApplyRequest{Change: bad})
	details := status.Convert(err).Details()
	if status.Code(err) != codes.InvalidArgument || len(details) != 1 {
		t.Fatalf("%v with %v", err, details)
	}
	problems := details[0].(*adminv1.PlanResponse).Problems
	if len(problems) == 0 || problems[0].Resource != "Route shop/r" || !strings.Contains(problems[0].Path, "backends") {
		t.Errorf("problems %v", problems)
	}
	plan, err := f.client.Plan(f.as(t, "viewer"), &adminv1.PlanRequest{Change: bad})
	if err != nil || len(plan.Problems) != len(problems) || len(plan.Changes) != 1 {
		t.Errorf("plan %v, %v", plan, err)
	}
}

func TestPlanWritesNothing(t *testing.T) {
	f := newFixture(t, nil)
	ctx := f.as(t, "viewer")
	before := f.writes(t)
	change := upsert(application("shop", "app", "changed"), application("shop", "b", "new"))
	change.Upserts = append(change.Upserts, decode(t, `{apiVersion: portcullis.dev/v1, kind: Issuer, metadata: {workspace: shop, name: fresh}, spec: {issuer: "https://fresh.example", builtIn: true}}`)...)
	change.Deletes = remove("Issuer", "shop", "own").Deletes
	plan, err := f.client.Plan(ctx, &adminv1.PlanRequest{Change: change})
	if err != nil || len(plan.Problems) > 0 {
		t.Fatal(plan, err)
	}
	got := map[string]adminv1.Action{}
	for _, c := range plan.Changes {
		got[config.KeyOfProto(c.Key).String()] = c.Action
	}
	want := map[string]adminv1.Action{
		"Application shop/app": adminv1.Action_ACTION_UPDATE, "Application shop/b": adminv1.Action_ACTION_CREATE,
		"Issuer shop/fresh": adminv1.Action_ACTION_CREATE, "Issuer shop/own": adminv1.Action_ACTION_DELETE,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("planned %v", got)
	}
	if n := f.writes(t) - before - 1; n != 0 {
		t.Errorf("a plan wrote %d times", n)
	}
}

// Who names the version that he planned on gets a conflict once it is old; who
// does not is planned again.
func TestConflicts(t *testing.T) {
	f := newFixture(t, nil)
	old := f.first
	f.apply(t, upsert(application("shop", "a", "1")))
	for name, change := range map[string]*adminv1.Change{"another": upsert(application("shop", "b", "")), "the same": upsert(application("shop", "a", "1"))} {
		_, err := f.client.Apply(f.as(t, "editor"), &adminv1.ApplyRequest{Change: change, At: old.Proto()})
		if status.Code(err) != codes.Aborted {
			t.Errorf("%s: %v", name, err)
		}
	}
	ahead := config.Version{Epoch: 1, Revision: 1 << 40}
	if _, err := f.client.Apply(f.as(t, "editor"), &adminv1.ApplyRequest{Change: upsert(application("shop", "b", "")), At: ahead.Proto()}); status.Code(err) != codes.Aborted {
		t.Errorf("ahead of the store: %v", err)
	}
	// Many at once, none with a version: every one gets in.
	ctx := f.as(t, "editor")
	var writing sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		writing.Go(func() {
			for try := 0; try < 100; try++ {
				_, errs[i] = f.client.Apply(ctx, &adminv1.ApplyRequest{Change: upsert(application("shop", fmt.Sprint("many-", i), ""))})
				if status.Code(errs[i]) != codes.Aborted {
					return
				}
			}
		})
	}
	writing.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	current, _ := f.view.Current()
	for i := range errs {
		if _, ok := current.Get(config.Key{Kind: "Application", Workspace: "shop", Name: fmt.Sprint("many-", i)}); !ok {
			t.Errorf("write %d was acknowledged and lost", i)
		}
	}
}

// racing commits something else just before each of the first writes.
type racing struct {
	store.Store
	left, total int
}

func (r *racing) Apply(ctx context.Context, at config.Version, change *adminv1.Change, meta store.Meta) (config.Version, error) {
	if r.left > 0 {
		r.left--
		r.total++
		state, err := r.Store.Load(ctx)
		if err != nil {
			return config.Version{}, err
		}
		if _, err := r.Store.Apply(ctx, state.Version, upsert(application("other", fmt.Sprint("race-", r.total), "")), store.Meta{}); err != nil {
			return config.Version{}, err
		}
	}
	return r.Store.Apply(ctx, at, change, meta)
}

func TestRacesAreRetriedUpToALimit(t *testing.T) {
	var r *racing
	f := newFixture(t, func(s store.Store) store.Store { r = &racing{Store: s}; return r })
	for left, want := range map[int]codes.Code{1: codes.OK, applyTries - 1: codes.OK, applyTries: codes.Aborted} {
		r.left = left
		if _, err := f.client.Apply(f.as(t, "editor"), &adminv1.ApplyRequest{Change: upsert(application("shop", fmt.Sprint("a-", left), ""))}); status.Code(err) != want {
			t.Errorf("%d races: %v, want %v", left, err, want)
		}
	}
}

// A replica whose view is behind must not say "nothing to do" about a state that
// has gone.
func TestNothingToDoIsTheStoresWord(t *testing.T) {
	f := newFixture(t, nil)
	f.apply(t, upsert(application("shop", "a", "one")))
	f.view.lag.Lock()
	_, before := f.view.Current()
	if _, err := f.memory.Apply(t.Context(), before, upsert(application("shop", "a", "two")), store.Meta{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx := f.as(t, "editor")
	go func() {
		_, err := f.client.Apply(ctx, &adminv1.ApplyRequest{Change: upsert(application("shop", "a", "one"))})
		done <- err
	}()
	f.view.lag.Unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	state, err := f.memory.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range state.Resources {
		if config.KeyOf(r).String() == "Application shop/a" && r.GetApplication().Description != "one" {
			t.Errorf("acknowledged %q, stored %q", "one", r.GetApplication().Description)
		}
	}
}

func TestSameAgainIsNoRevision(t *testing.T) {
	f := newFixture(t, nil)
	first := f.apply(t, upsert(decode(t, documents)...))
	if first != f.first {
		t.Errorf("the same documents made revision %v of %v", first, f.first)
	}
	if again := f.apply(t, remove("Application", "shop", "nothing")); again != first {
		t.Errorf("deleting nothing made revision %v", again)
	}
	resp, err := f.client.Apply(f.as(t, "editor"), &adminv1.ApplyRequest{Change: upsert(application("shop", "a", "")), WaitFor: durationpb.New(1)})
	if err != nil || len(resp.Changes) != 1 || resp.Convergence.GetTotal() != 1 || resp.Convergence.Took == nil {
		t.Errorf("%v %v", resp, err)
	}
}

func TestRollback(t *testing.T) {
	f := newFixture(t, nil)
	admin := f.as(t, "admin")
	one := f.apply(t, upsert(application("shop", "a", "one"), application("shop", "b", "one")))
	two := f.apply(t, upsert(application("shop", "a", "two"), application("shop", "c", "two")))
	change := remove("Application", "shop", "b")
	change.Upserts = decode(t, `{apiVersion: portcullis.dev/v1, kind: Issuer, metadata: {workspace: shop, name: second}, spec: {issuer: "https://second.example", builtIn: true}}`)
	three := f.apply(t, change)
	if _, err := f.client.CreateKey(admin, &adminv1.CreateKeyRequest{Workspace: "shop", Name: "kept", Application: "app"}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.Revoke(admin, &adminv1.RevokeRequest{Subject: "mallory"}); err != nil {
		t.Fatal(err)
	}
	digests := map[config.Version]any{}
	rolled := func(to config.Version) config.Version {
		resp, err := f.client.Rollback(admin, &adminv1.RollbackRequest{Revision: to.Revision})
		if err != nil {
			t.Fatal(err)
		}
		return config.VersionOf(resp.Version)
	}
	digest := func() [32]byte { c, _ := f.view.Current(); return c.Digest() }
	digests[three] = digest()
	four := rolled(two)
	digests[two] = digest()
	if four.Compare(three) <= 0 {
		t.Errorf("rolled back to %v as revision %v", two, four)
	}
	current, _ := f.view.Current()
	if a, _ := current.Get(config.Key{Kind: "Application", Workspace: "shop", Name: "a"}); a.GetApplication().GetDescription() != "two" {
		t.Errorf("a is %v", a)
	}
	if _, ok := current.Get(config.Key{Kind: "Application", Workspace: "shop", Name: "b"}); !ok {
		t.Error("b is not back")
	}
	for _, kind := range []string{"Issuer", "KeySet"} {
		if _, ok := current.Get(config.Key{Kind: kind, Workspace: "shop", Name: "second"}); ok {
			t.Errorf("the %s of later is still there", kind)
		}
	}
	rolled(one)
	if rolled(three); digest() != digests[three] {
		t.Error("rolling forward again is not what it was: keys of built-in issuers must stay")
	}
	if rolled(four); digest() != digests[two] {
		t.Error("rolling back to a rollback is not what it was")
	}
	if keys, revoked := f.view.Counts(); keys != 1 || revoked != 1 {
		t.Errorf("%d keys and %d revocations after rollbacks, want 1 and 1", keys, revoked)
	}
	state, err := f.memory.Load(t.Context())
	if err != nil || len(state.Revocations) != 1 {
		t.Errorf("a rollback took a revocation back: %v %v", state.Revocations, err)
	}
	same, err := f.client.Rollback(admin, &adminv1.RollbackRequest{Revision: state.Version.Revision})
	if err != nil || config.VersionOf(same.Version) != state.Version || len(same.Changes) > 0 {
		t.Errorf("to what is already: %v %v", same, err)
	}
	for _, revision := range []int64{0, -1, state.Version.Revision + 1} {
		if _, err := f.client.Rollback(admin, &adminv1.RollbackRequest{Revision: revision}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("to revision %d: %v", revision, err)
		}
	}
}

func TestWatchMissesNothing(t *testing.T) {
	f := newFixture(t, nil)
	stream, err := f.client.Watch(f.as(t, "viewer"), &adminv1.WatchRequest{After: f.first.Proto()})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		want := f.apply(t, upsert(application("shop", "a", fmt.Sprint(i))))
		got, err := stream.Recv()
		if err != nil || config.VersionOf(got.Entry.Version) != want || got.Entry.Author != "admin" {
			t.Fatalf("revision %v: got %v, %v", want, got, err)
		}
	}
}
