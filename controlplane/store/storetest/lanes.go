package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/controlplane/store"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func testCredentials(t *testing.T, s store.Store) {
	ctx := within(t)
	cred := Credential("w", "k", "app", 1)
	if _, err := s.PutCredential(ctx, cred, by); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("PutCredential without its Application: %v, want ErrNotFound", err)
	}
	if _, err := s.PutCredential(ctx, Route("w", "a", "/"), by); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("PutCredential of a Route: %v, want ErrInvalid", err)
	}
	before := apply(t, s, Upserts(Application("w", "app")))
	v, err := s.PutCredential(ctx, cred, by)
	if err != nil || v.Compare(before) <= 0 {
		t.Fatalf("PutCredential: %v, %v", v, err)
	}
	if same, err := s.PutCredential(ctx, cred, by); err != nil || same != v {
		t.Errorf("the same credential again: %v, %v", same, err)
	}
	got, err := s.GetCredential(ctx, "w", "k")
	if err != nil || !proto.Equal(got, cred) {
		t.Errorf("GetCredential: %v, %v", got, err)
	}
	if st := load(t, s); st.Version != v || len(st.Resources) != 1 || !proto.Equal(credentials(t, st)["w/k"], cred) {
		t.Errorf("loaded %v: %v", st.Version, names(st.Resources))
	}
	v2, was, err := s.DeleteCredential(ctx, "w", "k", by)
	if err != nil || v2.Compare(v) <= 0 || !proto.Equal(was, cred) {
		t.Errorf("DeleteCredential: %v, %v, %v", v2, was, err)
	}
	if _, _, err := s.DeleteCredential(ctx, "w", "k", by); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("DeleteCredential again: %v, want ErrNotFound", err)
	}
	if _, err := s.GetCredential(ctx, "w", "k"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("GetCredential of a deleted one: %v, want ErrNotFound", err)
	}
}

// testCredentialCreation has many create one name at once, over and over.
func testCredentialCreation(t *testing.T, s store.Store) {
	ctx := within(t)
	if _, err := s.CreateCredential(ctx, Credential("w", "k", "app", 1), by); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("CreateCredential without its Application: %v, want ErrNotFound", err)
	}
	apply(t, s, Upserts(Application("w", "app")))
	for round := range 5 {
		const callers = 8
		var wg sync.WaitGroup
		errs := make([]error, callers)
		for i := range callers {
			wg.Go(func() { _, errs[i] = s.CreateCredential(ctx, Credential("w", "k", "app", byte(round), byte(i)), by) })
		}
		wg.Wait()
		winner := slices.Index(errs, nil)
		for i, err := range errs {
			if i != winner && !errors.Is(err, store.ErrExists) {
				t.Fatalf("caller %d beside %d: %v, want ErrExists", i, winner, err)
			}
		}
		// The winner's own again is one that exists, too.
		want := Credential("w", "k", "app", byte(round), byte(winner))
		if _, err := s.CreateCredential(ctx, want, by); !errors.Is(err, store.ErrExists) {
			t.Errorf("the same again: %v, want ErrExists", err)
		}
		if _, was, err := s.DeleteCredential(ctx, "w", "k", by); err != nil || !proto.Equal(was, want) {
			t.Fatalf("stored %v, %v; want %v", was, err, want)
		}
	}
}

func testCredentialPages(t *testing.T, s store.Store) {
	change := Upserts(Application("w", "app"), Application("x", "app"), Credential("x", "k0", "app", 99))
	for i := range 7 {
		change.Upserts = append(change.Upserts, Credential("w", fmt.Sprintf("k%d", i), "app", byte(i)))
	}
	v := apply(t, s, change)
	var got []string
	page := store.Page{Limit: 3}
	for n := 0; ; n++ {
		p, err := s.ListCredentials(within(t), "w", page)
		if err != nil || len(p.Credentials) > 3 || p.Version != v || n > 3 {
			t.Fatalf("page %d: %d credentials at %v, %v", n, len(p.Credentials), p.Version, err)
		}
		got = append(got, names(p.Credentials)...)
		if p.Next == "" {
			break
		}
		page.After = p.Next
	}
	if fmt.Sprint(got) != "[Credential w/k0 Credential w/k1 Credential w/k2 Credential w/k3 Credential w/k4 Credential w/k5 Credential w/k6]" {
		t.Errorf("pages: %v", got)
	}
}

func testRevocations(t *testing.T, s store.Store) {
	ctx := within(t)
	now := time.Now().Truncate(time.Second).UTC()
	revoke := func(rs ...*controlv1.Revocation) int64 {
		t.Helper()
		v, err := s.Revoke(ctx, rs, by)
		if err != nil {
			t.Fatalf("Revoke: %v", err)
		}
		return v.Revision
	}
	for _, bad := range []*controlv1.Revocation{{}, {Kind: controlv1.RevocationKind_REVOCATION_KIND_JTI, Key: []byte("short")}} {
		if _, err := s.Revoke(ctx, []*controlv1.Revocation{bad}, by); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("Revoke(%v): %v, want ErrInvalid", bad, err)
		}
	}
	hour, day := now.Add(time.Hour), now.Add(24*time.Hour)
	first := revoke(Revocation(1, now, hour), Revocation(2, time.Time{}, hour))
	if again := revoke(Revocation(1, now, hour)); again != first {
		t.Errorf("the same revocation made revision %d of %d", again, first)
	}
	if weaker := revoke(Revocation(1, now.Add(-time.Hour), now.Add(time.Minute)), Revocation(2, now, hour)); weaker != first {
		t.Errorf("a weaker revocation made revision %d of %d", weaker, first)
	}
	third := revoke(Revocation(1, now.Add(-time.Minute), day))
	st := load(t, s)
	if st.RevocationsRevision != third || st.Version.Revision != third || len(st.Revocations) != 2 {
		t.Fatalf("loaded revision %d of %d, %v", st.RevocationsRevision, third, st.Revocations)
	}
	for _, r := range st.Revocations {
		switch {
		case bytes.Equal(r.Key, Revocation(1, now, now).Key):
			if !r.RevokedBefore.AsTime().Equal(now) || !r.ExpiresAt.AsTime().Equal(day) || r.Revision != third {
				t.Errorf("entry 1 is %v; want the later bound and the later expiry, revision %d", r, third)
			}
		case r.RevokedBefore != nil || r.Revision != first:
			t.Errorf("entry 2 is %v; want unbounded, revision %d", r, first)
		}
	}
	var many []*controlv1.Revocation
	for i := range 250 {
		r := Revocation(9, now, day)
		r.Key[0] = byte(i)
		many = append(many, r)
	}
	last := revoke(many...)
	if st := load(t, s); len(st.Revocations) != 252 || st.RevocationsRevision != last {
		t.Errorf("%d revocations at %d, want 252 at %d", len(st.Revocations), st.RevocationsRevision, last)
	}
}
