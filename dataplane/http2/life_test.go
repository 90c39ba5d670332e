package http2

import (
	"errors"
	"io"
	"sync/atomic"
	"testing"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// hold answers once released, or when the client gives up.
type hold struct {
	entered, release chan struct{}
	canceled         chan error
}

func newHold() *hold {
	return &hold{make(chan struct{}, 10), make(chan struct{}), make(chan error, 10)}
}

func (h *hold) handle(e *exchange.Exchange) *exchange.Response {
	h.entered <- struct{}{}
	select {
	case <-h.release:
	case <-e.Context.Done():
		h.canceled <- e.Context.Err()
	}
	return text(200, "done")
}

func TestResetCancelsThatExchangeOnly(t *testing.T) {
	h := newHold()
	f := start(t, Config{Handle: h.handle})
	r := f.dial()
	r.headers(1, true, get()...)
	r.headers(3, true, get()...)
	<-h.entered
	<-h.entered
	r.must(r.WriteRSTStream(1, h2.ErrCodeCancel))
	if err := <-h.canceled; err == nil {
		t.Error("no error")
	}
	close(h.release)
	if o := r.receive(3); o.status != "200" {
		t.Errorf("the other got %+v", o)
	}
}

func TestLostConnectionCancels(t *testing.T) {
	h := newHold()
	f := start(t, Config{Handle: h.handle})
	r := f.dial()
	r.headers(1, true, get()...)
	<-h.entered
	r.Conn.Close()
	<-h.canceled
}

// An open answer is interrupted when the client gives it up, and never after it
// has ended.
func TestResetInterruptsAnOpenAnswer(t *testing.T) {
	body, upstream := io.Pipe()
	var interrupted atomic.Pointer[error]
	ended := make(chan struct{})
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		e.Done = append(e.Done, func(*exchange.Exchange) { close(ended) })
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: body, Length: -1}, Interrupt: func(cause error) {
			interrupted.Store(&cause)
			upstream.CloseWithError(cause)
		}}
	}})
	r := f.dial()
	r.headers(1, true, get()...)
	if _, err := upstream.Write([]byte("first")); err != nil {
		t.Fatal(err)
	}
	r.await(1, func(o *outcome) bool { return o.body == "first" })
	r.must(r.WriteRSTStream(1, h2.ErrCodeCancel))
	<-ended
	if cause := interrupted.Load(); cause == nil || !errors.Is(*cause, errClientReset) {
		t.Error("cause", cause)
	}
}

func TestAnswersThatBreakAreReset(t *testing.T) {
	for name, body := range map[string]exchange.Body{
		"error":    {Reader: broken{}, Length: -1},
		"short":    {Reader: io.NopCloser(&io.LimitedReader{R: endless{}, N: 10}), Length: 11},
		"long":     {Reader: io.NopCloser(&io.LimitedReader{R: endless{}, N: 100_000}), Length: 50_000},
		"long, by": {Reader: io.NopCloser(&io.LimitedReader{R: endless{}, N: 12}), Length: 11},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
				return &exchange.Response{Status: 200, Body: body}
			}})
			r := f.dial()
			r.must(r.WriteWindowUpdate(0, 1<<20))
			r.must(r.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 1 << 20}))
			r.headers(1, true, get()...)
			if o := r.receive(1); !o.wasReset || o.reset != h2.ErrCodeInternal {
				t.Errorf("got reset %v %v after %d bytes", o.wasReset, o.reset, len(o.body))
			}
			r.alive()
		})
	}
}

// A stream, its memory and its goroutine are used again: what an answer that the
// client gave up has left must not go out with the next one.
func TestNothingOfAnAnswerStaysForTheNext(t *testing.T) {
	waits := make(chan struct{}, 1)
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Method == "HEAD" {
			return &exchange.Response{Status: 204}
		}
		resp := text(200, "x")
		resp.Body.Trailer = func() exchange.Header {
			waits <- struct{}{}
			return exchange.HeaderOf(exchange.Field{Name: "X-Secret", Value: "another's"})
		}
		return resp
	}})
	r := f.dial()
	r.must(r.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 0}))
	for id := uint32(1); id < 40; id += 4 {
		r.headers(id, true, get()...)
		<-waits
		r.must(r.WriteRSTStream(id, h2.ErrCodeCancel))
		r.alive()
		r.headers(id+2, true, append([]string{":method", "HEAD"}, get()[2:]...)...)
		if o := r.receive(id + 2); o.status != "204" || len(o.trailer) > 0 {
			t.Fatalf("got %+v", o)
		}
	}
}

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("in a body") }
func (panicking) Close() error             { return nil }

// What fails in a body or at the end takes its stream with it, and nothing else.
func TestPanicsBehindTheHandler(t *testing.T) {
	for name, handle := range map[string]func(*exchange.Exchange) *exchange.Response{
		"body": func(*exchange.Exchange) *exchange.Response {
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: panicking{}, Length: -1}}
		},
		"end": func(e *exchange.Exchange) *exchange.Response {
			e.Done = append(e.Done, func(*exchange.Exchange) { panic("at the end") })
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: broken{}, Length: -1}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, Config{Handle: handle})
			r := f.dial()
			r.headers(1, true, get()...)
			if o := r.receive(1); !o.wasReset || o.reset != h2.ErrCodeInternal {
				t.Errorf("got %+v", o)
			}
			r.alive()
			r.Conn.Close()
			f.empty()
			f.mu.Lock()
			defer f.mu.Unlock()
			if len(f.ends) != 1 || f.ends[0].Err == nil {
				t.Errorf("ends: %+v", f.ends)
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }
func (broken) Close() error             { return nil }

// Both directions flow at once: each message is answered before the next is sent,
// and the answer's trailer follows the request's end.
func TestBothDirectionsAtOnce(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		return &exchange.Response{Status: 200, Body: exchange.Body{
			Reader: e.Request.Body.Reader, Length: -1,
			Trailer: func() exchange.Header { return exchange.HeaderOf(exchange.Field{Name: "Grpc-Status", Value: "0"}) },
		}}
	}})
	r := f.dial()
	r.headers(1, false, post()...)
	for _, s := range []string{"one", "two", "three"} {
		r.must(r.WriteData(1, false, []byte(s)))
		if o := r.await(1, func(o *outcome) bool { return o.body != "" }); o.body != s {
			t.Fatalf("got %+v, want %s", o, s)
		}
	}
	r.must(r.WriteData(1, true, nil))
	if o := r.receive(1); !o.ended || o.wasReset || o.header["grpc-status"] != "0" {
		t.Errorf("got %+v", o)
	}
}

// An answer that does not wait for the request's end tells the client to stop, but
// not before it can have read the answer.
func TestEarlyAnswers(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response { return text(200, "enough") }})
	r := f.dial()
	r.headers(1, false, post()...)
	if o := r.await(1, func(o *outcome) bool { return o.ended }); o.status != "200" || o.wasReset {
		t.Errorf("got %+v", o)
	}
	if o := r.await(1, func(o *outcome) bool { return o.wasReset }); o.reset != h2.ErrCodeNo {
		t.Errorf("got %+v", o)
	}
	// What is still under way is overlooked, also a trailer.
	r.must(r.WriteData(1, false, []byte("more")))
	r.headers(1, true, "x-a", "b")
	r.alive()
	// Who has ended in time is not told.
	r.headers(3, false, post()...)
	r.await(3, func(o *outcome) bool { return o.ended })
	r.must(r.WriteData(3, true, []byte("all")))
	r.headers(5, false, post()...)
	r.await(5, func(o *outcome) bool { return o.ended })
	told := false
	r.await(5, func(o *outcome) bool {
		told = told || o.other == 3
		return o.wasReset
	})
	if told {
		t.Error("a stream that has ended is reset")
	}
}

func TestPanicsAreAnswered(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response { panic("x") }})
	r := f.dial()
	r.headers(1, true, get()...)
	if o := r.receive(1); o.status != "500" {
		t.Errorf("got %+v", o)
	}
	r.alive()
}

func TestHeadAndNoContent(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/none" {
			return &exchange.Response{Status: 204}
		}
		return text(200, "hello")
	}})
	r := f.dial()
	r.headers(1, true, ":method", "HEAD", ":scheme", "http", ":path", "/", ":authority", "a")
	if o := r.receive(1); o.status != "200" || o.body != "" || o.header["content-length"] != "5" {
		t.Errorf("got %+v", o)
	}
	r.headers(3, true, ":method", "GET", ":scheme", "http", ":path", "/none", ":authority", "a")
	if o := r.receive(3); o.status != "204" || o.header["content-length"] != "" {
		t.Errorf("got %+v", o)
	}
}

// Requests that were under way when the drain began are answered.
func TestDrain(t *testing.T) {
	h := newHold()
	f := start(t, Config{Handle: h.handle})
	r, idle := f.dial(), f.dial()
	idle.alive()
	r.headers(1, true, get()...)
	<-h.entered
	f.server.Drain()
	f.server.Drain()
	ping := func(r *raw) {
		for {
			frame, err := r.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if p, ok := frame.(*h2.PingFrame); ok && !p.IsAck() {
				r.must(r.WritePing(true, p.Data))
				return
			}
		}
	}
	r.headers(3, true, get()...) // it has not read the GOAWAY yet
	<-h.entered
	ping(r)
	ping(idle)
	if o := idle.await(0, func(*outcome) bool { return false }); o.goAway != h2.ErrCodeNo || !o.gone {
		t.Errorf("idle: %+v", o)
	}
	close(h.release)
	if o := r.receive(1); o.status != "200" {
		t.Errorf("got %+v", o)
	}
	r.await(0, func(*outcome) bool { return false })
	f.empty()
	late := f.dial()
	late.headers(1, true, get()...)
	if o := late.receive(1); o.status != "200" || !o.gone {
		t.Errorf("a connection that was under way: %+v", o)
	}
}

// Before the drain, answers say goodbye, and a new connection gets its first.
func TestGoodbye(t *testing.T) {
	f := start(t, Config{})
	before := f.dial()
	before.headers(1, true, get()...)
	before.receive(1)
	f.server.Goodbye()
	before.alive()
	after := f.dial()
	for i, r := range []*raw{before, after} {
		id := uint32(3 - 2*i)
		r.headers(id, true, get()...)
		if o := r.await(id, func(o *outcome) bool { return o.ended && o.gone }); o.status != "200" || o.goAway != h2.ErrCodeNo {
			t.Errorf("got %+v", o)
		}
	}
}

func TestCut(t *testing.T) {
	h := newHold()
	f := start(t, Config{Handle: h.handle})
	r := f.dial()
	r.headers(1, true, get()...)
	<-h.entered
	if n := f.server.Open(); n != 1 {
		t.Error(n, "open")
	}
	f.server.Cut()
	<-h.canceled
	f.empty()
	if o := r.await(1, func(*outcome) bool { return false }); !o.closed || o.status != "" {
		t.Errorf("got %+v", o)
	}
}
