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

const beatSubject = "portcullis.default.beat"

func noKey(t *testing.T, n Network) {
	a, b := joinWith(t, n, bus.Config{Name: "a"}), join(t, n, "b", 1)
	got := subscribe(t, a, bus.Beat)
	if err := a.Publish(bus.Beat, beat(1)); !errors.Is(err, bus.ErrNoKey) {
		t.Fatalf("publish without a key: %v", err)
	}
	publish(t, b, bus.Beat, beat(1))
	eventually(t, "the message is dropped", func() bool { return a.Stats().UnknownKey == 1 })
	if err := a.SetKeys([]*controlv1.BusKey{Key(1)}); err != nil {
		t.Fatal(err)
	}
	publish(t, b, bus.Beat, beat(2))
	wantBeat(t, got, "b", 2)
	publish(t, a, bus.Beat, beat(3))
}

// Someone with access to the broker and a key of their own.
func forged(t *testing.T, n Network) {
	a := join(t, n, "a", 1)
	own := Key(1)
	own.Key[0] ^= 1
	mallory := joinWith(t, n, bus.Config{Name: "b", Keys: []*controlv1.BusKey{own}})
	stranger := joinWith(t, n, bus.Config{Name: "b", Keys: []*controlv1.BusKey{Key(77)}})
	for _, s := range []bus.Subject{bus.Beat, bus.Spent, bus.Revoked} {
		got := subscribe(t, a, s)
		before := a.Stats()
		m := map[bus.Subject]proto.Message{bus.Beat: beat(1), bus.Spent: &busv1.Spent{}, bus.Revoked: &busv1.Revoked{}}[s]
		publish(t, mallory, s, m)
		publish(t, stranger, s, m)
		eventually(t, "both are dropped and counted", func() bool {
			return a.Stats().Forged == before.Forged+1 && a.Stats().UnknownKey == before.UnknownKey+1
		})
		wantNothing(t, got)
	}
	gotM := subscribe(t, mallory, bus.Beat)
	publish(t, a, bus.Beat, beat(1))
	eventually(t, "mallory has heard it", func() bool { return mallory.Stats().Forged > 0 })
	wantNothing(t, gotM)
}

// record collects messages of a subject that the test itself did not inject.
type record struct {
	mu   sync.Mutex
	seen []bus.Raw
}

func tap(t *testing.T, n Network, prefix string) *record {
	r := &record{}
	n.Tap(t, func(raw bus.Raw) {
		if strings.HasPrefix(raw.Subject, prefix) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.seen = append(r.seen, raw)
		}
	})
	return r
}

// next waits for message i.
func (r *record) next(t *testing.T, i int) (raw bus.Raw) {
	t.Helper()
	eventually(t, "a message passes the broker", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.seen) > i {
			raw = r.seen[i]
		}
		return len(r.seen) > i
	})
	return raw
}

// Every field is covered by the MAC, and so is the subject.
func tampered(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	got, spent := subscribe(t, a, bus.Beat), subscribe(t, a, bus.Spent)
	tapped := tap(t, n, beatSubject)
	publish(t, b, bus.Beat, beat(1))
	raw := tapped.next(t, 0)
	wantBeat(t, got, "b", 1)
	want := a.Stats().Forged
	for _, spoil := range []func(*busv1.Envelope){
		func(e *busv1.Envelope) { e.Sender = "c" },
		func(e *busv1.Envelope) { e.Boot++ },
		func(e *busv1.Envelope) { e.Sequence += 1000 },
		func(e *busv1.Envelope) { e.Payload, _ = proto.Marshal(beat(2)) },
		func(e *busv1.Envelope) { e.Payload = nil },
		func(e *busv1.Envelope) { e.Mac[0] ^= 1 },
		func(e *busv1.Envelope) { e.Mac = e.Mac[:16] },
		func(e *busv1.Envelope) { e.Mac = nil },
	} {
		e := &busv1.Envelope{}
		if err := proto.Unmarshal(raw.Data, e); err != nil {
			t.Fatal(err)
		}
		spoil(e)
		data, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		n.Inject(t, bus.Raw{Subject: raw.Subject, Data: data})
		want++
		eventually(t, "the altered message is found out", func() bool { return a.Stats().Forged == want })
	}
	n.Inject(t, bus.Raw{Subject: "portcullis.default.spent", Data: raw.Data})
	eventually(t, "the moved message is found out", func() bool { return a.Stats().Forged == want+1 })
	wantNothing(t, got)
	wantNothing(t, spent)
}

func replayed(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	got := subscribe(t, a, bus.Beat)
	tapped := tap(t, n, beatSubject)
	for i := range int64(3) {
		publish(t, b, bus.Beat, beat(i))
		wantBeat(t, got, "b", i)
	}
	var raws []bus.Raw
	for i := range 3 {
		raws = append(raws, tapped.next(t, i))
	}
	for _, i := range []int{2, 0, 1, 1} {
		n.Inject(t, raws[i])
	}
	eventually(t, "all are dropped", func() bool { return a.Stats().Replayed == 4 })
	wantNothing(t, got)
	publish(t, b, bus.Beat, beat(9))
	wantBeat(t, got, "b", 9)
}

// A member cannot answer in another's place.
func askWrongAnswerer(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	imposter := join(t, n, "c", 1)
	tapped := tap(t, n, "portcullis.default.answer.")
	answer := func(granted bool) func(proto.Message) proto.Message {
		return func(proto.Message) proto.Message { return &busv1.Answer{Granted: granted} }
	}
	if _, err := imposter.Answer(bus.AskOf("b"), answer(true)); !errors.Is(err, bus.ErrMisuse) {
		t.Fatalf("answering for another: %v", err)
	}
	for who, node := range map[string]bus.Bus{"b": b, "c": imposter} {
		if _, err := node.Answer(bus.AskOf(who), answer(who == "c")); err != nil {
			t.Fatal(err)
		}
	}
	var resp busv1.Answer
	if err := a.Ask(t.Context(), bus.AskOf("c"), &busv1.Ask{}, &resp); err != nil || !resp.Granted {
		t.Fatalf("%v %v", &resp, err)
	}
	yes := tapped.next(t, 0)
	// The imposter's yes to an earlier question does for no later one: neither as it
	// is nor under the later one's subject.
	ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer stop()
	asked := make(chan error, 1)
	go func() { asked <- a.Ask(ctx, bus.AskOf("nobody"), &busv1.Ask{}, &busv1.Answer{}) }()
	stem := yes.Subject[:strings.LastIndexByte(yes.Subject, '.')+1]
	for _, sequence := range []string{"1", "2", "3", "4"} {
		n.Inject(t, bus.Raw{Subject: stem + sequence, Data: yes.Data})
	}
	if err := <-asked; !errors.Is(err, bus.ErrNoAnswer) {
		t.Fatalf("an old answer to another question was believed: %v", err)
	}
	eventually(t, "moved answers are found out", func() bool { return a.Stats().Forged >= 3 })
}

// An answer that was given is given once, and a question is answered once.
func replayedAnswer(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	questions := tap(t, n, "portcullis.default.ask.")
	answers := tap(t, n, "portcullis.default.answer.")
	var mu sync.Mutex
	spent := int64(0)
	if _, err := b.Answer(bus.AskOf("b"), func(m proto.Message) proto.Message {
		mu.Lock()
		defer mu.Unlock()
		spent += m.(*busv1.Ask).Cost
		return &busv1.Answer{RetryAfter: spent}
	}); err != nil {
		t.Fatal(err)
	}
	var resp busv1.Answer
	if err := a.Ask(t.Context(), bus.AskOf("b"), &busv1.Ask{Cost: 1}, &resp); err != nil || resp.RetryAfter != 1 {
		t.Fatalf("%v %v", &resp, err)
	}
	n.Inject(t, questions.next(t, 0))
	n.Inject(t, answers.next(t, 0))
	eventually(t, "the repeated question is dropped", func() bool { return b.Stats().Replayed == 1 })
	if err := a.Ask(t.Context(), bus.AskOf("b"), &busv1.Ask{Cost: 1}, &resp); err != nil || resp.RetryAfter != 2 {
		t.Fatalf("%v %v", &resp, err)
	}
}

// A member that starts again is heard at once. Its earlier self, which may be handing
// over, is heard as long as it speaks; one that nobody had heard is not.
func restart(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 100)
	got := subscribe(t, a, bus.Beat)
	publish(t, b, bus.Beat, beat(1))
	wantBeat(t, got, "b", 1)
	again := join(t, n, "b", 101)
	publish(t, again, bus.Beat, beat(2))
	wantBeat(t, got, "b", 2)
	publish(t, b, bus.Beat, beat(3))
	wantBeat(t, got, "b", 3)
	unheard := join(t, n, "b", 99)
	publish(t, unheard, bus.Beat, beat(4))
	eventually(t, "an earlier start is not heard for the first time", func() bool { return a.Stats().Replayed == 1 })
	wantNothing(t, got)
}

// Keys change without a message lost, whoever gets them first.
func rotate(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	gotA, gotB := subscribe(t, a, bus.Beat), subscribe(t, b, bus.Beat)
	count := int64(0)
	exchange := func() {
		t.Helper()
		count++
		publish(t, a, bus.Beat, beat(count))
		wantBeat(t, gotB, "a", count)
		publish(t, b, bus.Beat, beat(-count))
		wantBeat(t, gotA, "b", -count)
	}
	set := func(m bus.Bus, keys ...*controlv1.BusKey) {
		t.Helper()
		if err := m.SetKeys(keys); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	set(a, Key(2), Key(1))
	exchange()
	set(b, Key(2), Key(1))
	exchange()
	set(b, Key(2)) // both know it, and a goes on with key 1 for a while
	set(a, Key(2)) // until that is gone
	exchange()
	tapped := tap(t, n, beatSubject)
	exchange()
	e := &busv1.Envelope{}
	if err := proto.Unmarshal(tapped.next(t, 0).Data, e); err != nil || e.KeyId != 2 {
		t.Fatalf("sealed with key %d: %v", e.KeyId, err)
	}
	// A member that kept the old key is not heard.
	old := join(t, n, "c", 1)
	publish(t, old, bus.Beat, beat(0))
	eventually(t, "the old key is refused", func() bool { return a.Stats().UnknownKey == 1 && b.Stats().UnknownKey == 1 })
	wantNothing(t, gotA)
	if a.Stats().Forged+b.Stats().Forged != 0 {
		t.Fatal("rotation looked like forgery")
	}
}

func garbage(t *testing.T, n Network) {
	a, b := join(t, n, "a", 1), join(t, n, "b", 1)
	got := subscribe(t, a, bus.Beat)
	for i, data := range [][]byte{nil, {0xff}, []byte(strings.Repeat("\x08", 999)), make([]byte, 4096)} {
		n.Inject(t, bus.Raw{Subject: beatSubject, Data: data})
		eventually(t, "garbage is counted", func() bool { return a.Stats().Malformed == uint64(i+1) })
	}
	publish(t, b, bus.Beat, beat(1))
	wantBeat(t, got, "b", 1)
}
