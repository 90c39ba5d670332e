package dataplane

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/follow"
	"portcullis.dev/portcullis/dataplane/http1"
	"portcullis.dev/portcullis/dataplane/http2"
	"portcullis.dev/portcullis/dataplane/http3"
	"portcullis.dev/portcullis/dataplane/listen"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// open makes the front ends and puts them behind the sockets.
func (n *Node) open() (err error) {
	front := admission.Config{Handle: n.handle, Refuse: n.gateway.Refuse, Settings: n.frontSettings, Log: n.cfg.Log}
	n.front = http1.NewServer(front)
	two := http2.NewServer(front)
	three := http3.New(front, n.cfg.Drain)
	sockets := map[string]net.Listener{}
	maps.Copy(sockets, n.cfg.Listeners)
	if n.cfg.Listener != nil {
		if sockets[listen.HTTP] != nil {
			return fmt.Errorf("two listeners with the name %q", listen.HTTP)
		}
		sockets[listen.HTTP] = n.cfg.Listener
	}
	n.listeners, err = listen.New(listen.Config{HTTP1: n.front, HTTP2: two, HTTP3: three, Packets: n.cfg.Packets, Refuse: n.overload.Refuses, Grace: n.cfg.Grace, Drain: n.cfg.Drain, Log: n.cfg.Log}, sockets)
	return err
}

// handle answers an exchange: that of an ACME authority before anybody is asked
// who it is, since it has nothing to prove itself with.
func (n *Node) handle(e *exchange.Exchange) *exchange.Response {
	if answer := n.listeners.Challenge(e); answer != nil {
		return answer
	}
	return n.gateway.Handle(e)
}

// applier makes a version live: what the gateway compiles and what the sockets
// speak, both or neither.
type applier struct{ node *Node }

// Apply implements follow.Applier.
func (a applier) Apply(ctx context.Context, next follow.Next) error {
	n := a.node
	before := n.listeners.Live()
	if before != nil && !next.Affected.All && !next.Affected.Gateway && len(next.Affected.Certificates) == 0 {
		return n.gateway.Apply(ctx, next)
	}
	settings, err := n.listeners.Compile(next.Checked, before)
	if err != nil {
		return err
	}
	if err := n.gateway.Apply(ctx, next); err != nil {
		return err
	}
	n.listeners.Apply(settings)
	return nil
}

// welcome hears what the control plane says to all nodes. It does not block.
func (n *Node) welcome(m *controlv1.Welcome) {
	n.wire.welcome(m)
	if err := n.listeners.SetTicketKeys(m.GetTicketKeys()); err != nil {
		n.cfg.Log.Error("session tickets are not shared with other nodes", "error", err)
	}
}

// Sockets returns duplicates of the sockets that serve clients, by name, for a
// process that takes over. The caller closes them.
func (n *Node) Sockets() (map[string]*os.File, error) { return n.listeners.Files() }

// Packets returns what a process that takes over needs for HTTP/3 beside the
// sockets, by name. The caller closes it.
func (n *Node) Packets() (map[string]*os.File, error) { return n.listeners.Packets() }

// LimitsForSuccessor returns what a process that takes over gets the limits'
// buckets from. The caller closes it.
func (n *Node) LimitsForSuccessor() (*os.File, error) { return n.kin.offer() }

// HandOver ends Run because another process serves the same sockets from now on:
// this one accepts no more, and lets its connections go with their next answers.
func (n *Node) HandOver() {
	n.draining.Store(true)
	// The probes of two processes on one socket would contradict each other.
	n.closeMetrics()
	n.kin.yield()
	n.listeners.HandOver()
}

// KeepOff stops the node from writing to its data directory, which another process
// is about to read, or lets it again.
func (n *Node) KeepOff(on bool) { n.follower.Hold(on) }

// listenerConditions returns how the sockets are.
func (n *Node) listenerConditions() []*controlv1.ListenerCondition {
	return n.listeners.Conditions(time.Now())
}
