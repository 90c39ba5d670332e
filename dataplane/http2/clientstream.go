package http2

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// ClientStream is one request and its answer: Do, then what Do returns, once. It is
// used again for another request of the same connection; what may come too late
// for the one before finds it by its id or its generation, and so does not find it.
type ClientStream struct {
	c *ClientConn
	// change belongs to c.mu. The caller of Do waits on it, and the sender.
	change sync.Cond
	timer  *time.Timer // tick

	// Made once.
	done      func(*exchange.Exchange)
	interrupt func(error)
	trailers  func() exchange.Header
	sendBody  func()

	// Owned by the caller of Do until it is done.
	call  http1.Call
	block []byte
	tail  []byte // the request's trailer
	resp  exchange.Response

	// Guarded by c.mu.
	generation uint64
	fields     []exchange.Field // of the answer's head
	behind     []exchange.Field // of its trailer
	chunks     []*chunk
	progress

	sender clientSender
}

// progress is what is known of a request under way. It is guarded by ClientConn.mu.
type progress struct {
	id     uint32 // 0 before the head is queued
	at     uint64 // where the head begins in all that is written
	live   bool   // frames may be sent
	sent   bool   // the request is queued to its end
	window int64  // what may be sent

	headed   bool // the answer's head is there
	alone    bool // and ends it
	ended    bool // the answer is complete
	empty    bool // nothing can follow the head
	interim  int  // 1xx answers so far
	status   int
	length   int64 // of Content-Length, -1 without
	declared int64 // of length still to come, -1 when not said
	allowed  int64 // what the upstream may send
	owed     int64 // read, but not given back to the window
	first    int   // of chunks
	closed   bool  // the reader was closed
	err      error // why nothing more comes; io.EOF at the end

	limit   time.Time // when the wait that is under way ends; zero for never
	timed   bool      // one is
	writing bool      // the caller of Do writes for all
	unwatch func() bool
}

func newClientStream(c *ClientConn) *ClientStream {
	s := &ClientStream{c: c}
	s.change.L = &c.mu
	s.done = func(*exchange.Exchange) { s.finish() }
	s.interrupt, s.trailers, s.sendBody = s.Interrupt, s.trailerFields, s.send
	s.timer = time.AfterFunc(time.Hour, s.tick)
	s.timer.Stop()
	return s
}

// Do sends a request and returns the head of its answer; the body streams. done
// ends the exchange and is called exactly once, when nobody uses the response any
// more; its argument is ignored, and may be nil. The response, its fields, its body
// and trailer hold until then. After an error there is nothing left to do. When done
// has been called, or after an error, nobody reads the request's body, which is
// closed when it was not needed to its end. The trailer of a body that is Whole is
// sent if it is known by now.
//
// Errors are those of http1.ClientConn.Do. What the upstream has certainly not
// processed is http1.ErrUnsent, also when it was sent (RFC 9113, 8.7); with ErrBegun
// some of the body was read.
func (s *ClientStream) Do(call *http1.Call) (resp *exchange.Response, done func(*exchange.Exchange), err error) {
	s.call = *call
	if err = s.do(); err == nil {
		return &s.resp, s.done, nil
	}
	// What else failed when the client left failed for that.
	if cause := context.Cause(call.Context); cause != nil {
		err = fmt.Errorf("ask upstream: %w", cause)
	}
	s.finish()
	return nil, nil, err
}

func (s *ClientStream) do() error {
	if err := context.Cause(s.call.Context); err != nil {
		return fmt.Errorf("ask upstream: %w", err)
	}
	if !s.call.Now.Before(s.call.Deadline) {
		return http1.ErrTimeout
	}
	r := s.call.Request
	streams := !s.call.Whole && r.Body.Reader != nil && r.Body.Length != 0
	length := int64(len(s.call.Body))
	if streams {
		length = r.Body.Length
	}
	if err := s.compose(length); err != nil {
		return err
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if err := s.openLocked(streams); err != nil {
		return err
	}
	if err := s.awaitLocked(); err != nil {
		return err
	}
	s.respondLocked()
	return nil
}

// Release gives the stream back in place of Do.
func (s *ClientStream) Release() { s.finish() }

// compose encodes the head, and the trailer of a body that is there.
func (s *ClientStream) compose(length int64) (err error) {
	r := s.call.Request
	s.tail = s.tail[:0]
	if s.block, err = appendRequest(s.block[:0], s.c.config.Scheme, r, length); err != nil {
		return err
	}
	if s.call.Whole && r.Body.Trailer != nil {
		trailer := r.Body.Trailer()
		s.tail, err = appendRequestTrailer(s.tail, &trailer)
	}
	return err
}

// openLocked queues the head and what is there of the body, and starts the sender
// of what is not.
func (s *ClientStream) openLocked(streams bool) error {
	c := s.c
	if c.refused || c.ending != nil || c.broken != nil {
		return http1.ErrUnsent
	}
	s.id = c.next
	if c.next += 2; c.next > maxWindow {
		// There are no more ids (RFC 9113, 5.1.1).
		c.final, c.refused = true, true
	}
	c.reserved--
	s.at, s.live, s.window, s.allowed = c.taken+uint64(len(c.out)), true, c.grant, clientStreamWindow
	c.streams[s.id] = s
	c.budget.answered()
	body := s.call.Body
	if !s.call.Whole {
		body = nil
	}
	s.sent = !streams && len(body) == 0 && len(s.tail) == 0
	c.blockLocked(s.id, s.block, s.sent)
	if s.sent {
		return nil
	}
	if !streams {
		if body = s.dataLocked(body, len(s.tail) == 0); len(body) == 0 {
			s.endLocked()
			return nil
		}
	}
	s.startLocked(body, streams)
	return nil
}

// endLocked notes that the request is queued to its end, but for the trailer.
func (s *ClientStream) endLocked() {
	if len(s.tail) > 0 {
		s.c.blockLocked(s.id, s.tail, true)
	}
	if s.sent = true; s.ended {
		s.c.forgetLocked(s, false)
	}
}

// awaitLocked writes what is queued, and waits for the head of the answer.
func (s *ClientStream) awaitLocked() error {
	s.limit, s.timed = s.call.Deadline, true
	s.timer.Reset(min(glance, s.call.Deadline.Sub(s.call.Now)))
	if s.call.Watch {
		s.watchLocked()
	}
	s.c.flushLocked(s)
	for !s.headed && s.err == nil {
		s.change.Wait()
	}
	s.timed = false
	s.timer.Stop()
	switch {
	case s.headed:
		return nil
	case s.sender.begun && errors.Is(s.err, http1.ErrUnsent):
		return fmt.Errorf("%w: %w", ErrBegun, s.err)
	}
	return s.err
}

// tick is called when a wait has lasted for glance, or to its limit. It may come
// late, to another request: that it finds waiting, and its limit not reached.
func (s *ClientStream) tick() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.timed {
		return
	}
	now := time.Now()
	left := s.limit.Sub(now)
	cause := context.Cause(s.call.Context)
	if cause == nil && !s.limit.IsZero() && left <= 0 {
		cause = http1.ErrTimeout
	}
	if cause != nil {
		s.giveUpLocked(h2.ErrCodeCancel, cause)
		if s.writing {
			s.leaveLocked(now)
		}
		return
	}
	s.watchLocked()
	switch {
	case s.writing:
		s.timer.Reset(min(glance, left))
	case !s.limit.IsZero():
		s.timer.Reset(left)
	}
}

// watchLocked lets the end of the context interrupt from now on.
func (s *ClientStream) watchLocked() {
	ctx := s.call.Context
	if s.unwatch != nil || ctx.Done() == nil {
		return
	}
	generation := s.generation
	s.unwatch = context.AfterFunc(ctx, func() {
		s.c.mu.Lock()
		defer s.c.mu.Unlock()
		if s.generation == generation {
			s.giveUpLocked(h2.ErrCodeCancel, context.Cause(ctx))
		}
	})
}

// Interrupt ends what is under way with the cause, which readers return. It is
// safe for concurrent use, any number of times, until done is called.
func (s *ClientStream) Interrupt(cause error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.giveUpLocked(h2.ErrCodeCancel, cause)
}

// giveUpLocked resets the stream, and fails what is under way on it at once: what
// has come is not read any more.
func (s *ClientStream) giveUpLocked(code h2.ErrCode, why error) {
	s.resetLocked(code)
	s.dropLocked()
	if s.err != nil && s.ended {
		s.err = why // the end was not read
	}
	s.failLocked(why)
}

// resetLocked tells the upstream that the stream is given up, unless it is over.
func (s *ClientStream) resetLocked(code h2.ErrCode) {
	if !s.live {
		return
	}
	s.c.stray += s.allowed
	s.c.resetLocked(s.id, code)
	s.c.forgetLocked(s, true)
}

// failLocked ends the answer behind what has come. Nothing is sent any more.
func (s *ClientStream) failLocked(why error) {
	if s.err == nil {
		s.err = why
	}
	if s.live {
		s.c.forgetLocked(s, true)
	}
	s.change.Broadcast()
}

// forgetLocked takes a stream off the list of open ones.
func (c *ClientConn) forgetLocked(s *ClientStream, reset bool) {
	delete(c.streams, s.id)
	c.closed[c.closedAt%remembered] = closedStream{s.id, reset}
	c.closedAt++
	s.live = false
	if s.sender.running {
		s.change.Broadcast()
		c.room.Broadcast()
	}
	c.vacantLocked()
}

// vacantLocked notes that a request has left.
func (c *ClientConn) vacantLocked() {
	if len(c.streams)+c.reserved == 0 {
		c.beat.since = time.Since(c.start)
		c.restLocked()
	}
	c.config.Changed()
}

// finish ends the exchange, whatever is under way, and gives the stream back.
func (s *ClientStream) finish() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.id == 0 {
		c.reserved--
		c.vacantLocked()
	}
	s.resetLocked(h2.ErrCodeCancel)
	s.stopLocked()
	s.dropLocked()
	if s.unwatch != nil {
		s.unwatch()
		s.unwatch = nil
	}
	if fields := s.resp.Header.Fields(); cap(fields) > 0 {
		s.fields = fields
	}
	s.fields, s.behind = emptied(s.fields), emptied(s.behind)
	if cap(s.block) > keepOut {
		s.block = nil
	}
	s.resp, s.call = exchange.Response{}, http1.Call{}
	s.progress, s.sender = progress{}, clientSender{}
	s.generation++
	if len(c.free) < mostFree {
		c.free = append(c.free, s)
	}
}
