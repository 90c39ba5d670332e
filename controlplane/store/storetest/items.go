package storetest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/controlplane/store"
)

func testItems(t *testing.T, s store.Store) {
	ctx := within(t)
	room, other := s.Items("operators"), s.Items("ca")
	if _, err := room.Get(ctx, "alice"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of nothing: %v", err)
	}
	v1, err := room.Put(ctx, "bob", []byte("1"), store.Write{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := room.Put(ctx, "bob", []byte("2"), store.Write{}); !errors.Is(err, store.ErrExists) {
		t.Errorf("creating what is there: %v, want ErrExists", err)
	}
	if _, err := room.Put(ctx, "bob", []byte("2"), store.Write{At: v1 + 1}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("swapping another revision: %v, want ErrConflict", err)
	}
	if _, err := room.Put(ctx, "nobody", []byte("2"), store.Write{At: v1}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("swapping what is not there: %v, want ErrConflict", err)
	}
	v2, err := room.Put(ctx, "bob", []byte("2"), store.Write{At: v1})
	if err != nil || v2 <= v1 {
		t.Fatalf("swap: %d, %v", v2, err)
	}
	if _, err := room.Put(ctx, "alice", []byte("a"), store.Write{At: store.Overwrite}); err != nil {
		t.Fatal(err)
	}
	v3, err := room.Put(ctx, "bob", []byte("3"), store.Write{At: store.Overwrite})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Put(ctx, "bob", []byte("other"), store.Write{}); err != nil {
		t.Fatal(err)
	}
	got, err := room.Get(ctx, "bob")
	if err != nil || string(got.Value) != "3" || got.Revision != v3 || got.Name != "bob" {
		t.Errorf("Get = %+v, %v", got, err)
	}
	list, err := room.List(ctx)
	if err != nil || len(list) != 2 || list[0].Name != "alice" || string(list[1].Value) != "3" {
		t.Errorf("List = %+v, %v", list, err)
	}
	if gone, err := room.Delete(ctx, "bob"); err != nil || string(gone.Value) != "3" {
		t.Errorf("Delete = %+v, %v", gone, err)
	}
	if _, err := room.Delete(ctx, "bob"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Delete again: %v, want ErrNotFound", err)
	}
	for _, bad := range []string{"", "Room", "a/b", "a b"} {
		if _, err := s.Items(bad).Put(ctx, "x", nil, store.Write{}); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("room %q: %v, want ErrInvalid", bad, err)
		}
	}
	if _, err := room.Get(ctx, ""); !errors.Is(err, store.ErrInvalid) {
		t.Errorf("item without name: %v, want ErrInvalid", err)
	}
}

// testItemsOnce: of many who use a thing up, or create it, one wins.
func testItemsOnce(t *testing.T, s store.Store) {
	ctx := within(t)
	room := s.Items("join-tokens")
	race := func(f func() error, lost error) {
		t.Helper()
		var won atomic.Int32
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				switch err := f(); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, lost):
					t.Errorf("a loser was told %v, want %v", err, lost)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d won, want 1", won.Load())
		}
	}
	for range 3 {
		race(func() error { _, err := room.Put(ctx, "t", []byte("x"), store.Write{}); return err }, store.ErrExists)
		race(func() error { _, err := room.Delete(ctx, "t"); return err }, store.ErrNotFound)
	}
}

func testItemsExpire(t *testing.T, s store.Store) {
	ctx := within(t)
	room := s.Items("join-tokens")
	if _, err := room.Put(ctx, "t", []byte("x"), store.Write{TTL: time.Second}); err != nil {
		t.Fatal(err)
	}
	if _, err := room.Get(ctx, "t"); err != nil {
		t.Errorf("before its time: %v", err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := room.Get(ctx, "t")
		if errors.Is(err, store.ErrNotFound) {
			return
		}
		if err != nil {
			t.Fatalf("while it expires: %v", err)
		}
		<-tick.C
	}
}

func testItemsHold(t *testing.T, s store.Store) {
	ctx, cancel := context.WithCancel(within(t))
	room := s.Items("replicas")
	done := make(chan error)
	go func() { done <- room.Hold(ctx, "r1", []byte("addr"), 5*time.Second) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if got, err := room.Get(within(t), "r1"); err == nil {
			if string(got.Value) != "addr" {
				t.Errorf("held item is %q", got.Value)
			}
			break
		}
		<-tick.C
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Hold: %v", err)
	}
	if _, err := room.Get(within(t), "r1"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("after Hold: %v, want ErrNotFound", err)
	}
}
