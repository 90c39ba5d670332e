package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/controlplane/store"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// brokenRoom fails while told to.
type brokenRoom struct {
	store.ItemStore
	mu  sync.Mutex
	err error
}

func (b *brokenRoom) Get(ctx context.Context, name string) (store.Item, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return store.Item{}, b.err
	}
	return b.ItemStore.Get(ctx, name)
}

func TestTicketKeysRotateTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := store.NewMemory()
		defer func() { _ = st.Close() }()
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		const replicas = 3
		var rooms [replicas]*brokenRoom
		var all [replicas]*tickets
		for i := range replicas {
			rooms[i] = &brokenRoom{ItemStore: st.Items(roomTickets)}
			one, err := openTickets(ctx, rooms[i], slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			one.told = func() error {
				// The watch tells the others.
				for j := range all {
					if all[j] != nil && j != i {
						trigger(all[j].changed)
					}
				}
				return nil
			}
			all[i] = one
		}
		for _, one := range all {
			running.Go(func() { _ = one.Run(ctx) })
		}
		synctest.Wait()
		same := func(want int) [][]byte {
			t.Helper()
			keys := all[0].keys()
			for i, one := range all {
				if got := one.keys(); !slices.EqualFunc(got, keys, slices.Equal) {
					t.Errorf("replica %d has other keys", i)
				}
			}
			if len(keys) != want {
				t.Errorf("%d keys, want %d", len(keys), want)
			}
			for _, key := range keys {
				if len(key) != 32 {
					t.Errorf("a key of %d bytes", len(key))
				}
			}
			return keys
		}
		first := same(1)
		for i := 2; i <= 6; i++ {
			time.Sleep(ticketEvery)
			synctest.Wait()
			next := same(min(i, ticketKeep))
			if !slices.Equal(next[1], first[0]) {
				t.Error("the key before is not the second now")
			}
			first = next
		}
		// A store that cannot be asked leaves the keys as they are, and is asked again.
		for _, room := range rooms {
			room.mu.Lock()
			room.err = errors.New("no quorum")
			room.mu.Unlock()
		}
		time.Sleep(2 * ticketEvery)
		synctest.Wait()
		if kept := same(ticketKeep); !slices.Equal(kept[0], first[0]) {
			t.Error("rotated without the store")
		}
		for _, room := range rooms {
			room.mu.Lock()
			room.err = nil
			room.mu.Unlock()
		}
		time.Sleep(2 * ticketRetry)
		synctest.Wait()
		if healed := same(ticketKeep); !slices.Equal(healed[1], first[0]) {
			t.Error("not rotated when the store was back")
		}
	})
}

// All replicas give nodes the same keys, sealed in the store.
func TestTicketKeysReachNodesOfEveryReplica(t *testing.T) {
	st := memoryStore(t)
	one := newReplica(t, st, "control-1", "")
	two := newReplica(t, st, "control-2", one.operator)
	welcome := func(r *replica, name string) [][]byte {
		t.Helper()
		secret, err := r.JoinToken(t.Context(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		live, err := join(t.Context(), r.control, secret, name)
		if err != nil {
			t.Fatal(err)
		}
		stream, err := controlv1.NewControlServiceClient(dial(t, r.control, live)).Follow(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Hello{Hello: &controlv1.Hello{Boot: 1}}}); err != nil {
			t.Fatal(err)
		}
		for {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if w := m.GetWelcome(); w != nil {
				return w.TicketKeys
			}
		}
	}
	a, b := welcome(one, "node-1"), welcome(two, "node-2")
	if len(a) != 1 || !slices.EqualFunc(a, b, slices.Equal) {
		t.Errorf("%d and %d keys, want the same one", len(a), len(b))
	}
}
