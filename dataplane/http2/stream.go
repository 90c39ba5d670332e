package http2

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// copyBuffer is how much of an answer is in hand at once.
const copyBuffer = 32 << 10

// stream is one request and the goroutine that answers it. Both are used again,
// also on other connections.
type stream struct {
	server *Server
	wake   chan struct{}

	// Set by the reader before it wakes the worker; the worker's until it parks.
	exchange exchange.Exchange
	conn     *conn
	id       uint32
	refused  *admission.Refusal
	context  *streamContext
	body     *body     // nil when the request has none
	change   sync.Cond // of the window, and of interrupting; its L is conn.mu
	block    []byte    // an encoded head that is not queued yet
	tail     []byte    // an encoded trailer

	// Guarded by conn.mu.
	window       int64 // what may be sent
	ended        bool  // the client has sent all
	headed       bool  // the answer's head is queued
	dead         error // why nothing can be sent any more; nil while something can
	interrupt    func(error)
	interrupting bool
}

// begin binds the stream to a request.
func (s *stream) begin(c *conn, id uint32) {
	s.conn, s.id, s.refused, s.body, s.context = c, id, nil, nil, &streamContext{}
	s.change.L = &c.mu
	s.ended, s.headed, s.dead, s.interrupt = false, false, nil, nil
	// An answer that was given up may have left its own.
	s.block, s.tail = s.block[:0], s.tail[:0]
	s.exchange.Context = s.context
	s.exchange.Received = time.Now()
}

// work answers requests until the server does not park it any more.
func (s *stream) work() {
	for range s.wake {
		s.run()
		if !s.server.park(s) {
			return
		}
	}
}

func (s *stream) run() {
	e, c := &s.exchange, s.conn
	s.guard(func() { e.Result.Err = s.dying(s.respond(e, s.answer(e))) })
	c.mu.Lock()
	s.interrupt = nil
	for s.interrupting {
		s.change.Wait()
	}
	if s.body != nil {
		s.body.dropLocked(errEnded)
		c.kickLocked()
	}
	c.mu.Unlock()
	s.context.cancel()
	for len(e.Done) > 0 {
		s.guard(e.End)
	}
	e.Reset()
	s.conn, s.body, s.context = nil, nil, nil
	c.done()
}

// guard has what panics outside of the handler, in a body or as the exchange ends,
// end the stream and nothing else.
func (s *stream) guard(f func()) {
	defer func() {
		if v := recover(); v != nil {
			s.server.config.Log.Error("panic while answering a request", slog.String("request_id", s.exchange.ID), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			s.exchange.Result.Err = exchange.ErrInternal
			s.abort()
		}
	}()
	f()
}

// answer asks the handler, or for the refusal that the request deserves.
func (s *stream) answer(e *exchange.Exchange) (resp *exchange.Response) {
	config := &s.server.config
	if s.refused != nil {
		e.Why.Detail = s.refused.Detail.Error()
		return config.Refuse(e, s.refused.Reason, s.refused.Status)
	}
	defer func() {
		if v := recover(); v != nil {
			config.Log.Error("panic while handling a request", slog.String("request_id", e.ID), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			resp = config.Refuse(e, admission.ReasonInternal, 500)
		}
	}()
	return config.Handle(e)
}

// respond writes the answer and closes the stream. It returns why the answer was
// cut short.
func (s *stream) respond(e *exchange.Exchange, resp *exchange.Response) error {
	if resp.Body.Reader != nil {
		defer resp.Body.Reader.Close()
	}
	if resp.Status < 200 || resp.Status > 599 {
		s.server.config.Log.Error("response with a status that is no answer", slog.String("request_id", e.ID), slog.Int("status", resp.Status))
		resp = s.server.config.Refuse(e, admission.ReasonInternal, 500)
	}
	e.Result.Status = resp.Status
	if resp.Interrupt != nil {
		if dead := s.mayInterrupt(resp.Interrupt); dead != nil {
			resp.Interrupt(dead)
		}
	}
	s.block = appendHead(s.block[:0], e, resp, s.server.dateAt(time.Now()))
	var err error
	if resp.Body.Reader == nil || e.Request.Method == "HEAD" || resp.Status == 204 || resp.Status == 304 {
		err = s.send(nil, true)
	} else {
		err = s.copy(e, resp)
	}
	if fail := e.Fail; err != nil && fail != nil && len(s.block) > 0 && s.dying(nil) == nil {
		// Nothing of the answer was sent.
		e.Fail = nil
		return s.respond(e, fail(e, err))
	}
	if err != nil {
		s.abort()
	}
	return err
}

// dying puts why the stream has ended, if it has before its answer, in place of
// what failed for that.
func (s *stream) dying(err error) error {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if s.dead != nil && s.dead != errEnded {
		return s.dead
	}
	return err
}

// mayInterrupt lets the end of the stream interrupt the response; when it has
// come already it returns why.
func (s *stream) mayInterrupt(f func(error)) error {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	s.interrupt = f
	return s.dead
}

// there tells whether some of a body can be read without waiting: then its first
// bytes travel with the head.
func there(body io.Reader) bool {
	b, ok := body.(interface{ Buffered() int })
	return ok && b.Buffered() > 0
}

var errLonger = errors.New("the answer is longer than it said")

// copy streams a body. What has no length is written as it comes, since a client
// may wait for each event; what is small goes out in one write with its head.
func (s *stream) copy(e *exchange.Exchange, resp *exchange.Response) error {
	pooled := s.server.buffers.Get().(*[copyBuffer]byte)
	defer s.server.buffers.Put(pooled)
	buffer, length := pooled[:], resp.Body.Length
	if length < 0 && !there(resp.Body.Reader) {
		if err := s.send(nil, false); err != nil {
			return err
		}
	}
	have, total := 0, int64(0)
	for {
		n, err := resp.Body.Reader.Read(buffer[have:])
		have += n
		total += int64(n)
		switch {
		case err == io.EOF && total < length:
			return io.ErrUnexpectedEOF
		case err != nil && err != io.EOF:
			return err
		case length >= 0 && total > length:
			return errLonger
		case err == io.EOF:
			s.tail = s.tail[:0]
			if resp.Body.Trailer != nil {
				trailer := resp.Body.Trailer()
				s.tail = appendTrailer(s.tail, &trailer)
			}
			err := s.send(buffer[:have], true)
			if err == nil {
				e.Result.Bytes += int64(have)
			}
			return err
		case have < len(buffer) && length >= 0 && (length < int64(len(buffer)) || total == length):
			continue // the end is near and travels with the last bytes
		}
		if err := s.send(buffer[:have], false); err != nil {
			return err
		}
		e.Result.Bytes += int64(have)
		have = 0
	}
}

// send queues the head, if it is not yet, data, and at the end the trailer, and
// writes them. It waits for the client's windows.
func (s *stream) send(data []byte, end bool) error {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.dead != nil {
		return s.dead
	}
	last := end && len(s.tail) == 0
	if len(s.block) > 0 {
		c.blockLocked(s.id, s.block, last && len(data) == 0)
		s.block, s.headed = s.block[:0], true
		if s.body != nil {
			s.body.patient = true
		}
		if last && len(data) == 0 {
			s.closeLocked()
			c.flushLocked()
			return nil
		}
	}
	for first := true; len(data) > 0 || first && last; first = false {
		n, err := s.waitLocked(len(data))
		if err != nil {
			return err
		}
		flags := h2.Flags(0)
		if last && n == len(data) {
			flags = h2.FlagDataEndStream
		}
		c.out = append(appendFrameHeader(c.out, n, h2.FrameData, flags, s.id), data[:n]...)
		s.window -= int64(n)
		c.window -= int64(n)
		c.budget.sent()
		data = data[n:]
	}
	if end {
		if !last {
			c.blockLocked(s.id, s.tail, true)
			s.tail = s.tail[:0]
		}
		s.closeLocked()
	}
	c.flushLocked()
	return nil
}

// waitLocked waits until some of n bytes may be queued, and returns how many.
func (s *stream) waitLocked(n int) (int, error) {
	c := s.conn
	if n == 0 {
		return 0, s.dead
	}
	for len(c.out) > outLimit && s.dead == nil {
		if c.flushLocked(); len(c.out) > outLimit {
			c.room.Wait()
		}
	}
	if s.dead == nil && min(s.window, c.window) <= 0 {
		c.flushLocked()
		s.waitWindowLocked()
	}
	return int(min(int64(n), maxFrame, s.window, c.window)), s.dead
}

// waitWindowLocked waits, for a limited time, until the client grants more.
func (s *stream) waitWindowLocked() {
	c, expired, timeout := s.conn, false, s.server.config.WriteTimeout
	timer := time.AfterFunc(timeout, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		expired = true
		s.change.Broadcast()
	})
	defer timer.Stop()
	for s.dead == nil && min(s.window, c.window) <= 0 {
		if expired {
			s.dead = fmt.Errorf("%w: no window in %v", exchange.ErrClientSlow, timeout)
			return
		}
		s.change.Wait()
	}
}

// closeLocked closes the stream after its answer. What the client may still be
// sending is not wanted (RFC 9113, 8.1).
func (s *stream) closeLocked() {
	c := s.conn
	if s.dead != nil {
		return
	}
	s.dead = errEnded
	c.budget.answered()
	switch {
	case s.ended:
	case s.refused != nil && s.refused.Status == 400:
		c.resetLocked(s.id, h2.ErrCodeProtocol)
	default:
		c.resetLaterLocked(s.id)
	}
	c.forgetLocked(s.id, !s.ended)
	if c.parting {
		c.drainLocked()
	}
}

// abort resets a stream whose answer cannot be finished: nothing else tells the
// client that it is short.
func (s *stream) abort() {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[s.id] != s {
		return
	}
	c.resetLocked(s.id, h2.ErrCodeInternal)
	c.forgetLocked(s.id, true)
	s.dead = errEnded
	c.flushLocked()
}

// killLocked ends a stream that the client, or its connection, has given up.
func (s *stream) killLocked(why error) {
	if s.dead == nil {
		s.dead = why
	}
	if s.body != nil {
		s.body.failLocked(why)
	}
	s.context.cancel()
	s.change.Broadcast()
	if f := s.interrupt; f != nil {
		s.interrupt, s.interrupting = nil, true
		go func() {
			f(why)
			s.conn.mu.Lock()
			defer s.conn.mu.Unlock()
			s.interrupting = false
			s.change.Broadcast()
		}()
	}
}
