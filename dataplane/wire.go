package dataplane

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/revocation"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// wire is the node's place on the bus: the fast path of the deny lane and the
// exchange of totals. Nothing depends on it: what it does not bring, the stream
// does, and limits go by their partition policy.
type wire struct {
	node *Node
	// connect opens a bus; missed asks the stream for what the bus did not bring.
	connect func(context.Context, bus.Config) (bus.Bus, error)
	missed  func()
	// urls are those of bus. Only Run uses them.
	urls []string
	// bus is nil until the control plane has told where it is.
	bus atomic.Pointer[bus.Bus]
	// welcomed is ready when newest holds another Welcome.
	welcomed chan struct{}

	mu     sync.Mutex
	newest *controlv1.Welcome
}

func newWire(n *Node) *wire {
	return &wire{node: n, connect: bus.Connect, missed: func() { n.follower.Missed() }, welcomed: make(chan struct{}, 1)}
}

// welcome hears where the bus is and what its keys are. It does not block.
func (w *wire) welcome(m *controlv1.Welcome) {
	w.mu.Lock()
	w.newest = m
	w.mu.Unlock()
	select {
	case w.welcomed <- struct{}{}:
	default:
	}
}

// publish sends to all others, when there is a bus.
func (w *wire) publish(s bus.Subject, m proto.Message) error {
	b := w.bus.Load()
	if b == nil {
		return bus.ErrDisconnected
	}
	return (*b).Publish(s, m)
}

// ask asks the owner of a limit's key.
func (w *wire) ask(ctx context.Context, node string, req *busv1.Ask) (*busv1.Answer, error) {
	b := w.bus.Load()
	if b == nil {
		return nil, bus.ErrDisconnected
	}
	resp := &busv1.Answer{}
	return resp, (*b).Ask(ctx, bus.AskOf(node), req, resp)
}

// Run connects once the control plane has said where, again when it says that the
// bus is elsewhere, and keeps the keys current, until ctx ends.
func (w *wire) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			if b := w.bus.Swap(nil); b != nil {
				return (*b).Close()
			}
			return nil
		case <-w.welcomed:
		}
		w.mu.Lock()
		m := w.newest
		w.mu.Unlock()
		if err := w.take(ctx, m); err != nil && ctx.Err() == nil {
			w.node.cfg.Log.Error("the bus cannot be used; revocations come by the stream, limits are local", "error", err)
		}
	}
}

func (w *wire) take(ctx context.Context, m *controlv1.Welcome) error {
	cfg := bus.Config{Name: w.node.cfg.Name, Boot: w.node.boot, Keys: m.BusKeys, Log: w.node.cfg.Log}
	switch {
	case w.node.cfg.Bus.Server != nil || len(w.node.cfg.Bus.URLs) > 0:
		cfg.NATS = w.node.cfg.Bus
	case len(m.BusUrls) > 0:
		cfg.NATS = bus.NATSConfig{URLs: m.BusUrls, TLS: identity.ClientPeers(w.node.live)}
	}
	before := w.bus.Load()
	switch {
	case before != nil && (cfg.NATS.URLs == nil || slices.Equal(cfg.NATS.URLs, w.urls)):
		return (*before).SetKeys(m.BusKeys)
	case cfg.NATS.Server == nil && cfg.NATS.URLs == nil:
		return nil
	}
	b, err := w.connect(ctx, cfg)
	if err != nil {
		return err
	}
	if err := w.subscribe(b); err != nil {
		return errors.Join(err, b.Close())
	}
	w.urls = cfg.NATS.URLs
	w.bus.Store(&b)
	if before == nil {
		return nil
	}
	return (*before).Close()
}

func (w *wire) subscribe(b bus.Bus) error {
	n := w.node
	if _, err := b.Subscribe(bus.Revoked, func(_ bus.Sender, m proto.Message) { w.revoked(m.(*busv1.Revoked)) }); err != nil {
		return err
	}
	if _, err := b.Subscribe(bus.Beat, func(_ bus.Sender, m proto.Message) { w.beat(m.(*busv1.Beat)) }); err != nil {
		return err
	}
	if _, err := b.Subscribe(bus.Spent, func(from bus.Sender, m proto.Message) {
		n.limiter.Receive(from.Name, from.Boot, m.(*busv1.Spent), time.Now())
	}); err != nil {
		return err
	}
	_, err := b.Answer(bus.AskOf(n.cfg.Name), func(req proto.Message) proto.Message {
		if !n.kin.charged.Load() {
			return nil // another process of this node answers
		}
		// A nil *Answer in a proto.Message would not be nil.
		if answer := n.limiter.Answer(req.(*busv1.Ask), time.Now()); answer != nil {
			return answer
		}
		return nil
	})
	return err
}

// revoked takes revocations from the fast path. What is held is certain only
// without a gap; with one the stream is asked.
func (w *wire) revoked(m *busv1.Revoked) {
	n := w.node
	entries := make([]revocation.Entry, 0, len(m.Entries))
	for _, r := range m.Entries {
		entry, err := revocation.EntryOf(r)
		if err != nil {
			n.cfg.Log.Error("a revocation on the bus cannot be used", "revision", m.Version.GetRevision(), "error", err)
			continue
		}
		entries = append(entries, entry)
	}
	// Denying is always safe: also what comes from an older epoch is added.
	n.revocations.Add(entries...)
	whole := len(entries) == len(m.Entries)
	if !whole || !n.freshness.Follows(m.Version.GetEpoch(), m.Previous, m.Version.GetRevision(), time.Now()) {
		w.missed()
	}
}

// beat notes a control plane's proof of what is current.
func (w *wire) beat(m *busv1.Beat) {
	b := revocation.Beat{Epoch: m.Head.GetEpoch(), Head: m.Revocations, Progress: m.Progress, Age: m.Age.AsDuration()}
	if w.node.freshness.Heard(b, time.Now()) {
		w.missed()
	}
}
