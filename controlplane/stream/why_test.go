package stream

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// answering serves a node's questions: it knows the one request.
func (c *client) answering(running *sync.WaitGroup, knows string) {
	running.Go(func() {
		for {
			m, err := c.stream.Recv()
			if err != nil {
				return
			}
			if u := m.GetUpdate(); u.GetLast() {
				_ = c.stream.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Report{Report: &controlv1.Report{
					Version: u.GetVersion(), Running: u.GetVersion(), Digest: u.GetDigest(),
				}}})
			}
			if a := m.GetAsk(); a != nil {
				d := &controlv1.Decision{Ask: a.GetId(), Found: a.GetRequestId() == knows}
				if d.Found {
					d.Record = &controlv1.DecisionRecord{RequestId: knows, Status: 403, Reason: "scope_missing"}
				}
				_ = c.stream.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Decision{Decision: d}})
			}
		}
	})
}

func TestWhyAcrossNodesAndReplicas(t *testing.T) {
	p, q := newPlane(t, nil), newPlane(t, func(c *Config) { c.Replica = "cp-2" })
	p.start(t, 1)
	q.start(t, 1)
	var running sync.WaitGroup
	defer running.Wait()
	var clients []*client
	for i, plane := range []*plane{p, p, q} {
		c := plane.node(t, fmt.Sprint("n", i), &controlv1.Hello{})
		c.answering(&running, fmt.Sprint("request-", i))
		clients = append(clients, c)
	}
	defer func() {
		for _, c := range clients {
			c.cancel()
		}
	}()
	p.await(t, at(1), 2)
	q.await(t, at(1), 1)

	peers := NewPeers(PeersConfig{Hub: p.Hub, Dial: func(Peer) (*grpc.ClientConn, error) { return q.dial(t), nil }, Grace: 100 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	running.Go(func() { _ = peers.Run(ctx) })
	peers.Set([]Peer{{Name: "cp-2", Address: "q"}})
	p.await(t, at(1), 3)
	if n := p.Nodes(); len(n) != 3 || n[2].GetReplica() != "cp-2" {
		t.Fatalf("nodes: %v", n)
	}
	for i := range 3 {
		r, err := peers.Why(ctx, fmt.Sprint("request-", i))
		if err != nil || r.GetReason() != "scope_missing" {
			t.Errorf("request-%d: %v, %v", i, r, err)
		}
	}
	if r, err := peers.Why(ctx, "request-9"); r != nil || err != nil {
		t.Errorf("unknown request: %v, %v", r, err)
	}
	// A node changes its replica: it is listed once, where it is now.
	c := p.node(t, "n2", &controlv1.Hello{})
	c.answering(&running, "")
	clients = append(clients, c)
	p.await(t, at(1), 3)
	// The peer dies: its nodes count as gone after a while, and come back with it.
	q.server.Stop()
	p.await(t, at(1), 3)
	peers.Set(nil)
	p.await(t, at(1), 3)
}

func TestDeadPeersNodesAreNotLive(t *testing.T) {
	p, q := newPlane(t, nil), newPlane(t, func(c *Config) { c.Replica = "cp-2" })
	p.start(t, 1)
	q.start(t, 1)
	var running sync.WaitGroup
	defer running.Wait()
	c := q.node(t, "n", &controlv1.Hello{})
	defer c.cancel()
	c.answering(&running, "")
	peers := NewPeers(PeersConfig{Hub: p.Hub, Dial: func(Peer) (*grpc.ClientConn, error) { return q.dial(t), nil }, Grace: 50 * time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	running.Go(func() { _ = peers.Run(ctx) })
	peers.Set([]Peer{{Name: "cp-2"}})
	p.await(t, at(1), 1)
	q.server.Stop()
	p.await(t, at(1), 0)
	if n := p.Nodes(); len(n) != 1 || n[0].GetConnected() {
		t.Errorf("nodes of a dead peer: %v", n)
	}
}

func TestWhyEndsWithTheNodesThatLeave(t *testing.T) {
	p := newPlane(t, nil)
	p.start(t, 1)
	c := p.node(t, "n1", &controlv1.Hello{})
	c.applied(c.whole())
	p.await(t, at(1), 1)
	done := make(chan error, 1)
	go func() {
		_, err := p.WhyHere(t.Context(), "r")
		done <- err
	}()
	c.await(func(m *controlv1.FollowResponse) bool { return m.GetAsk() != nil })
	c.cancel()
	if err := <-done; err != nil {
		t.Errorf("after the only node left: %v", err)
	}
	// One that keeps silent holds nobody longer than ctx.
	c = p.node(t, "n2", &controlv1.Hello{})
	c.applied(c.whole())
	p.await(t, at(1), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.WhyHere(ctx, "r"); err == nil {
		t.Error("a node did not answer and nobody says so")
	}
}

func TestKeyMissingIsForwarded(t *testing.T) {
	got := make(chan string, 1)
	p := newPlane(t, func(c *Config) {
		c.KeyMissing = func(node string, m *controlv1.KeyMissing) { got <- node + " " + m.GetWorkspace() + "/" + m.GetIssuer() }
	})
	c := p.node(t, "n1", &controlv1.Hello{})
	c.send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_KeyMissing{KeyMissing: &controlv1.KeyMissing{Workspace: "shop", Issuer: "local"}}})
	if s := <-got; s != "n1 shop/local" {
		t.Error(s)
	}
}
