package bus_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/bus/bustest"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// faulty runs test under a fake clock with members a and b; got is what b
// received.
func faulty(t *testing.T, test func(t *testing.T, m *bus.Memory, a, b bus.Bus, got func() []int64)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := bus.NewMemory()
		var members []bus.Bus
		for _, name := range []string{"a", "b"} {
			b, err := m.Open(bus.Config{Name: name, Keys: []*controlv1.BusKey{bustest.Key(1)}})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			members = append(members, b)
		}
		var mu sync.Mutex
		var seen []int64
		if _, err := members[1].Subscribe(bus.Beat, func(_ bus.Sender, m proto.Message) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, m.(*busv1.Beat).Progress)
		}); err != nil {
			t.Fatal(err)
		}
		test(t, m, members[0], members[1], func() []int64 {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			out := seen
			seen = nil
			return out
		})
	})
}

func send(t *testing.T, b bus.Bus, n int) {
	t.Helper()
	for i := range n {
		if err := b.Publish(bus.Beat, &busv1.Beat{Progress: int64(i)}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMemoryFaults(t *testing.T) {
	t.Run("cut", func(t *testing.T) {
		faulty(t, func(t *testing.T, m *bus.Memory, a, b bus.Bus, got func() []int64) {
			m.SetLinks(func(from, to string) bus.Link { return bus.Link{Cut: from == "a" && to == "b"} })
			send(t, a, 5)
			if n := len(got()); n != 0 || !a.Connected() {
				t.Fatalf("%d messages over a cut link", n)
			}
			m.SetLinks(nil)
			send(t, a, 5)
			if n := len(got()); n != 5 {
				t.Fatalf("%d messages after healing", n)
			}
		})
	})
	t.Run("disconnected", func(t *testing.T) {
		faulty(t, func(t *testing.T, m *bus.Memory, a, b bus.Bus, got func() []int64) {
			m.SetConnected("b", false)
			send(t, a, 5)
			<-b.Changed()
			if b.Connected() || len(got()) != 0 {
				t.Fatal("connected")
			}
			if err := b.Publish(bus.Beat, &busv1.Beat{}); !errors.Is(err, bus.ErrDisconnected) || b.Stats().Lost != 1 {
				t.Fatalf("publish: %v", err)
			}
			m.SetConnected("b", true)
			<-b.Changed()
			send(t, a, 5)
			if n := len(got()); n != 5 {
				t.Fatalf("%d messages, want those sent since", n)
			}
		})
	})
	t.Run("loss", func(t *testing.T) {
		faulty(t, func(t *testing.T, m *bus.Memory, a, b bus.Bus, got func() []int64) {
			m.SetLinks(func(string, string) bus.Link { return bus.Link{Loss: 0.1} })
			send(t, a, 2000)
			if n := len(got()); n < 1700 || n > 1900 {
				t.Fatalf("%d of 2000 messages at 10 %% loss", n)
			}
		})
	})
	t.Run("duplicates are dropped", func(t *testing.T) {
		faulty(t, func(t *testing.T, m *bus.Memory, a, b bus.Bus, got func() []int64) {
			m.SetLinks(func(string, string) bus.Link { return bus.Link{Duplicate: 1} })
			send(t, a, 100)
			if n := len(got()); n != 100 || b.Stats().Replayed != 100 {
				t.Fatalf("%d messages, %+v", n, b.Stats())
			}
		})
	})
	t.Run("delay and reordering", func(t *testing.T) {
		faulty(t, func(t *testing.T, m *bus.Memory, a, b bus.Bus, got func() []int64) {
			m.SetLinks(func(string, string) bus.Link { return bus.Link{Delay: time.Second, Jitter: time.Second} })
			send(t, a, 100)
			time.Sleep(time.Second - 1)
			if n := len(got()); n != 0 {
				t.Fatalf("%d messages came early", n)
			}
			time.Sleep(time.Second + 2)
			all := got()
			overtaken, sum := 0, int64(0)
			for i, n := range all {
				sum += n
				if i > 0 && all[i-1] > n {
					overtaken++
				}
			}
			if len(all) != 100 || sum != 99*100/2 || overtaken == 0 {
				t.Fatalf("%d messages, %d overtaken", len(all), overtaken)
			}
		})
	})
	t.Run("an older start is heard once the newer has been silent", func(t *testing.T) {
		faulty(t, func(t *testing.T, m *bus.Memory, a, b bus.Bus, got func() []int64) {
			send(t, a, 1)
			// The wall clock was set back before this start.
			back, err := m.Open(bus.Config{Name: "a", Boot: 1, Keys: []*controlv1.BusKey{bustest.Key(1)}})
			if err != nil {
				t.Fatal(err)
			}
			defer back.Close()
			send(t, back, 1)
			if n := len(got()); n != 1 {
				t.Fatalf("%d messages, want that of the newer start", n)
			}
			time.Sleep(5 * time.Second)
			send(t, back, 1)
			if n := len(got()); n != 1 {
				t.Fatalf("%d messages of the start after a silence", n)
			}
		})
	})
	t.Run("the newest key takes over", func(t *testing.T) {
		faulty(t, func(t *testing.T, m *bus.Memory, a, b bus.Bus, got func() []int64) {
			if err := a.SetKeys([]*controlv1.BusKey{bustest.Key(2), bustest.Key(1)}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(9 * time.Second)
			send(t, a, 1)
			if n := len(got()); n != 1 {
				t.Fatal("b was not given time to get the key")
			}
			time.Sleep(time.Second)
			send(t, a, 1)
			if n := len(got()); n != 0 || b.Stats().UnknownKey != 1 {
				t.Fatal("the old key still signs")
			}
		})
	})
	t.Run("seeds repeat", func(t *testing.T) {
		var runs []string
		for range 2 {
			faulty(t, func(t *testing.T, m *bus.Memory, a, b bus.Bus, got func() []int64) {
				m.Seed(42)
				m.SetLinks(func(string, string) bus.Link { return bus.Link{Loss: 0.5} })
				send(t, a, 50)
				runs = append(runs, fmt.Sprint(got()))
			})
		}
		if runs[0] != runs[1] {
			t.Fatalf("%s\n%s", runs[0], runs[1])
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	m := bus.NewMemory()
	for name, c := range map[string]bus.Config{
		"no name":     {},
		"long name":   {Name: string(make([]byte, 300))},
		"bad cluster": {Name: "a", Cluster: "a.b"},
		"wildcard":    {Name: "a", Cluster: "*"},
		"short key":   {Name: "a", Keys: []*controlv1.BusKey{{Id: 1, Key: make([]byte, 8)}}},
	} {
		if _, err := m.Open(c); !errors.Is(err, bus.ErrMisuse) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
