// Package bustest says what every bus must do, as tests. The memory twin is
// trusted because it passes the same ones as NATS. Only tests import it.
package bustest

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/bus"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Network is a broker as a test needs it.
type Network interface {
	// Open connects a member and returns when it is connected. The test closes it.
	Open(t *testing.T, c bus.Config) bus.Bus
	// Tap calls see with every message from now on.
	Tap(t *testing.T, see func(bus.Raw))
	// Inject delivers a message to all members, as an attacker at the broker could.
	Inject(t *testing.T, raw bus.Raw)
}

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// Run tests a bus. Open makes a new broker for each test and closes it at its
// end.
func Run(t *testing.T, open func(t *testing.T) Network) {
	for name, test := range map[string]func(*testing.T, Network){
		"Deliver":          deliver,
		"NoEcho":           noEcho,
		"Order":            order,
		"Concurrent":       concurrent,
		"ClustersApart":    clustersApart,
		"Cancel":           cancelSubscription,
		"Close":            closeBus,
		"Misuse":           misuse,
		"SlowHandler":      slowHandler,
		"Ask":              ask,
		"AskNobody":        askNobody,
		"AskWrongAnswerer": askWrongAnswerer,
		"NoKey":            noKey,
		"Forged":           forged,
		"Tampered":         tampered,
		"Replayed":         replayed,
		"ReplayedAnswer":   replayedAnswer,
		"Restart":          restart,
		"Rotate":           rotate,
		"Garbage":          garbage,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

// Key makes a key of the id, always the same.
func Key(id uint32) *controlv1.BusKey {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(id) ^ byte(i)
	}
	return &controlv1.BusKey{Id: id, Key: key}
}

// join opens a member with key 1.
func join(t *testing.T, n Network, name string, boot uint64) bus.Bus {
	t.Helper()
	return joinWith(t, n, bus.Config{Name: name, Boot: boot, Keys: []*controlv1.BusKey{Key(1)}})
}

func joinWith(t *testing.T, n Network, c bus.Config) bus.Bus {
	t.Helper()
	b := n.Open(t, c)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close %s: %v", c.Name, err)
		}
	})
	return b
}

// message is what a subscription received.
type message struct {
	from bus.Sender
	msg  proto.Message
}

func subscribe(t *testing.T, b bus.Bus, s bus.Subject) <-chan message {
	t.Helper()
	got := make(chan message, 20000)
	if _, err := b.Subscribe(s, func(from bus.Sender, m proto.Message) { got <- message{from, m} }); err != nil {
		t.Fatalf("subscribe to %s: %v", s, err)
	}
	return got
}

func publish(t *testing.T, b bus.Bus, s bus.Subject, m proto.Message) {
	t.Helper()
	if err := b.Publish(s, m); err != nil {
		t.Fatalf("publish on %s: %v", s, err)
	}
}

func beat(n int64) *busv1.Beat { return &busv1.Beat{Progress: n} }

func receive(t *testing.T, got <-chan message) message {
	t.Helper()
	select {
	case m := <-got:
		return m
	case <-time.After(patience):
		t.Fatal("nothing arrived")
		return message{}
	}
}

func wantBeat(t *testing.T, got <-chan message, from string, n int64) {
	t.Helper()
	m := receive(t, got)
	if b, ok := m.msg.(*busv1.Beat); !ok || b.Progress != n || m.from.Name != from {
		t.Fatalf("received %v from %+v, want beat %d from %s", m.msg, m.from, n, from)
	}
}

func wantNothing(t *testing.T, got <-chan message) {
	t.Helper()
	select {
	case m := <-got:
		t.Fatalf("received %v from %+v", m.msg, m.from)
	default:
	}
}

// eventually waits until a count is right; counts have no event to wait for.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	end := time.After(patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-end:
			t.Fatalf("still not: %s", what)
		case <-tick.C:
		}
	}
}
