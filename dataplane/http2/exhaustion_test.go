package http2

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// Every row is a flood that costs the client less than us: the connection ends
// with ENHANCE_YOUR_CALM, while another connection is served.
func TestFloodsEndTheConnection(t *testing.T) {
	var working, most atomic.Int64
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		n := working.Add(1)
		defer working.Add(-1)
		for {
			high := most.Load()
			if n <= high || most.CompareAndSwap(high, n) {
				break
			}
		}
		if e.Request.Path == "/fine" {
			return text(200, "fine")
		}
		<-e.Context.Done()
		return text(200, "late")
	}})
	for name, send := range map[string]func(r *raw, i uint32) error{
		"rapid reset": func(r *raw, i uint32) error {
			return errors.Join(open(r, 2*i+1), r.WriteRSTStream(2*i+1, h2.ErrCodeCancel))
		},
		"streams reset for their errors": func(r *raw, i uint32) error {
			return errors.Join(open(r, 2*i+1), r.WriteRawFrame(h2.FrameWindowUpdate, 0, 2*i+1, make([]byte, 4)))
		},
		"streams beyond the limit": func(r *raw, i uint32) error { return open(r, 2*i+1) },
		"PING":                     func(r *raw, i uint32) error { return r.WritePing(false, [8]byte{}) },
		"SETTINGS":                 func(r *raw, i uint32) error { return r.WriteSettings() },
		"SETTINGS, large":          func(r *raw, i uint32) error { return r.WriteSettings(manySettings...) },
		"PRIORITY":                 func(r *raw, i uint32) error { return r.WritePriority(1, h2.PriorityParam{}) },
		"WINDOW_UPDATE":            func(r *raw, i uint32) error { return r.WriteWindowUpdate(0, 1) },
		"unknown frames":           func(r *raw, i uint32) error { return r.WriteRawFrame(0xbe, 0, 0, nil) },
		"empty DATA": func(r *raw, i uint32) error {
			if i == 0 {
				return open(r, 1)
			}
			return r.WriteData(1, false, nil)
		},
		"CONTINUATION, empty": func(r *raw, i uint32) error {
			if i == 0 {
				return r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode(get()...)})
			}
			return r.WriteContinuation(1, false, nil)
		},
		"CONTINUATION, large": func(r *raw, i uint32) error {
			if i == 0 {
				return r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode(get()...)})
			}
			return r.WriteContinuation(1, false, make([]byte, maxFrame))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := f.dial()
			var sent sync.WaitGroup
			sent.Go(func() {
				for i := range uint32(50_000) {
					if send(r, i) != nil {
						return
					}
				}
			})
			o := r.await(0, func(*outcome) bool { return false })
			r.Conn.Close()
			sent.Wait()
			if !o.gone || o.goAway != h2.ErrCodeEnhanceYourCalm {
				t.Errorf("got %+v, want ENHANCE_YOUR_CALM", o)
			}
			other := f.dial()
			other.headers(1, true, ":method", "GET", ":scheme", "http", ":path", "/fine", ":authority", "a")
			if o := other.receive(1); o.status != "200" {
				t.Errorf("others got %+v", o)
			}
		})
	}
	if n := most.Load(); n > 2*128+1 {
		t.Errorf("%d requests were at work at once", n)
	}
}

// manySettings are what one frame holds, each of which changes all streams.
var manySettings = slices.Repeat([]h2.Setting{{ID: h2.SettingInitialWindowSize, Val: 1}, {ID: h2.SettingInitialWindowSize, Val: 2}}, maxFrame/12)

func open(r *raw, id uint32) error {
	return r.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: r.encode(post()...), EndHeaders: true})
}

// A small block that refers to one large entry again and again stands for a huge
// head.
func TestHeaderBombsAreRefused(t *testing.T) {
	f := start(t, Config{})
	r := f.dial()
	block := r.encode(get("x-a", strings.Repeat("b", 3000))...)
	block = append(block, bytes.Repeat([]byte{0x80 | 62}, 10_000)...)
	r.must(r.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndStream: true, EndHeaders: true}))
	if o := r.receive(1); o.status != "431" {
		t.Errorf("got %+v", o)
	}
	r.alive()
}

// A client that does not read its answer does not fill our memory, and does not
// keep its stream.
func TestSlowReadersAreTimedOut(t *testing.T) {
	var read atomic.Int64
	f := start(t, Config{WriteTimeout: 100 * time.Millisecond, Handle: func(e *exchange.Exchange) *exchange.Response {
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: counted{&read}, Length: -1}}
	}})
	r := f.dial()
	r.headers(1, true, get()...)
	if o := r.receive(1); !o.wasReset || o.reset != h2.ErrCodeInternal || len(o.body) != initialWindow {
		t.Errorf("%d bytes, reset %v with %v", len(o.body), o.wasReset, o.reset)
	}
	if n := read.Load(); n > initialWindow+2*copyBuffer {
		t.Errorf("%d bytes were read of the upstream", n)
	}
	r.alive()
}

type counted struct{ n *atomic.Int64 }

func (c counted) Read(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
func (counted) Close() error { return nil }

func TestSlowBodiesAreTimedOut(t *testing.T) {
	f := start(t, Config{BodyTimeout: 50 * time.Millisecond})
	r := f.dial()
	r.headers(1, false, post()...)
	r.must(r.WriteData(1, false, []byte("x")))
	if o := r.receive(1); o.status != "400" {
		t.Errorf("got %+v", o)
	}
	r.alive()
}

// Whoever trickles a body keeps to every single time limit, and yet not to the
// minimum rate.
func TestBodiesThatTrickleAreTimedOut(t *testing.T) {
	f := start(t, Config{BodyTimeout: 200 * time.Millisecond})
	r := f.dial()
	r.headers(1, false, post()...)
	answered := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-answered:
				tick.Stop()
				return
			case <-tick.C:
				r.must(r.WriteData(1, false, []byte("x")))
			}
		}
	})
	o := r.receive(1)
	close(answered)
	sending.Wait()
	if o.status != "400" || !strings.Contains(o.body, "slowly") {
		t.Errorf("got %+v", o)
	}
	r.alive()
}

// Whom the connection's window keeps from sending, since others' bodies fill it
// that nobody reads, is not slow.
func TestBodiesThatAreHeldBackAreNotTimedOut(t *testing.T) {
	t.Parallel()
	const limit = 600 * time.Millisecond
	release := make(chan struct{})
	waits := make(chan struct{}, connWindow/streamWindow)
	f := start(t, Config{BodyTimeout: limit, Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/full" {
			waits <- struct{}{}
			<-release
			_, _ = io.ReadFull(e.Request.Body.Reader, make([]byte, streamWindow))
			return text(200, "")
		}
		n, err := io.Copy(io.Discard, e.Request.Body.Reader)
		if err != nil {
			return text(400, err.Error())
		}
		return text(200, strconv.FormatInt(n, 10))
	}})
	r := f.dial()
	full := []string{":method", "POST", ":scheme", "http", ":path", "/full", ":authority", "a"}
	id := uint32(1)
	for range connWindow / streamWindow {
		r.headers(id, false, full...)
		<-waits
		for range streamWindow / maxFrame {
			r.must(r.WriteData(id, false, make([]byte, maxFrame)))
		}
		id += 2
	}
	r.headers(id, false, post()...)
	r.alive()
	time.Sleep(2 * limit) // what must not end it has no event
	close(release)
	r.await(id, func(o *outcome) bool { return o.window > 0 })
	r.must(r.WriteData(id, true, []byte("late")))
	if o := r.receive(id); o.status != "200" || o.body != "4" {
		t.Errorf("got %+v", o)
	}
}

// A stream of gRPC may be silent, before and behind the head of its answer.
func TestStreamsOfGRPCMayBeSilent(t *testing.T) {
	f := start(t, Config{BodyTimeout: 20 * time.Millisecond})
	r := f.dial()
	r.headers(1, false, post("content-type", "application/grpc+proto")...)
	time.Sleep(100 * time.Millisecond) // what must not end it has no event
	r.must(r.WriteData(1, true, []byte("late")))
	if o := r.receive(1); o.status != "200" || !strings.Contains(o.body, "body=late") {
		t.Errorf("got %+v", o)
	}
}

// FuzzFrames holds the server to its word: whatever bytes come, it neither
// panics nor hangs, and every request ends.
func FuzzFrames(f *testing.F) {
	var seed bytes.Buffer
	framer := h2.NewFramer(&seed, nil)
	framer.WriteSettings()
	r := &raw{t: f}
	r.encoder = newEncoder(&r.block)
	framer.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode(post("content-length", "3")...), EndHeaders: true})
	framer.WriteData(1, false, []byte("abc"))
	framer.WriteHeaders(h2.HeadersFrameParam{StreamID: 1, BlockFragment: r.encode("x-a", "b"), EndHeaders: true, EndStream: true})
	framer.WriteWindowUpdate(0, 10)
	framer.WritePing(false, [8]byte{})
	framer.WriteRSTStream(1, 8)
	f.Add(seed.Bytes())
	framer.WriteHeaders(h2.HeadersFrameParam{StreamID: 3, BlockFragment: r.encode(get()...)[:4]})
	framer.WriteContinuation(3, true, r.encode(get()...)[4:])
	f.Add(seed.Bytes())
	f.Fuzz(func(t *testing.T, frames []byte) {
		server := NewServer(Config{
			Handle: func(e *exchange.Exchange) *exchange.Response {
				if r := e.Request.Body.Reader; r != nil {
					n, _ := io.Copy(io.Discard, r)
					if length := e.Request.Body.Length; length >= 0 && n > length {
						t.Errorf("%d bytes of %d", n, length)
					}
				}
				if p := e.Request.Path; p == "" || p[0] != '/' && p != "*" || e.Request.Host == "" {
					t.Errorf("path %q, host %q", p, e.Request.Host)
				}
				return text(200, "fine")
			},
			Refuse: func(e *exchange.Exchange, reason string, status int) *exchange.Response { return text(status, reason) },
		})
		serveBytes(t, server, append([]byte(Preface), frames...))
	})
}

// Of a request that is refused for want of a place, all the rest may be under way.
func TestTheRestOfARefusedRequestIsNoAttack(t *testing.T) {
	h := newHold()
	f := start(t, Config{Handle: h.handle})
	r := f.dial()
	for i := range uint32(maxStreams) {
		r.headers(2*i+1, true, get()...)
		<-h.entered
	}
	const refused = 2*maxStreams + 1
	r.headers(refused, false, post()...)
	for range 2 * mostResets {
		r.must(r.WriteData(refused, false, []byte("x")))
	}
	r.headers(refused, true, "x-sum", "1")
	r.alive()
	close(h.release)
	if o := r.receive(1); o.status != "200" {
		t.Errorf("got %+v", o)
	}
}

// Heads of answers may pile up while a write waits for a client that reads slowly;
// what it says meanwhile is no flood.
func TestSlowReadersMaySpeak(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	ping := append(appendFrameHeader(nil, 8, h2.FramePing, 0, 0), make([]byte, 8)...)
	c := newConn(NewServer(Config{}), near, &admission.Conn{}, ping)
	c.greeted, c.flushing, c.out = true, true, make([]byte, 1<<20)
	fh, err := c.framer.ReadFrameHeader()
	if err == nil {
		err = c.frame(fh)
	}
	if err != nil {
		t.Error(err)
	}
}
