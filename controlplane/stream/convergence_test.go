package stream

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// nobody is a hub without streams, whose registry a test fills by hand.
func nobody(change func(*Config)) *Hub {
	var cfg Config
	if change != nil {
		change(&cfg)
	}
	return NewHub(cfg)
}

func (h *Hub) join(name string, v config.Version) *node {
	n := &node{hub: h, name: name, woken: make(chan struct{}, 1), ended: make(chan struct{})}
	h.registry.connected(n, &controlv1.Hello{}, v)
	return n
}

func names(behind []*controlv1.NodeStatus) (all []string) {
	for _, s := range behind {
		all = append(all, s.GetName())
	}
	return all
}

// wantConvergence compares counts and the names of those behind.
func wantConvergence(t *testing.T, when string, programmed, total int, behind []*controlv1.NodeStatus, want string) {
	t.Helper()
	if got := fmt.Sprint(programmed, total, names(behind)); got != want {
		t.Errorf("%s: %s, want %s", when, got, want)
	}
}

// A node that loses its stream before it has the new version goes on serving the
// old one: it counts until it has had time to come back.
func TestNodeThatJustWentIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := nobody(nil)
		h.join("a", at(2))
		b, c := h.join("b", at(1)), h.join("c", at(2))
		h.registry.disconnected(b)
		h.registry.disconnected(c) // which runs it
		programmed, total, behind := h.Convergence(at(2))
		wantConvergence(t, "at once", programmed, total, behind, "1 2 [b]")
		began := time.Now()
		programmed, total, behind = h.Await(t.Context(), at(2))
		wantConvergence(t, "in the end", programmed, total, behind, "1 1 []")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("given up after %v", took)
		}
		// One that comes back in time is waited for, and no longer.
		b = h.join("b", at(1))
		h.registry.disconnected(b)
		time.AfterFunc(3*time.Second, func() { h.join("b", at(2)) })
		began = time.Now()
		programmed, total, behind = h.Await(t.Context(), at(2))
		wantConvergence(t, "back", programmed, total, behind, "2 2 []")
		if took := time.Since(began); took != 3*time.Second {
			t.Errorf("waited %v", took)
		}
	})
}

func TestReplicaThatJustStartedKnowsThatItKnowsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := nobody(func(c *Config) { c.Expected = func() []string { return []string{"b", "a"} } })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		programmed, total, behind := h.Await(ctx, at(2))
		wantConvergence(t, "young", programmed, total, behind, "0 2 [a b]")
		h.join("a", at(2))
		time.AfterFunc(time.Second, func() { h.join("b", at(2)) })
		programmed, total, behind = h.Await(t.Context(), at(2))
		wantConvergence(t, "all there", programmed, total, behind, "2 2 []")

		h = nobody(func(c *Config) { c.Expected = func() []string { return []string{"away"} } })
		began := time.Now()
		programmed, total, behind = h.Await(t.Context(), at(2))
		wantConvergence(t, "nobody came", programmed, total, behind, "0 0 []")
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("waited %v", took)
		}
	})
}

// A replica that comes back at another address is another peer: the end of the old
// one takes nothing from the new one. The nodes of one that is gone for good are
// still running.
func TestPeersAreKnownByNameAndAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := nobody(nil)
		status := func(name string, connected bool) *controlv1.NodeStatus {
			return &controlv1.NodeStatus{Name: name, Version: at(1).Proto(), Connected: connected, Replica: "cp-2"}
		}
		before, after := Peer{"cp-2", "a:1"}, Peer{"cp-2", "b:1"}
		h.registry.setPeer(before, []*controlv1.NodeStatus{status("n", true), status("m", true)})
		h.registry.setPeer(after, []*controlv1.NodeStatus{status("n", true)})
		h.registry.dropPeer(before)
		programmed, total, behind := h.Convergence(at(1))
		wantConvergence(t, "moved", programmed, total, behind, "1 1 []")
		programmed, total, behind = h.Convergence(at(2))
		wantConvergence(t, "moved", programmed, total, behind, "0 2 [m n]")
		h.registry.dropPeer(after)
		programmed, total, behind = h.Convergence(at(2))
		wantConvergence(t, "gone", programmed, total, behind, "0 2 [m n]")
		time.Sleep(10 * time.Second)
		programmed, total, behind = h.Convergence(at(2))
		wantConvergence(t, "later", programmed, total, behind, "0 0 []")
		if n := len(h.Nodes()); n != 2 {
			t.Errorf("%d nodes listed", n)
		}
		h.registry.forget(time.Now())
		if n := h.Nodes(); len(n) != 0 {
			t.Errorf("not forgotten: %v", n)
		}
	})
}

// Of two streams of a node the hub sends to the one that the registry listens to.
func TestTheNewerStreamIsTheNewerForAll(t *testing.T) {
	h := nobody(nil)
	for range 2000 {
		var both sync.WaitGroup
		for range 2 {
			both.Go(func() {
				n := &node{hub: h, name: "n", woken: make(chan struct{}, 1), ended: make(chan struct{})}
				if err := h.enter(n, &controlv1.Hello{}); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		if h.nodes["n"] != h.registry.own["n"].stream {
			t.Fatal("the hub and the registry hold different streams for the newer one")
		}
	}
}

// The writer of a stream that has ended may be a step behind.
func TestGoneNodeTakesNoSlot(t *testing.T) {
	h := nobody(func(c *Config) {
		c.MaxFull = 1
		c.Full = func(context.Context) (State, error) { return State{}, context.Canceled }
	})
	late, next := h.join("late", at(1)), h.join("next", at(1))
	h.leave(late)
	if h.slots.acquire(late) || !h.slots.acquire(next) {
		t.Error("a node that is gone took the only slot")
	}
	if h.slots.acquire(late) || len(h.slots.queue) != 0 {
		t.Error("a node that is gone waits for a slot")
	}
	if h.takeFull(late, func(config.Version) bool { return true }) != nil || len(h.full.waiting) != 0 {
		t.Error("a node that is gone waits for a full state")
	}
}

// The real thing: a peer is dropped and set again under its name.
func TestPeerMoves(t *testing.T) {
	p, q := newPlane(t, nil), newPlane(t, func(c *Config) { c.Replica = "cp-2" })
	p.start(t, 1)
	q.start(t, 1)
	c := q.node(t, "n", &controlv1.Hello{})
	c.applied(c.whole())
	q.await(t, at(1), 1)
	peers := NewPeers(PeersConfig{Hub: p.Hub, Dial: func(Peer) (*grpc.ClientConn, error) { return q.dial(t), nil }})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = peers.Run(ctx) })
	defer running.Wait()
	defer cancel()
	for _, address := range []string{"a:1", "b:1", "a:1"} {
		peers.Set([]Peer{{"cp-2", address}})
		for {
			changed := p.Changed()
			p.registry.mu.Lock()
			_, there := p.registry.peers[Peer{"cp-2", address}]
			settled := there && len(p.registry.peers) == 1
			p.registry.mu.Unlock()
			if settled {
				break
			}
			select {
			case <-changed:
			case <-time.After(patience):
				t.Fatalf("never at %s", address)
			}
		}
		p.await(t, at(1), 1)
	}
}
