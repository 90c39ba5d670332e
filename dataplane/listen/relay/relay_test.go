package relay

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/ipv4"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end by an event; it is no promise.
const patience = 20 * time.Second

var quiet = slog.New(slog.DiscardHandler)

// The IDs that a process makes name it, in short and in long headers.
func TestTags(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		own := newTag()
		id, err := ids(own).GenerateConnectionID()
		if err != nil || id.Len() != ids(own).ConnectionIDLen() {
			t.Fatal(id, err)
		}
		tail := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "tail")
		short := append([]byte{rapid.Byte().Draw(t, "first") &^ 0x80}, id.Bytes()...)
		long := append([]byte{rapid.Byte().Draw(t, "first") | 0x80, 0, 0, 0, 1, idLength}, id.Bytes()...)
		for _, packet := range [][]byte{append(short, tail...), append(long, tail...)} {
			if got, ok := tagOf(packet); !ok || got != own {
				t.Fatalf("%x: %v %v", packet, got, ok)
			}
		}
		other := rapid.IntRange(0, 20).Filter(func(n int) bool { return n != idLength }).Draw(t, "length")
		made := append([]byte{0xc0, 0, 0, 0, 1, byte(other)}, make([]byte, 60)...)
		if _, ok := tagOf(made); ok {
			t.Fatal("an ID of another length has a tag")
		}
	})
}

func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ip := rapid.SampledFrom([]string{"192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "fe80::1%eth0"}).Draw(t, "ip")
		from := net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), rapid.Uint16().Draw(t, "port")))
		oob := rapid.SliceOfN(rapid.Byte(), 0, 128).Draw(t, "oob")
		datagram := rapid.SliceOfN(rapid.Byte(), 0, 1452).Draw(t, "datagram")
		b, err := appendPacket(nil, from, oob, datagram)
		if err != nil || len(b) > maxFrame {
			t.Fatal(len(b), err)
		}
		at, gotOOB, got, err := parsePacket(b)
		if err != nil || at.String() != from.String() || !bytes.Equal(gotOOB, oob) || !bytes.Equal(got, datagram) {
			t.Fatal(at, gotOOB, got, err)
		}
		keys := newKeys()
		if got, err := parseKeys(appendKeys(nil, keys)); err != nil || got != keys {
			t.Fatal(got, err)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{passedOn, 6, 0, 192, 0, 2, 1, 1, 1, 'x'})
	f.Add([]byte{handedOver})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseKeys(b); err == nil && b[0] != handedOver {
			t.Fatal("keys in another frame")
		}
		from, oob, datagram, err := parsePacket(b)
		if err != nil {
			return
		}
		again, err := appendPacket(nil, from, oob, datagram)
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}

// process is a Socket that is read as quic-go does.
type process struct {
	*Socket
	got chan string
}

func (p *process) read() {
	ms := make([]ipv4.Message, 8)
	for i := range ms {
		ms[i].Buffers, ms[i].OOB = [][]byte{make([]byte, 1452)}, make([]byte, 128)
	}
	for {
		n, err := p.ReadBatch(ms, 0)
		if err != nil {
			close(p.got)
			return
		}
		for _, m := range ms[:n] {
			if m.Addr.(*net.UDPAddr).Port == 0 {
				panic("nobody sent it")
			}
			text := string(m.Buffers[0][:m.N])
			p.got <- text[strings.LastIndex(text, " ")+1:]
		}
	}
}

func started(t *testing.T, s *Socket) *process {
	t.Helper()
	p := &process{s, make(chan string, 100_000)}
	go p.read()
	t.Cleanup(func() { p.end(t) })
	return p
}

// end is the end of the process.
func (p *process) end(t *testing.T) {
	t.Helper()
	if err := p.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	for range p.got {
	}
}

func first(t *testing.T) *process {
	t.Helper()
	s, err := Listen("127.0.0.1:0", quiet)
	if err != nil {
		t.Fatal(err)
	}
	return started(t, s)
}

// next is a process that succeeds, and has taken over.
func (p *process) next(t *testing.T) *process {
	t.Helper()
	files, err := p.Offer()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Inherit(files, quiet)
	if err != nil {
		t.Fatal(err)
	}
	p.HandOver()
	if err := s.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Keys() != p.Keys() {
		t.Error("the keys are others")
	}
	return started(t, s)
}

// sender is a client.
type sender struct{ net.Conn }

func (p *process) sender(t *testing.T) sender {
	t.Helper()
	c, err := net.Dial("udp", p.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return sender{c}
}

// send sends a packet of a connection that the process has; nil: of a new one.
func (s sender) send(t *testing.T, to *process, text string) {
	t.Helper()
	b := append([]byte{0xc0, 0, 0, 0, 1, 8}, make([]byte, 8)...)
	if to != nil {
		id, _ := to.IDs().GenerateConnectionID()
		b = append([]byte{0x40}, id.Bytes()...)
	}
	if _, err := s.Write(append(b, " "+text...)); err != nil {
		t.Fatal(err)
	}
}

func (p *process) wants(t *testing.T, text string) {
	t.Helper()
	select {
	case got := <-p.got:
		if got != text {
			t.Errorf("got %q, want %q", got, text)
		}
	case <-time.After(patience):
		t.Fatalf("%q did not come", text)
	}
}

// Each process gets what is its own, over two hand-overs, and new connections go
// to the newest, whichever of those before it are gone.
func TestEachGetsItsOwn(t *testing.T) {
	a := first(t)
	s := a.sender(t)
	s.send(t, nil, "new")
	a.wants(t, "new")
	b := a.next(t)
	s.send(t, a, "for-a")
	s.send(t, b, "for-b")
	s.send(t, nil, "new")
	a.wants(t, "for-a")
	b.wants(t, "for-b")
	b.wants(t, "new")
	c := b.next(t)
	for _, p := range []*process{a, b, c} {
		s.send(t, p, "own")
		p.wants(t, "own")
	}
	// The one between ends first: it is not needed by the oldest.
	b.end(t)
	s.send(t, a, "still")
	a.wants(t, "still")
	for len(*c.older.Load()) > 1 {
		time.Sleep(time.Millisecond)
	}
	s.send(t, b, "too-late")
	c.wants(t, "too-late")
	a.end(t)
	for c.older.Load() != nil {
		time.Sleep(time.Millisecond)
	}
	s.send(t, nil, "new")
	c.wants(t, "new")
}

// Until it hands over, and when the successor is gone, the predecessor reads.
func TestPredecessorReadsWhenNobodyElseDoes(t *testing.T) {
	a := first(t)
	s := a.sender(t)
	a.HandOver() // without an offer
	for range 2 {
		files, err := a.Offer()
		if err != nil {
			t.Fatal(err)
		}
		waiting, err := Inherit(files, quiet)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		if err := waiting.Await(ctx); err == nil {
			t.Error("it was not handed over")
		}
		cancel()
		s.send(t, nil, "meanwhile")
		a.wants(t, "meanwhile")
		_ = waiting.Close()
		a.HandOver() // to nobody
		s.send(t, nil, "on")
		a.wants(t, "on")
	}
	b := a.next(t)
	s.send(t, a, "own")
	a.wants(t, "own")
	b.end(t)
	// It hears of that, and then reads what nobody did.
	s.send(t, nil, "orphan")
	a.wants(t, "orphan")
	s.send(t, a, "own")
	a.wants(t, "own")
	a.next(t)
	s.send(t, a, "own")
	a.wants(t, "own")
}

// A predecessor that ends before it hands over leaves the socket.
func TestPredecessorThatEnds(t *testing.T) {
	a := first(t)
	s := a.sender(t)
	files, err := a.Offer()
	if err != nil {
		t.Fatal(err)
	}
	inherited, err := Inherit(files, quiet)
	if err != nil {
		t.Fatal(err)
	}
	a.end(t)
	if err := inherited.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	b := started(t, inherited)
	s.send(t, nil, "new")
	b.wants(t, "new")
}

// One process too many: the oldest gets nothing any more, and takes nothing from
// the newest.
func TestTheOldestIsLeftOut(t *testing.T) {
	all := []*process{first(t)}
	s := all[0].sender(t)
	for range maxOlder + 1 {
		all = append(all, all[len(all)-1].next(t))
	}
	oldest, newest := all[0], all[len(all)-1]
	resting := func() bool {
		oldest.mu.Lock()
		defer oldest.mu.Unlock()
		return oldest.plug != nil
	}
	for !resting() {
		time.Sleep(time.Millisecond)
	}
	for _, p := range all[1:] {
		s.send(t, p, "own")
		p.wants(t, "own")
	}
	for range 100 {
		s.send(t, nil, "new")
		newest.wants(t, "new")
	}
	for _, p := range all[1:] {
		p.end(t)
	}
	// Nobody is passed it, nobody reads it.
	s.send(t, nil, "orphan")
	if err := oldest.SetReadDeadline(time.Now()); err != nil {
		t.Error(err)
	}
	for got := range oldest.got {
		t.Errorf("the oldest reads %q", got)
	}
}

// A process that does not take its packets holds up nobody.
func TestPassingOnNeverWaits(t *testing.T) {
	s, err := Listen("127.0.0.1:0", quiet)
	if err != nil {
		t.Fatal(err)
	}
	a := &process{s, make(chan string)} // of which nobody takes anything
	go a.read()
	b := a.next(t)
	o := (*b.older.Load())[0]
	client := b.sender(t)
	for i := 0; o.dropped.Load() == 0; i++ {
		client.send(t, a, strings.Repeat("x", 1000))
		if i > 1_000_000 {
			t.Fatal("nothing is dropped")
		}
	}
	client.send(t, b, "mine")
	b.wants(t, "mine")
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	for range a.got {
	}
}

func TestNonsenseIsNotInherited(t *testing.T) {
	pipe, other, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	a := first(t)
	files, err := a.Offer()
	if err != nil {
		t.Fatal(err)
	}
	files["before-1-nonsense"] = pipe
	if s, err := Inherit(files, quiet); err == nil {
		t.Error("nonsense was inherited", s.Close())
	}
	if _, err := Inherit(nil, quiet); err == nil {
		t.Error("nothing was inherited")
	}
	files, err = a.Offer()
	if err != nil {
		t.Fatal(err)
	}
	CloseFiles(map[string]*os.File{"": files[socketFile]})
	files[socketFile] = files["before-0-"+a.own.String()]
	if s, err := Inherit(files, quiet); err == nil {
		t.Error("a pair was taken for a UDP socket", s.Close())
	}
}
