package storetest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// follow watches; next returns the next commit, passing over proofs and hints.
func follow(t *testing.T, s store.Store, after config.Version) (next func() store.Event, stop func()) {
	t.Helper()
	any, stop := followAll(t, s, after)
	return func() store.Event {
		t.Helper()
		for {
			if e := any(); e.Version.Revision > 0 {
				return e
			}
		}
	}, stop
}

func followAll(t *testing.T, s store.Store, after config.Version) (next func() store.Event, stop func()) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	events := make(chan store.Event)
	done := make(chan struct{})
	var failed error
	go func() {
		defer close(done)
		defer close(events)
		for e, err := range s.Watch(ctx, after) {
			if err != nil {
				failed = err
				return
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	next = func() store.Event {
		t.Helper()
		e, ok := <-events
		if !ok {
			t.Fatalf("watch ended: %v", failed)
		}
		return e
	}
	return next, func() { cancel(); <-done }
}

func testWatch(t *testing.T, s store.Store) {
	ctx := within(t)
	v0 := load(t, s).Version
	next, stop := follow(t, s, v0)
	defer stop()
	a, app := Route("w", "a", "/a"), Application("w", "app")
	v1 := apply(t, s, Upserts(a, app))
	e := next()
	if e.Version != v1 || e.Previous != v0 || len(e.Upserts) != 2 || e.Record.Author != "alice" || e.Record.Reason != "because" {
		t.Errorf("first event %+v", e)
	}
	v2 := apply(t, s, Deletes(a))
	if e = next(); e.Version != v2 || e.Previous != v1 || !slices.Equal(e.Deletes, []config.Key{config.KeyOf(a)}) || len(e.Upserts) > 0 {
		t.Errorf("delete event %+v", e)
	}
	old, replaced := Credential("w", "k", "app", 1), Credential("w", "k", "app", 2)
	if _, err := s.PutCredential(ctx, old, by); err != nil {
		t.Fatal(err)
	}
	if e = next(); len(e.CredentialPuts) != 1 || len(e.CredentialDeletes) != 0 || len(e.Upserts) != 0 || e.Previous != v2 {
		t.Errorf("credential event %+v", e)
	}
	if _, err := s.PutCredential(ctx, replaced, by); err != nil {
		t.Fatal(err)
	}
	if e = next(); len(e.CredentialPuts) != 1 || len(e.CredentialDeletes) != 1 || !proto.Equal(e.CredentialDeletes[0], old) {
		t.Errorf("replacement event %+v; want the old key deleted", e)
	}
	if _, _, err := s.DeleteCredential(ctx, "w", "k", by); err != nil {
		t.Fatal(err)
	}
	if e = next(); len(e.CredentialPuts) != 0 || len(e.CredentialDeletes) != 1 || !proto.Equal(e.CredentialDeletes[0], replaced) {
		t.Errorf("deletion event %+v", e)
	}
	v, err := s.Revoke(ctx, []*controlv1.Revocation{Revocation(3, time.Now(), time.Now().Add(time.Hour))}, by)
	if err != nil {
		t.Fatal(err)
	}
	if e = next(); e.Version != v || len(e.Revocations) != 1 || e.Revocations[0].Revision != v.Revision {
		t.Errorf("revocation event %+v", e)
	}
}

// testWatchReplays: a watch begins with what was committed since, and proves that
// it is current by a moment that lies after it was opened.
func testWatchReplays(t *testing.T, s store.Store) {
	v0 := load(t, s).Version
	var committed []config.Version
	for i := range 5 {
		committed = append(committed, apply(t, s, Upserts(Route("w", "a", "/"+string(rune('a'+i))))))
	}
	opened := time.Now()
	next, stop := followAll(t, s, v0)
	defer stop()
	var seen []config.Version
	previous := v0
	for {
		e := next()
		if e.Progress != 0 {
			if len(seen) != len(committed) {
				t.Fatalf("proof of being current after %d of %d commits", len(seen), len(committed))
			}
			if e.Progress < previous.Revision || e.AsOf.Before(opened) {
				t.Errorf("proof of %d as of %v; newest is %v, opened %v", e.Progress, e.AsOf, previous, opened)
			}
			break
		}
		if e.Version.Revision == 0 {
			continue
		}
		if e.Previous != previous {
			t.Errorf("event %v follows %v, not %v", e.Version, e.Previous, previous)
		}
		previous = e.Version
		seen = append(seen, e.Version)
	}
	if !slices.Equal(seen, committed) {
		t.Errorf("watched %v, committed %v", seen, committed)
	}
	first := next()
	for first.Progress == 0 {
		first = next()
	}
	second := next()
	for second.Progress == 0 {
		second = next()
	}
	if !second.AsOf.After(first.AsOf) {
		t.Error("proofs do not move on when nothing is committed")
	}
}

func testWatchRefused(t *testing.T, s store.Store) {
	v := load(t, s).Version
	for name, after := range map[string]config.Version{
		"zero": {}, "other epoch": {Epoch: v.Epoch + 1, Revision: v.Revision}, "future": {Epoch: v.Epoch, Revision: v.Revision + 1000},
	} {
		for _, err := range s.Watch(within(t), after) {
			if !errors.Is(err, store.ErrCompacted) {
				t.Errorf("Watch after %s version: %v, want ErrCompacted", name, err)
			}
			break
		}
	}
	ctx, cancel := context.WithCancel(within(t))
	cancel()
	for _, err := range s.Watch(ctx, v) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Watch with an ended context: %v", err)
		}
	}
}

func testWatchHints(t *testing.T, s store.Store) {
	next, stop := followAll(t, s, load(t, s).Version)
	defer stop()
	for e := next(); e.Progress == 0; e = next() { // until the watch is there
	}
	if _, err := s.Items("operators").Put(within(t), "alice", []byte("x"), store.Write{}); err != nil {
		t.Fatal(err)
	}
	for {
		e := next()
		if e.Version.Revision > 0 {
			t.Fatalf("an item made commit %v", e.Version)
		}
		if slices.Equal(e.Rooms, []string{"operators"}) {
			return
		}
	}
}

func testClosed(t *testing.T, s store.Store) {
	v := load(t, s).Version
	next, stop := followAll(t, s, v)
	defer stop()
	next()
	if err := s.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
	if _, err := s.Load(within(t)); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a closed store loads: %v", err)
	}
	if _, err := s.Items("ca").Get(within(t), "x"); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a closed store has items: %v", err)
	}
	for _, err := range s.Watch(within(t), v) {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("a closed store watches: %v", err)
		}
		break
	}
}
