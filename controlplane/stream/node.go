package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// node is one stream. Three goroutines serve it: the handler, which waits for
// the end; a reader; and a writer, the only one that a slow node blocks.
type node struct {
	hub    *Hub
	stream grpc.BidiStreamingServer[controlv1.FollowRequest, controlv1.FollowResponse]
	name   string
	woken  chan struct{} // cap 1
	// beat is the newest heartbeat not yet sent.
	beat atomic.Pointer[beatFrame]
	// sending is when the writer began the Send it is in, Unix nanoseconds.
	sending atomic.Int64

	endOnce sync.Once
	ended   chan struct{}
	err     error

	// gone says that the stream has given back what it held.
	gone atomic.Bool

	// Shared by reader and writer.
	mu      sync.Mutex
	session Session
	asks    []frame

	// Owned by the writer.
	welcomed *frame
	update   []frame // chunks still to send
	denial   []frame // chunks still to send; ahead of update
	full     bool    // update is a full state
	slot     bool    // has or awaits a slot
}

type beatFrame struct {
	frame
	digest bool
}

// maxAsks bounds the questions that wait for a node; further ones are not asked.
const maxAsks = 64

func (n *node) wake() {
	select {
	case n.woken <- struct{}{}:
	default:
	}
}

// end ends the stream with the first reason that is given.
func (n *node) end(err error) {
	n.endOnce.Do(func() {
		n.err = err
		close(n.ended)
	})
}

// Follow serves one node's stream.
func (h *Hub) Follow(stream grpc.BidiStreamingServer[controlv1.FollowRequest, controlv1.FollowResponse]) error {
	name, err := h.cfg.Node(stream.Context())
	if err != nil {
		return refusal(err)
	}
	n := &node{hub: h, stream: stream, name: name, woken: make(chan struct{}, 1), ended: make(chan struct{})}
	if !h.start(2) {
		return status.Error(codes.Unavailable, "control plane is shutting down")
	}
	hello := make(chan *controlv1.Hello, 1)
	go func() {
		defer h.running.Done()
		n.end(n.read(hello))
	}()
	if err := n.greet(hello); err != nil {
		h.running.Done()
		n.end(err)
		return n.err
	}
	defer h.leave(n)
	go func() {
		defer h.running.Done()
		n.end(n.write())
	}()
	n.watch()
	return n.err
}

// refusal makes a status of an authorisation error.
func refusal(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.PermissionDenied, err.Error())
}

// greet waits for the Hello and enters the node.
func (n *node) greet(hello <-chan *controlv1.Hello) error {
	timeout := time.NewTimer(n.hub.cfg.HelloTimeout)
	defer timeout.Stop()
	select {
	case m := <-hello:
		for _, f := range n.hub.cfg.Requires {
			if !slices.Contains(m.GetFeatures(), f) {
				return status.Errorf(codes.FailedPrecondition, "node lacks the feature %q that the configuration needs", f)
			}
		}
		return n.hub.enter(n, m)
	case <-timeout.C:
		return status.Error(codes.DeadlineExceeded, "no Hello")
	case <-n.ended:
		return n.err
	case <-n.hub.life.Done():
		return status.Error(codes.Unavailable, "control plane is shutting down")
	}
}

// watch waits for the end of the stream, and ends it when the node takes no data
// for too long.
func (n *node) watch() {
	check := time.NewTicker(max(n.hub.cfg.SendTimeout/4, time.Millisecond))
	defer check.Stop()
	for {
		select {
		case <-n.ended:
			return
		case <-n.stream.Context().Done():
			n.end(n.stream.Context().Err())
			return
		case <-n.hub.life.Done():
			n.end(status.Error(codes.Unavailable, "control plane is shutting down"))
			return
		case now := <-check.C:
			since := n.sending.Load()
			if since != 0 && now.Sub(time.Unix(0, since)) > n.hub.cfg.SendTimeout {
				n.end(status.Error(codes.DeadlineExceeded, "node takes no data"))
				return
			}
		}
	}
}

// enter makes n the stream of its node; an older stream of the same name ends,
// since what is left of it is a connection that the node gave up.
func (h *Hub) enter(n *node, m *controlv1.Hello) error {
	n.mu.Lock()
	err := n.session.Hello(m)
	held := n.session.Held()
	n.mu.Unlock()
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	h.nodesMu.Lock()
	defer h.nodesMu.Unlock()
	if old := h.nodes[n.name]; old != nil {
		old.end(status.Error(codes.Aborted, "the node opened another stream"))
	}
	h.nodes[n.name] = n
	// Under the lock, so that of two streams the same is the newer one for both.
	h.registry.connected(n, m, held)
	return nil
}

func (h *Hub) leave(n *node) {
	h.nodesMu.Lock()
	if h.nodes[n.name] == n {
		delete(h.nodes, n.name)
	}
	h.nodesMu.Unlock()
	// First of all: the writer may still be about to ask for a slot or a full state.
	n.gone.Store(true)
	h.slots.release(n)
	h.full.forget(n)
	h.registry.disconnected(n)
	h.asks.left(n)
}

// read takes what the node says until the stream ends.
func (n *node) read(hello chan<- *controlv1.Hello) error {
	greeted := false
	for {
		m, err := n.stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		switch k := m.GetKind().(type) {
		case *controlv1.FollowRequest_Hello:
			if greeted {
				return status.Errorf(codes.InvalidArgument, "%v: a second Hello", ErrProtocol)
			}
			greeted = true
			hello <- k.Hello
			continue
		case *controlv1.FollowRequest_Report:
			err = n.report(k.Report)
		case *controlv1.FollowRequest_Decision:
			n.hub.asks.answer(n, k.Decision.GetAsk(), k.Decision)
		case *controlv1.FollowRequest_KeyMissing:
			if greeted && n.hub.cfg.KeyMissing != nil {
				n.hub.cfg.KeyMissing(n.name, k.KeyMissing)
			}
		case *controlv1.FollowRequest_Condition:
			n.hub.registry.condition(n, k.Condition)
		}
		if err != nil {
			return status.Error(codes.InvalidArgument, err.Error())
		}
	}
}

func (n *node) report(r *controlv1.Report) error {
	n.mu.Lock()
	err := n.session.Report(r)
	held := n.session.Held()
	n.mu.Unlock()
	if err != nil {
		return err
	}
	if len(r.GetProblems()) > 0 {
		n.hub.cfg.Logger.Warn("node rejected a version", "node", n.name, "version", config.VersionOf(r.GetVersion()), "problems", len(r.GetProblems()))
	}
	n.hub.registry.reported(n, r, held)
	n.wake()
	return nil
}

// ask queues a question for the node; false when the node is gone or there is no
// room.
func (n *node) ask(f frame) bool {
	select {
	case <-n.ended:
		return false
	default:
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.asks) >= maxAsks {
		return false
	}
	n.asks = append(n.asks, f)
	n.wake()
	return true
}

// write sends what there is to send until the stream ends.
func (n *node) write() error {
	for {
		f, ok, err := n.next()
		if err != nil {
			return err
		}
		if ok {
			n.sending.Store(time.Now().UnixNano())
			err := n.stream.SendMsg(f.message)
			n.sending.Store(0)
			if err != nil {
				return err
			}
			continue
		}
		select {
		case <-n.woken:
		case <-n.ended:
			return nil
		case <-n.stream.Context().Done():
			return n.stream.Context().Err()
		}
	}
}

// next chooses the next message: what proves currency and what denies go ahead
// of a long update.
func (n *node) next() (frame, bool, error) {
	select {
	case <-n.ended:
		return frame{}, false, context.Canceled
	default:
	}
	if w := n.hub.currentWelcome(); w != nil && w != n.welcomed {
		n.welcomed = w
		return *w, true, nil
	}
	if len(n.denial) == 0 {
		if err := n.plan(); err != nil {
			return frame{}, false, err
		}
	}
	if f, ok := shift(&n.denial); ok {
		return f, true, nil
	}
	if b := n.beat.Swap(nil); b != nil {
		return b.frame, true, nil
	}
	n.mu.Lock()
	f, ok := shift(&n.asks)
	n.mu.Unlock()
	if ok {
		return f, true, nil
	}
	f, ok = shift(&n.update)
	return f, ok, nil
}

func shift(q *[]frame) (frame, bool) {
	if len(*q) == 0 {
		return frame{}, false
	}
	f := (*q)[0]
	*q = (*q)[1:]
	return f, true
}

// plan asks the session for the next step and has it encoded.
func (n *node) plan() error {
	n.full = n.full && len(n.update) > 0
	for {
		v := n.hub.view()
		n.mu.Lock()
		// A copy is asked, so that nothing counts as sent that the hub, which may
		// have moved on, cannot encode.
		s := n.session
		step := s.Next(v)
		var t *transfer
		var err error
		switch step.Kind {
		case Delta:
			t, err = n.hub.delta(step)
		case Revocations:
			t, err = n.hub.denial(step)
		case Full:
			n.slot = true
			if n.hub.slots.acquire(n) {
				t = n.hub.takeFull(n, func(at config.Version) bool {
					probe := s
					return probe.Begin(at)
				})
			}
			if t != nil {
				s.Begin(t.version)
			}
		}
		if err == nil && (t != nil || step.Kind == Idle) {
			n.session = s
		}
		n.mu.Unlock()
		if n.slot && !n.full && step.Kind != Full {
			n.slot = false
			n.hub.slots.release(n)
		}
		switch {
		case errors.Is(err, errMoved):
			continue
		case err != nil:
			return fmt.Errorf("send %v %v: %w", step.Kind, step.To, err)
		case t == nil:
		case step.Kind == Revocations:
			n.denial = t.frames
		default:
			n.update, n.full = t.frames, step.Kind == Full
		}
		return nil
	}
}

// Drop ends the streams of the nodes that keep does not want: they have been taken
// out of the cluster.
func (h *Hub) Drop(keep func(name string) bool) {
	for _, n := range h.connected() {
		if !keep(n.name) {
			n.end(status.Errorf(codes.PermissionDenied, "the node %s has been taken out of the cluster", n.name))
		}
	}
}
