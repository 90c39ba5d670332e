package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func testEmpty(t *testing.T, s store.Store) {
	st := load(t, s)
	if st.Version.Epoch != 1 || st.Version.Revision == 0 {
		t.Errorf("an empty store is at %v; want epoch 1 and a revision, so that it is not mistaken for no version", st.Version)
	}
	if len(st.Resources) != 0 || len(st.Revocations) != 0 || len(credentials(t, st)) != 0 {
		t.Errorf("an empty store holds %v", st)
	}
	h, err := s.History(within(t), 0, 0, "")
	if err != nil || len(h) != 0 {
		t.Errorf("History = %v, %v; want none", h, err)
	}
}

func testApply(t *testing.T, s store.Store) {
	a, b, c := Route("w", "a", "/a"), Route("w", "b", "/b"), Route("v", "c", "/c")
	v1 := apply(t, s, Upserts(b, a, c))
	st := load(t, s)
	if st.Version != v1 {
		t.Errorf("loaded %v after commit of %v", st.Version, v1)
	}
	if diff := cmp.Diff([]*configv1.Resource{c, a, b}, st.Resources, protocmp.Transform()); diff != "" {
		t.Error("loaded (-want +got):", diff)
	}

	a2 := Route("w", "a", "/other")
	change := Upserts(a2)
	change.Deletes = Deletes(b).Deletes
	v2 := apply(t, s, change)
	if v2.Compare(v1) <= 0 {
		t.Errorf("version %v after %v", v2, v1)
	}
	st = load(t, s)
	if diff := cmp.Diff([]*configv1.Resource{c, a2}, st.Resources, protocmp.Transform()); diff != "" {
		t.Error("after change (-want +got):", diff)
	}
}

func testApplyNothing(t *testing.T, s store.Store) {
	a := Route("w", "a", "/a")
	v := apply(t, s, Upserts(a))
	for name, c := range map[string]*adminv1.Change{
		"empty": {}, "same": Upserts(a), "absent": Deletes(Route("w", "x", "/")),
	} {
		if got := apply(t, s, c); got != v {
			t.Errorf("%s change made version %v of %v", name, got, v)
		}
	}
	if h, err := s.History(within(t), 0, 0, ""); err != nil || len(h) != 1 {
		t.Errorf("History has %d records, %v; want the one commit", len(h), err)
	}
}

func testConflict(t *testing.T, s store.Store) {
	old := load(t, s).Version
	v := apply(t, s, Upserts(Route("w", "a", "/a")))
	for name, at := range map[string]config.Version{
		"stale": old, "zero": {}, "other epoch": {Epoch: 2, Revision: v.Revision},
		"future": {Epoch: 1, Revision: v.Revision + 100},
	} {
		if _, err := s.Apply(within(t), at, Upserts(Route("w", "b", "/b")), by); !errors.Is(err, store.ErrConflict) {
			t.Errorf("Apply at %s version: %v, want ErrConflict", name, err)
		}
	}
	if got := names(load(t, s).Resources); len(got) != 1 {
		t.Errorf("refused changes left %v", got)
	}
}

// testLanes: only the config lane's own commits are conflicts to it.
func testLanes(t *testing.T, s store.Store) {
	v := apply(t, s, Upserts(Application("w", "app")))
	if _, err := s.PutCredential(within(t), Credential("w", "k", "app", 1), by); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Revoke(within(t), []*controlv1.Revocation{Revocation(1, time.Now(), time.Now().Add(time.Hour))}, by); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(within(t), v, Upserts(Route("w", "a", "/a")), by); err != nil {
		t.Errorf("Apply after commits on other lanes: %v", err)
	}
	// A change may mix resources and credentials: one revision.
	v = apply(t, s, Upserts(Route("w", "b", "/b"), Credential("w", "k2", "app", 2)))
	st := load(t, s)
	if st.Version != v || credentials(t, st)["w/k2"] == nil {
		t.Errorf("mixed change: at %v of %v, credentials %v", st.Version, v, credentials(t, st))
	}
}

func testRefused(t *testing.T, s store.Store) {
	at := load(t, s).Version
	a := Route("w", "a", "/a")
	huge := Route("w", "huge", "/"+strings.Repeat("x", 3<<20))
	both := Upserts(a)
	both.Deletes = Deletes(a).Deletes
	for name, c := range map[string]struct {
		change *adminv1.Change
		want   error
	}{
		"twice":     {Upserts(a, a), store.ErrInvalid},
		"both":      {both, store.ErrInvalid},
		"slash":     {Upserts(Route("w", "a/b", "/")), store.ErrInvalid},
		"workspace": {Upserts(Route("w/x", "b", "/")), store.ErrInvalid},
		"nameless":  {Upserts(Route("w", "", "/")), store.ErrInvalid},
		"no spec":   {Upserts(&configv1.Resource{Metadata: &configv1.Metadata{Name: "x"}}), store.ErrInvalid},
		"too large": {Upserts(a, huge), store.ErrTooLarge},
	} {
		if _, err := s.Apply(within(t), at, c.change, by); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if st := load(t, s); st.Version != at {
		t.Errorf("refused changes moved the store from %v to %v", at, st.Version)
	}
}

func testSecrets(t *testing.T, s store.Store) {
	issuer := &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "w", Name: "i"},
		Spec:     &configv1.Resource_Issuer{Issuer: &configv1.Issuer{Issuer: "https://i", HmacSecret: "swordfish"}},
	}
	v := apply(t, s, Upserts(issuer))
	if got := load(t, s).Resources; len(got) != 1 || !proto.Equal(got[0], issuer) {
		t.Errorf("loaded %v", got)
	}
	if again := apply(t, s, Upserts(issuer)); again != v {
		t.Errorf("the same secret was a change")
	}
	h, err := s.History(within(t), 0, 1, "")
	if err != nil || len(h) != 1 || !proto.Equal(h[0].Edits[0].After, issuer) {
		t.Errorf("History = %v, %v", h, err)
	}
}

// testOwnership: neither side sees the other's later changes to a message.
func testOwnership(t *testing.T, s store.Store) {
	a := Route("w", "a", "/a")
	apply(t, s, Upserts(a))
	a.Metadata.Labels = map[string]string{"mine": "yes"}
	got := load(t, s).Resources[0]
	if len(got.Metadata.Labels) > 0 {
		t.Error("the store kept what was passed to it")
	}
	got.Metadata.Name = "other"
	h, err := s.History(within(t), 0, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	h[0].Edits[0].After.Metadata.Name = "other"
	if got := names(load(t, s).Resources); !slices.Equal(got, []string{"Route w/a"}) {
		t.Errorf("the store handed out its own: %v", got)
	}
}

// testLargeBatch makes a change that no etcd transaction holds.
func testLargeBatch(t *testing.T, s store.Store) {
	const n = 4200
	before := apply(t, s, Upserts(Route("w", "r0", "/old"), Route("w", "gone", "/"), Application("w", "app")))
	next, stop := follow(t, s, before)
	defer stop()
	change := Deletes(Route("w", "gone", "/"))
	for i := range n {
		change.Upserts = append(change.Upserts, Route("w", fmt.Sprintf("r%d", i), fmt.Sprintf("/p%d", i)))
	}
	change.Upserts = append(change.Upserts, Credential("w", "k", "app", 7))
	v := apply(t, s, change)
	e := next()
	if e.Version != v || e.Previous != before || len(e.Upserts) != n || len(e.Deletes) != 1 || len(e.CredentialPuts) != 1 {
		t.Errorf("watched %v after %v: %d upserts, %d deletes, %d credentials", e.Version, e.Previous, len(e.Upserts), len(e.Deletes), len(e.CredentialPuts))
	}
	st := load(t, s)
	if st.Version != v || len(st.Resources) != n+1 || len(credentials(t, st)) != 1 {
		t.Errorf("loaded %v, %d resources, %d credentials", st.Version, len(st.Resources), len(credentials(t, st)))
	}
	if _, err := s.GetCredential(within(t), "w", "k"); err != nil {
		t.Errorf("GetCredential: %v", err)
	}
	// The next write stands on it, and its state is whole again.
	v2 := apply(t, s, Deletes(Route("w", "r1", "/")))
	if e := next(); e.Version != v2 || e.Previous != v {
		t.Errorf("watched %v after %v", e.Version, e.Previous)
	}
	if got := len(load(t, s).Resources); got != n {
		t.Errorf("%d resources after the next write, want %d", got, n)
	}
	old, err := s.At(within(t), before.Revision)
	if err != nil || len(old) != 3 {
		t.Errorf("At before the batch: %d resources, %v", len(old), err)
	}
}
