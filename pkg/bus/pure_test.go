package bus

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func testKey(id uint32) *controlv1.BusKey {
	k := make([]byte, 32)
	k[0] = byte(id)
	return &controlv1.BusKey{Id: id, Key: k}
}

// A map of everything that was ever seen is the oracle.
func TestWindowEqualsMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w window
		seen, highest := map[uint64]bool{}, uint64(0)
		at := uint64(1)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			// Mostly near the newest, at times far ahead, or at the window's end.
			step := rapid.OneOf(rapid.Int64Range(-5, 5), rapid.Int64Range(-200, 200),
				rapid.Int64Range(-windowSize-2, -windowSize+2), rapid.Int64Range(0, 3*windowSize)).Draw(t, "step")
			n := uint64(max(0, int64(at)+step))
			want := n > 0 && !seen[n] && (n > highest || highest-n < windowSize)
			if got := w.add(n); got != want {
				t.Fatalf("add(%d) = %v after %d", n, got, highest)
			}
			if want {
				seen[n] = true
				highest = max(highest, n)
				at = highest
			}
		}
	})
}

func TestWindowAtTheEnd(t *testing.T) {
	var w window
	for _, n := range []uint64{1<<64 - 2, 1<<64 - 1} {
		if !w.add(n) || w.add(n) {
			t.Fatalf("sequence %d", n)
		}
	}
}

// No message of a sender is ever taken twice while its window is kept, and an
// older start is not heard while a newer one speaks.
func TestReplays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var r replays
		type id struct {
			sender    string
			boot, seq uint64
		}
		taken := map[id]bool{}
		heard := map[string]map[uint64]time.Time{}
		now := time.Unix(0, 0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			m := id{
				rapid.SampledFrom([]string{"a", "b"}).Draw(t, "sender"),
				rapid.Uint64Range(1, maxBoots).Draw(t, "boot"),
				rapid.Uint64Range(1, 20).Draw(t, "seq"),
			}
			shadowed := false
			for boot, at := range heard[m.sender] {
				shadowed = shadowed || boot > m.boot && now.Sub(at) < quiet
			}
			_, known := heard[m.sender][m.boot]
			want := !taken[m] && (known || !shadowed)
			if got := r.fresh(m.sender, m.boot, m.seq, now); got != want {
				t.Fatalf("fresh(%+v) = %v, want %v", m, got, want)
			}
			if want {
				taken[m] = true
				if heard[m.sender] == nil {
					heard[m.sender] = map[uint64]time.Time{}
				}
				heard[m.sender][m.boot] = now
			}
		}
	})
}

func TestReplaysAreBounded(t *testing.T) {
	var r replays
	now := time.Unix(0, 0)
	for i := range maxSenders + 100 {
		now = now.Add(time.Millisecond)
		if !r.fresh(fmt.Sprint(i), 1, 1, now) {
			t.Fatalf("sender %d is refused", i)
		}
	}
	if len(r.senders) != maxSenders {
		t.Fatalf("%d senders", len(r.senders))
	}
	if r.fresh(fmt.Sprint(maxSenders+99), 1, 1, now) {
		t.Fatal("the newest sender was forgotten")
	}
	for boot := range uint64(50) {
		r.fresh("boots", boot+1, 1, now)
	}
	if n := len(r.senders["boots"]); n != maxBoots {
		t.Fatalf("%d windows of one sender", n)
	}
}

// Whichever member gets the new key first, and however long the others take
// within the overlap, they understand each other.
func TestKeyringOverlap(t *testing.T) {
	now := time.Unix(0, 0)
	signs := func(r *keyring, at time.Time, want uint32) {
		t.Helper()
		if got := r.sign(at).GetId(); got != want {
			t.Fatalf("key %d signs at %v, want %d", got, at, want)
		}
	}
	set := func(r *keyring, at time.Time, ids ...uint32) {
		t.Helper()
		var keys []*controlv1.BusKey
		for _, id := range ids {
			keys = append(keys, testKey(id))
		}
		if err := r.set(keys, at); err != nil {
			t.Fatal(err)
		}
	}
	var r keyring
	signs(&r, now, 0)
	set(&r, now, 1)
	signs(&r, now, 1)
	set(&r, now, 2, 1)
	signs(&r, now, 1)
	set(&r, now.Add(overlap/2), 2, 1) // told again: the overlap does not start anew
	signs(&r, now.Add(overlap-1), 1)
	signs(&r, now.Add(overlap), 2)
	set(&r, now.Add(2*overlap), 3, 2) // key 2 signs by now, so it overlaps
	signs(&r, now.Add(2*overlap), 2)
	set(&r, now.Add(2*overlap), 4, 3, 2) // again before the last was over
	signs(&r, now.Add(3*overlap-1), 2)
	signs(&r, now.Add(3*overlap), 4)
	set(&r, now.Add(3*overlap), 5) // everything else is gone: at once
	signs(&r, now.Add(3*overlap), 5)
	set(&r, now.Add(3*overlap))
	signs(&r, now.Add(3*overlap), 0)
	// The same id with other bytes is another key.
	set(&r, now, 1)
	other := testKey(1)
	other.Key[5] = 9
	if err := r.set([]*controlv1.BusKey{other}, now); err != nil {
		t.Fatal(err)
	}
	if got := r.sign(now).Key[5]; got != 9 {
		t.Fatal("the replaced key still signs")
	}
	// The ring keeps no memory of its caller's.
	other.Key[5] = 7
	if got := r.sign(now).Key[5]; got != 9 {
		t.Fatal("the caller changed the key")
	}
}

// The MAC's input has one reading.
func TestMACTellsApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) (string, *busv1.Envelope) {
			word := rapid.SampledFrom([]string{"", "a", "b", "ab", "ba", "\x00", "\x00\x00\x00\x01a"})
			return word.Draw(t, name+" subject"), &busv1.Envelope{
				KeyId: rapid.Uint32Range(0, 2).Draw(t, name+" key"), Sender: word.Draw(t, name+" sender"),
				Boot: rapid.Uint64Range(0, 2).Draw(t, name+" boot"), Sequence: rapid.Uint64Range(0, 2).Draw(t, name+" seq"),
				Payload: []byte(word.Draw(t, name+" payload")),
			}
		}
		sa, a := draw("a")
		sb, b := draw("b")
		same := sa == sb && proto.Equal(a, b)
		ma, mb := mac(make([]byte, 32), sa, a), mac(make([]byte, 32), sb, b)
		if same != (string(ma) == string(mb)) {
			t.Fatalf("%q %v and %q %v", sa, a, sb, b)
		}
	})
}

// Nothing opens but what was sealed: same subject, same fields.
func FuzzOpen(f *testing.F) {
	var r keyring
	now := time.Unix(0, 0)
	if err := r.set([]*controlv1.BusKey{testKey(1), testKey(2)}, now); err != nil {
		f.Fatal(err)
	}
	const subject = "portcullis.default.beat"
	sealed := &busv1.Envelope{Sender: "a", Boot: 5, Sequence: 6, Payload: []byte("payload")}
	data, err := r.seal(subject, sealed, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(subject, data)
	f.Add("", []byte{})
	for i := range data {
		spoilt := append([]byte(nil), data...)
		spoilt[i] ^= 1
		f.Add(subject, spoilt)
	}
	f.Fuzz(func(t *testing.T, s string, data []byte) {
		e, err := r.open(s, data)
		if err != nil {
			if e != nil || !errors.Is(err, errForged) && !errors.Is(err, errMalformed) && !errors.Is(err, errUnknownKey) {
				t.Fatalf("%v %v", e, err)
			}
			return
		}
		e.ProtoReflect().SetUnknown(nil)
		if s != subject || !proto.Equal(e, sealed) {
			t.Fatalf("opened %v on %q", e, s)
		}
	})
}

// A subject of NATS, whatever a node is called.
func TestSubjects(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringN(1, 50, 200).Draw(t, "name")
		s := AskOf(name)
		got, ok := s.node()
		if !ok || got != name {
			t.Fatalf("AskOf(%q) is for %q", name, got)
		}
		for _, c := range string(s)[len(askPrefix):] {
			if c == '.' || c == '*' || c == '>' || c <= ' ' || c > '~' {
				t.Fatalf("AskOf(%q) = %q", name, s)
			}
		}
	})
	for _, s := range []Subject{"", "ask.", "ask.*", "ask.%", ">", "revoked.x"} {
		if s.message() != nil {
			t.Errorf("%q is a subject", s)
		}
	}
}

func BenchmarkSealOpen(b *testing.B) {
	var r keyring
	now := time.Now()
	if err := r.set([]*controlv1.BusKey{testKey(1)}, now); err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, 200)
	var seen replays
	b.ReportAllocs()
	for i := uint64(1); b.Loop(); i++ {
		data, err := r.seal("portcullis.default.spent", &busv1.Envelope{Sender: "node-1", Boot: 1, Sequence: i, Payload: payload}, now)
		if err != nil {
			b.Fatal(err)
		}
		e, err := r.open("portcullis.default.spent", data)
		if err != nil || !seen.fresh(e.Sender, e.Boot, e.Sequence, now) {
			b.Fatal(err)
		}
	}
}
