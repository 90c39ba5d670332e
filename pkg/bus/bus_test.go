package bus_test

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/bus/bustest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type memoryNetwork struct{ *bus.Memory }

func (n memoryNetwork) Open(t *testing.T, c bus.Config) bus.Bus {
	t.Helper()
	b, err := n.Memory.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (n memoryNetwork) Tap(_ *testing.T, see func(bus.Raw)) {
	// The suite's taps inject; the broker's must not use the broker.
	n.Memory.Tap(func(raw bus.Raw) { go see(raw) })
}

func (n memoryNetwork) Inject(_ *testing.T, raw bus.Raw) { n.Memory.Inject(raw) }

func TestMemory(t *testing.T) {
	bustest.Run(t, func(*testing.T) bustest.Network { return memoryNetwork{bus.NewMemory()} })
}

// natsNetwork is a server and a client of the test's own, the attacker's.
type natsNetwork struct {
	server *bus.Server
	raw    *nats.Conn
}

func start(t *testing.T, c bus.ServerConfig) *bus.Server {
	t.Helper()
	s, err := bus.StartEmbedded(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func openNATS(t *testing.T) bustest.Network {
	t.Helper()
	s := start(t, bus.ServerConfig{})
	raw, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(raw.Close)
	return &natsNetwork{s, raw}
}

func (n *natsNetwork) Open(t *testing.T, c bus.Config) bus.Bus {
	t.Helper()
	c.NATS = bus.NATSConfig{Server: n.server}
	b, err := bus.Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	await(t, b, true)
	return b
}

func (n *natsNetwork) Tap(t *testing.T, see func(bus.Raw)) {
	t.Helper()
	if _, err := n.raw.Subscribe(">", func(m *nats.Msg) { see(bus.Raw{Subject: m.Subject, Data: m.Data}) }); err != nil {
		t.Fatal(err)
	}
	if err := n.raw.FlushTimeout(10 * time.Second); err != nil {
		t.Fatal(err)
	}
}

func (n *natsNetwork) Inject(t *testing.T, raw bus.Raw) {
	if err := n.raw.Publish(raw.Subject, raw.Data); err != nil {
		t.Errorf("inject: %v", err)
	}
}

func TestNATS(t *testing.T) { bustest.Run(t, openNATS) }

// await waits until the bus is connected or not.
func await(t *testing.T, b bus.Bus, connected bool) {
	t.Helper()
	end := time.After(20 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond) // Changed may have been used up
	defer tick.Stop()
	for b.Connected() != connected {
		select {
		case <-b.Changed():
		case <-tick.C:
		case <-end:
			t.Fatalf("the bus is still connected: %v", !connected)
		}
	}
}
