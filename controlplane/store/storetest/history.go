package storetest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func testHistory(t *testing.T, s store.Store) {
	ctx := within(t)
	a := Route("w", "a", "/a")
	v1 := apply(t, s, Upserts(a))
	v2 := apply(t, s, Upserts(Route("x", "b", "/b")))
	a2 := Route("w", "a", "/a2")
	v3 := apply(t, s, Upserts(a2))
	all, err := s.History(ctx, 0, 0, "")
	if err != nil || len(all) != 3 || all[0].Version != v3 || all[1].Version != v2 || all[2].Version != v1 {
		t.Fatalf("History = %v, %v", all, err)
	}
	top := all[0]
	if top.Author != "alice" || top.Reason != "because" || top.Time.IsZero() || len(top.Edits) != 1 ||
		top.Edits[0].Key != config.KeyOf(a) || !proto.Equal(top.Edits[0].Before, a) || !proto.Equal(top.Edits[0].After, a2) {
		t.Errorf("newest record %+v", top)
	}
	if all[2].Edits[0].Before != nil {
		t.Errorf("a creation has a before: %v", all[2].Edits[0].Before)
	}
	for _, c := range []struct {
		before    int64
		limit     int
		workspace string
		want      []config.Version
	}{
		{0, 1, "", []config.Version{v3}},
		{v3.Revision, 0, "", []config.Version{v2, v1}},
		{0, 0, "w", []config.Version{v3, v1}},
		{v3.Revision, 1, "w", []config.Version{v1}},
		{0, 0, "nobody", nil},
	} {
		h, err := s.History(ctx, c.before, c.limit, c.workspace)
		if err != nil {
			t.Fatal(err)
		}
		var got []config.Version
		for _, r := range h {
			got = append(got, r.Version)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("History(%d, %d, %q) = %v, want %v", c.before, c.limit, c.workspace, got, c.want)
		}
	}
}

// testAt makes random commits and remembers the state after each: At must know
// them all.
func testAt(t *testing.T, s store.Store) {
	rng := rand.New(rand.NewPCG(1, 2))
	model := make(map[config.Key]*configv1.Resource)
	type snapshot struct {
		version config.Version
		state   []*configv1.Resource
	}
	var snapshots []snapshot
	apply(t, s, Upserts(Application("default", "app")))
	model[config.KeyOf(Application("default", "app"))] = Application("default", "app")
	for i := range 25 {
		change := new(adminv1.Change)
		for _, n := range rng.Perm(8)[:1+rng.IntN(3)] {
			r := Route("default", fmt.Sprintf("r%d", n), fmt.Sprintf("/%d", i))
			if rng.IntN(3) == 0 {
				change.Deletes = append(change.Deletes, config.KeyOf(r).Proto())
				delete(model, config.KeyOf(r))
			} else {
				change.Upserts = append(change.Upserts, r)
				model[config.KeyOf(r)] = r
			}
		}
		v := apply(t, s, change)
		snapshots = append(snapshots, snapshot{v, slices.Collect(maps.Values(model))})
		if _, err := s.PutCredential(within(t), Credential("default", "k", "app", byte(i)), by); err != nil {
			t.Fatal(err)
		}
	}
	byKey := protocmp.SortRepeated(func(a, b *configv1.Resource) bool { return config.KeyOf(a).Compare(config.KeyOf(b)) < 0 })
	for _, want := range snapshots {
		got, err := s.At(within(t), want.version.Revision)
		if err != nil {
			t.Fatalf("At(%v): %v", want.version, err)
		}
		slices.SortFunc(want.state, func(a, b *configv1.Resource) int { return config.KeyOf(a).Compare(config.KeyOf(b)) })
		if diff := cmp.Diff(want.state, got, protocmp.Transform(), byKey); diff != "" {
			t.Fatalf("At(%v) (-want +got):\n%s", want.version, diff)
		}
	}
	if _, err := s.At(within(t), load(t, s).Version.Revision+1); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("At a revision to come: %v, want ErrNotFound", err)
	}
}
