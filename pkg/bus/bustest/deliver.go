package bustest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/bus"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func deliver(t *testing.T, n Network) {
	a, b, c := join(t, n, "a", 7), join(t, n, "node.b", 8), join(t, n, "c", 9)
	if !a.Connected() || !b.Connected() {
		t.Fatal("not connected")
	}
	for s, m := range map[bus.Subject]proto.Message{
		bus.Revoked: &busv1.Revoked{Previous: 4, Entries: []*controlv1.Revocation{{Revision: 5, Key: make([]byte, 16)}}},
		bus.Beat:    &busv1.Beat{Head: &controlv1.Version{Epoch: 1, Revision: 9}, Revocations: 3, Progress: 10},
		bus.Spent:   &busv1.Spent{Totals: []*busv1.Total{{Key: []byte("k"), Total: 12, Rate: 0.5}}},
	} {
		gotB, gotC := subscribe(t, b, s), subscribe(t, c, s)
		other := subscribe(t, c, bus.AskOf("c"))
		publish(t, a, s, m)
		for _, got := range []<-chan message{gotB, gotC} {
			if r := receive(t, got); !proto.Equal(r.msg, m) || r.from != (bus.Sender{Name: "a", Boot: 7}) {
				t.Fatalf("received %v from %+v, want %v", r.msg, r.from, m)
			}
		}
		wantNothing(t, other)
	}
	if s := a.Stats(); s.Sent != 3 || s.Received != 0 {
		t.Fatalf("stats %+v", s)
	}
	if s := b.Stats(); s != (bus.Stats{Received: 3}) {
		t.Fatalf("stats %+v", s)
	}
}

func noEcho(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	gotA, gotB := subscribe(t, a, bus.Beat), subscribe(t, b, bus.Beat)
	publish(t, a, bus.Beat, beat(1))
	wantBeat(t, gotB, "a", 1)
	publish(t, b, bus.Beat, beat(2))
	wantBeat(t, gotA, "b", 2)
	wantNothing(t, gotA)
}

func order(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	got := subscribe(t, b, bus.Beat)
	for i := range int64(1000) {
		publish(t, a, bus.Beat, beat(i))
	}
	for i := range int64(1000) {
		wantBeat(t, got, "a", i)
	}
}

func concurrent(t *testing.T, n Network) {
	a, b, c := join(t, n, "a", 1), join(t, n, "b", 1), join(t, n, "c", 1)
	got := subscribe(t, c, bus.Beat)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 200 {
				from := []bus.Bus{a, b}[w%2]
				if err := from.Publish(bus.Beat, beat(int64(w*200+i))); err != nil {
					t.Errorf("publish: %v", err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[int64]bool{}
	for range 800 {
		seen[receive(t, got).msg.(*busv1.Beat).Progress] = true
	}
	if len(seen) != 800 {
		t.Fatalf("%d different messages of 800", len(seen))
	}
}

func clustersApart(t *testing.T, n Network) {
	keys := []*controlv1.BusKey{Key(1)}
	a := joinWith(t, n, bus.Config{Name: "a", Cluster: "one", Keys: keys})
	b := joinWith(t, n, bus.Config{Name: "b", Cluster: "two", Keys: keys})
	c := joinWith(t, n, bus.Config{Name: "c", Cluster: "one", Keys: keys})
	gotB, gotC := subscribe(t, b, bus.Beat), subscribe(t, c, bus.Beat)
	// Not even by moving the bytes over.
	n.Tap(t, func(raw bus.Raw) {
		if moved, ok := strings.CutPrefix(raw.Subject, "portcullis.one."); ok {
			n.Inject(t, bus.Raw{Subject: "portcullis.two." + moved, Data: raw.Data})
		}
	})
	publish(t, a, bus.Beat, beat(1))
	wantBeat(t, gotC, "a", 1)
	eventually(t, "the moved message is found out", func() bool { return b.Stats().Forged == 1 })
	wantNothing(t, gotB)
}

func cancelSubscription(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	var mu sync.Mutex
	calls, entered := 0, make(chan struct{}, 1)
	release := make(chan struct{})
	cancel, err := b.Subscribe(bus.Beat, func(bus.Sender, proto.Message) {
		entered <- struct{}{}
		<-release
		mu.Lock()
		defer mu.Unlock()
		calls++
	})
	if err != nil {
		t.Fatal(err)
	}
	other := subscribe(t, b, bus.Beat)
	publish(t, a, bus.Beat, beat(1))
	publish(t, a, bus.Beat, beat(2))
	<-entered
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cancel()
	}()
	select {
	case <-ended:
		t.Error("cancel returned while the handler runs")
	case <-time.After(10 * time.Millisecond):
	}
	close(release)
	<-ended
	cancel() // again
	mu.Lock()
	before := calls
	mu.Unlock()
	publish(t, a, bus.Beat, beat(3))
	for i := range int64(3) {
		wantBeat(t, other, "a", i+1)
	}
	mu.Lock()
	defer mu.Unlock()
	if calls != before || calls == 0 {
		t.Fatalf("%d calls after cancel", calls-before)
	}
}

func closeBus(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	subscribe(t, a, bus.Beat)
	asked := make(chan error, 1)
	received := make(chan struct{})
	cancel, err := b.Answer(bus.AskOf("b"), func(proto.Message) proto.Message {
		close(received)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { asked <- a.Ask(context.Background(), bus.AskOf("b"), &busv1.Ask{}, &busv1.Answer{}) }()
	<-received
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-asked; !errors.Is(err, bus.ErrClosed) {
		t.Errorf("a question of a closed bus: %v", err)
	}
	cancel()
	if err := a.Close(); err != nil {
		t.Errorf("close again: %v", err)
	}
	if a.Connected() {
		t.Error("connected after Close")
	}
	if err := a.Publish(bus.Beat, beat(1)); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("publish: %v", err)
	}
	if _, err := a.Subscribe(bus.Beat, func(bus.Sender, proto.Message) {}); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("subscribe: %v", err)
	}
}

func misuse(t *testing.T, n Network) {
	a := join(t, n, "a", 1)
	ctx := t.Context()
	_, errNone := a.Subscribe("other", func(bus.Sender, proto.Message) {})
	_, errElse := a.Answer(bus.AskOf("b"), func(proto.Message) proto.Message { return nil })
	short := &controlv1.BusKey{Id: 1, Key: make([]byte, 31)}
	for name, err := range map[string]error{
		"other type":       a.Publish(bus.Beat, &busv1.Spent{}),
		"no message":       a.Publish(bus.Beat, nil),
		"no subject":       a.Publish("other", beat(1)),
		"no such subject":  errNone,
		"another's answer": errElse,
		"ask a beat":       a.Ask(ctx, bus.Beat, &busv1.Ask{}, &busv1.Answer{}),
		"ask with a beat":  a.Ask(ctx, bus.AskOf("b"), beat(1), &busv1.Answer{}),
		"beat for answer":  a.Ask(ctx, bus.AskOf("b"), &busv1.Ask{}, beat(1)),
		"short key":        a.SetKeys([]*controlv1.BusKey{short}),
		"same id":          a.SetKeys([]*controlv1.BusKey{Key(1), Key(1)}),
		"nil key":          a.SetKeys([]*controlv1.BusKey{nil}),
	} {
		if !errors.Is(err, bus.ErrMisuse) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := &busv1.Spent{Totals: []*busv1.Total{{Key: make([]byte, bus.MaxPayload)}}}
	if err := a.Publish(bus.Spent, big); !errors.Is(err, bus.ErrTooLarge) {
		t.Errorf("large message: %v", err)
	}
}

// A handler that hangs costs its own messages only.
func slowHandler(t *testing.T, n Network) {
	a := join(t, n, "a", 1)
	b := joinWith(t, n, bus.Config{Name: "b", Keys: []*controlv1.BusKey{Key(1)}, Pending: 16})
	release := make(chan struct{})
	// Before the member's Close, which waits for the handler.
	t.Cleanup(sync.OnceFunc(func() { close(release) }))
	if _, err := b.Subscribe(bus.Spent, func(bus.Sender, proto.Message) { <-release }); err != nil {
		t.Fatal(err)
	}
	got := subscribe(t, b, bus.Beat)
	for range 100 {
		publish(t, a, bus.Spent, &busv1.Spent{})
	}
	publish(t, a, bus.Beat, beat(1))
	wantBeat(t, got, "a", 1)
	eventually(t, "drops are counted", func() bool { return b.Stats().Slow >= 100-16-2 })
}

func ask(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "node.b", 1)
	cancel, err := b.Answer(bus.AskOf("node.b"), func(m proto.Message) proto.Message {
		q := m.(*busv1.Ask)
		if q.Cost == 13 {
			return nil
		}
		return &busv1.Answer{Granted: q.Cost%2 == 0, RetryAfter: q.Cost}
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range int64(10) {
		wg.Go(func() {
			var answer busv1.Answer
			err := a.Ask(t.Context(), bus.AskOf("node.b"), &busv1.Ask{Cost: i}, &answer)
			if err != nil || answer.RetryAfter != i || answer.Granted != (i%2 == 0) {
				t.Errorf("ask %d: %v %v", i, &answer, err)
			}
		})
	}
	wg.Wait()
	// No answer: until the context ends.
	ctx, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	err = a.Ask(ctx, bus.AskOf("node.b"), &busv1.Ask{Cost: 13}, &busv1.Answer{})
	if !errors.Is(err, bus.ErrNoAnswer) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ask without an answer: %v", err)
	}
	cancel()
}

func askNobody(t *testing.T, n Network) {
	a := join(t, n, "a", 1)
	if err := a.Ask(context.Background(), bus.AskOf("gone"), &busv1.Ask{}, &busv1.Answer{}); !errors.Is(err, bus.ErrNoAnswer) {
		t.Errorf("ask nobody: %v", err)
	}
}
