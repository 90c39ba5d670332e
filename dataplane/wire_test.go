package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/dataplane/limit"
	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/revocation"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
)

func busKey(id uint32) *controlv1.BusKey {
	key := make([]byte, 32)
	key[0] = byte(id)
	return &controlv1.BusKey{Id: id, Key: key}
}

// wired is a node's wire on a bus in memory, and a control plane on the same bus.
type wired struct {
	testing.TB
	*wire
	broker *bus.Memory
	plane  bus.Bus
	asked  int // for what was missed
	opened []string
	stop   context.CancelFunc
}

// onWire runs test under a fake clock.
func onWire(t *testing.T, test func(*wired)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := &Node{
			cfg: Config{Name: "n1", Log: slog.New(slog.DiscardHandler)}, boot: 1,
			revocations: revocation.NewSet(), freshness: revocation.NewFreshness(),
			limiter: limit.New(limit.Config{Node: "n1", Boot: 1, Start: time.Now()}),
		}
		// Where the bus is does not matter in memory; that it is named does.
		n.cfg.Bus.URLs = nil
		w := &wired{TB: t, wire: newWire(n), broker: bus.NewMemory()}
		n.wire = w.wire
		w.missed = func() { w.asked++ }
		w.connect = func(_ context.Context, c bus.Config) (bus.Bus, error) {
			w.opened = append(w.opened, c.NATS.URLs...)
			return w.broker.Open(c)
		}
		w.plane = w.open("plane", busKey(1))
		ctx, stop := context.WithCancel(context.Background())
		w.stop = stop
		var running sync.WaitGroup
		running.Go(func() {
			if err := w.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		test(w)
		stop()
		running.Wait()
		if err := w.plane.Close(); err != nil {
			t.Error(err)
		}
	})
}

func (w *wired) open(name string, keys ...*controlv1.BusKey) bus.Bus {
	w.Helper()
	b, err := w.broker.Open(bus.Config{Name: name, Keys: keys})
	if err != nil {
		w.Fatal(err)
	}
	return b
}

func (w *wired) greet(url string, keys ...*controlv1.BusKey) {
	m := &controlv1.Welcome{BusKeys: keys}
	if url != "" {
		m.BusUrls = []string{url}
	}
	w.welcome(m)
	synctest.Wait()
}

func (w *wired) send(s bus.Subject, m proto.Message) {
	w.Helper()
	if err := w.plane.Publish(s, m); err != nil {
		w.Fatal(err)
	}
	synctest.Wait()
}

func revoked(epoch uint64, previous, revision int64, jtis ...string) *busv1.Revoked {
	m := &busv1.Revoked{Version: &controlv1.Version{Epoch: epoch, Revision: revision}, Previous: previous}
	for _, jti := range jtis {
		key := revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_JTI, "", jti)
		m.Entries = append(m.Entries, &controlv1.Revocation{Kind: controlv1.RevocationKind_REVOCATION_KIND_JTI, Key: key[:], Revision: revision})
	}
	return m
}

func beat(epoch uint64, head, progress int64) *busv1.Beat {
	return &busv1.Beat{Head: &controlv1.Version{Epoch: epoch, Revision: progress}, Revocations: head, Progress: progress}
}

func (w *wired) denies(jti string) bool {
	_, denied := w.node.revocations.Revoked(&revocation.Subject{JTI: jti, IssuedAt: 1})
	return denied
}

func (w *wired) want(held int64, asked int) {
	w.Helper()
	if _, got := w.node.freshness.Held(); got != held || w.asked != asked {
		w.Errorf("held up to %d, asked %d times; want %d and %d", got, w.asked, held, asked)
	}
}

func TestABusThatComesLate(t *testing.T) {
	onWire(t, func(w *wired) {
		if err := w.publish(bus.Spent, &busv1.Spent{}); !errors.Is(err, bus.ErrDisconnected) {
			t.Error(err)
		}
		if _, err := w.ask(context.Background(), "n2", &busv1.Ask{}); !errors.Is(err, bus.ErrDisconnected) {
			t.Error(err)
		}
		w.greet("", busKey(1)) // a cluster without a bus
		w.send(bus.Beat, beat(1, 0, 1))
		if w.bus.Load() != nil || w.node.freshness.Ready() {
			t.Error("a bus out of nothing")
		}
		heard := make(chan string, 1)
		if _, err := w.plane.Subscribe(bus.Spent, func(from bus.Sender, _ proto.Message) { heard <- from.Name }); err != nil {
			t.Fatal(err)
		}
		w.greet("nats://a:1", busKey(1))
		w.send(bus.Beat, beat(1, 0, 1))
		if !w.node.freshness.Ready() {
			t.Error("no heartbeat was heard")
		}
		if err := w.publish(bus.Spent, &busv1.Spent{}); err != nil || <-heard != "n1" {
			t.Error(err)
		}
		w.stop()
		synctest.Wait()
		if err := w.publish(bus.Spent, &busv1.Spent{}); !errors.Is(err, bus.ErrDisconnected) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestGapsAreAskedFor(t *testing.T) {
	onWire(t, func(w *wired) {
		w.greet("nats://a:1", busKey(1))
		w.send(bus.Revoked, revoked(1, 0, 10, "a"))
		w.want(10, 0)
		w.send(bus.Revoked, revoked(1, 10, 12, "b"))
		w.send(bus.Revoked, revoked(1, 10, 12, "b")) // again
		w.want(12, 0)
		w.send(bus.Revoked, revoked(1, 15, 20, "d"))
		w.want(12, 1)
		if !w.denies("a") || !w.denies("b") || !w.denies("d") {
			t.Error("what is known is not denied")
		}
		w.send(bus.Beat, beat(1, 20, 20))
		w.want(12, 2)
		w.send(bus.Revoked, revoked(1, 12, 15, "c"))
		w.send(bus.Revoked, revoked(1, 15, 20, "d"))
		w.want(20, 2)
		w.send(bus.Beat, beat(1, 20, 20))
		w.want(20, 2)
		// One that cannot be read is a gap of its own; the others count.
		broken := revoked(1, 20, 30, "e", "f")
		broken.Entries[0].Key = nil
		w.send(bus.Revoked, broken)
		w.want(20, 3)
		if w.denies("e") || !w.denies("f") {
			t.Error("the entry beside a broken one")
		}
	})
}

// A heartbeat on the bus proves no more than what is behind it.
func TestTheProofsAgeCounts(t *testing.T) {
	onWire(t, func(w *wired) {
		w.greet("nats://a:1", busKey(1))
		m := beat(1, 0, 5)
		m.Age = durationpb.New(900 * time.Millisecond)
		w.send(bus.Beat, m)
		if got := w.node.freshness.Staleness(time.Now()); got != 900*time.Millisecond {
			t.Errorf("staleness %v", got)
		}
	})
}

func TestEpochs(t *testing.T) {
	onWire(t, func(w *wired) {
		w.greet("nats://a:1", busKey(1))
		w.send(bus.Beat, beat(2, 0, 5))
		w.send(bus.Revoked, revoked(2, 0, 5, "a"))
		w.want(5, 0)
		time.Sleep(500 * time.Millisecond)
		before := w.node.freshness.Staleness(time.Now())
		w.send(bus.Beat, beat(1, 5, 1000))
		w.send(bus.Beat, beat(1, 900, 1000))
		if got := w.node.freshness.Staleness(time.Now()); got < before {
			t.Errorf("a heartbeat of an older epoch counts: %v", got)
		}
		w.send(bus.Revoked, revoked(1, 5, 900, "old"))
		w.want(5, 0)
		if !w.denies("old") {
			t.Error("an entry of an older epoch is lost")
		}
		w.send(bus.Revoked, revoked(3, 0, 2, "new"))
		w.want(2, 0)
		if !w.denies("a") || !w.denies("new") {
			t.Error("a new epoch un-revokes")
		}
	})
}

func TestKeysRotate(t *testing.T) {
	onWire(t, func(w *wired) {
		w.greet("nats://a:1", busKey(1))
		old := w.open("old", busKey(1))
		defer old.Close()
		w.greet("nats://a:1", busKey(2), busKey(1))
		if err := w.plane.SetKeys([]*controlv1.BusKey{busKey(2), busKey(1)}); err != nil {
			t.Fatal(err)
		}
		w.send(bus.Revoked, revoked(1, 0, 1, "a"))
		time.Sleep(time.Minute)
		w.send(bus.Revoked, revoked(1, 1, 2, "b"))
		w.want(2, 0)
		w.greet("nats://a:1", busKey(2))
		if err := old.Publish(bus.Revoked, revoked(1, 2, 3, "c")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.want(2, 0)
		if stats := (*w.bus.Load()).Stats(); stats.UnknownKey != 1 || len(w.opened) != 1 {
			t.Errorf("%+v, opened %v", stats, w.opened)
		}
		w.greet("nats://a:1", &controlv1.BusKey{Id: 3}) // unusable: the ones before stay
		w.send(bus.Revoked, revoked(1, 2, 3, "c"))
		w.want(3, 0)
	})
}

// Nobody who can reach the broker can make the node revoke, or believe that it is
// current.
func TestForgedMessagesAreIgnored(t *testing.T) {
	onWire(t, func(w *wired) {
		w.greet("nats://a:1", busKey(1))
		var seen []bus.Raw
		w.broker.Tap(func(raw bus.Raw) {
			seen = append(seen, bus.Raw{Subject: raw.Subject, Data: append([]byte(nil), raw.Data...)})
		})
		w.send(bus.Revoked, revoked(1, 0, 1, "a"))
		w.send(bus.Beat, beat(1, 1, 1))
		recorded := seen
		w.node.freshness.Holds(1, 1, time.Now())
		time.Sleep(500 * time.Millisecond)
		stale := w.node.freshness.Staleness(time.Now())
		for _, raw := range recorded {
			w.broker.Inject(raw) // replayed
			for i := range raw.Data {
				forged := bus.Raw{Subject: raw.Subject, Data: append([]byte(nil), raw.Data...)}
				forged.Data[i] ^= 1
				w.broker.Inject(forged)
			}
		}
		stranger := w.open("plane", &controlv1.BusKey{Id: 1, Key: make([]byte, 64)})
		defer stranger.Close()
		for _, m := range []struct {
			s bus.Subject
			m proto.Message
		}{{bus.Revoked, revoked(1, 1, 2, "forged")}, {bus.Beat, beat(9, 1, 9)}} {
			if err := stranger.Publish(m.s, m.m); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		w.want(1, 0)
		if w.denies("forged") || w.node.revocations.Len() != 1 || w.node.freshness.Staleness(time.Now()) < stale {
			t.Errorf("%d revocations", w.node.revocations.Len())
		}
		stats := (*w.bus.Load()).Stats()
		if stats.Forged < 2 || stats.Replayed < 2 {
			t.Errorf("%+v", stats)
		}
		w.send(bus.Revoked, revoked(1, 1, 2, "b"))
		w.want(2, 0)
	})
}

// A control plane that comes back elsewhere takes its bus along.
func TestTheBusMoves(t *testing.T) {
	onWire(t, func(w *wired) {
		w.greet("nats://a:1", busKey(1))
		w.greet("nats://a:1", busKey(1))
		first := *w.bus.Load()
		w.greet("nats://b:1", busKey(1))
		if second := *w.bus.Load(); len(w.opened) != 2 || w.opened[1] != "nats://b:1" || second == first {
			t.Fatalf("opened %v", w.opened)
		}
		if err := first.Publish(bus.Spent, &busv1.Spent{}); !errors.Is(err, bus.ErrClosed) {
			t.Errorf("the bus before is open: %v", err)
		}
		w.send(bus.Revoked, revoked(1, 0, 1, "a"))
		w.want(1, 0)
		// No answer about where it is does not take it away.
		w.greet("", busKey(1))
		w.send(bus.Revoked, revoked(1, 1, 2, "b"))
		w.want(2, 0)
	})
}
