package http2

import (
	"io"
	"slices"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// frame reads the rest of a frame and acts on it.
func (c *conn) frame(fh h2.FrameHeader) error {
	c.kind = fh.Type
	if !c.greeted && (fh.Type != h2.FrameSettings || fh.Flags.Has(h2.FlagSettingsAck)) {
		return connectionError{h2.ErrCodeProtocol, "the first frame is not SETTINGS"}
	}
	if int(fh.Length) > c.in.Buffered() && !c.armed {
		timeout := c.server.config.HeaderTimeout
		if fh.Type == h2.FrameData {
			timeout = c.server.config.BodyTimeout
		}
		c.deadline(time.Now().Add(timeout))
	}
	if fh.Type == h2.FrameData {
		return c.data(fh)
	}
	frame, err := c.framer.ReadFrameForHeader(fh)
	if err != nil {
		return err
	}
	switch f := frame.(type) {
	case *h2.HeadersFrame:
		return c.headers(f)
	case *h2.ContinuationFrame:
		return c.continuation(f)
	case *h2.PushPromiseFrame:
		return connectionError{h2.ErrCodeProtocol, "PUSH_PROMISE from a client"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.budget.frame(); err != nil {
		return err
	}
	before := len(c.out)
	switch f := frame.(type) {
	case *h2.SettingsFrame:
		err = c.settingsLocked(f)
	case *h2.PingFrame:
		err = c.pingLocked(f)
	case *h2.WindowUpdateFrame:
		err = c.windowLocked(f)
	case *h2.RSTStreamFrame:
		err = c.rstLocked(f)
	case *h2.GoAwayFrame:
		c.final = true
		c.restLocked()
	}
	if c.answers += len(c.out) - before; err == nil && c.answers > mostAnswers {
		err = connectionError{h2.ErrCodeEnhanceYourCalm, "answers to control frames are not read"}
	}
	return err
}

// headers takes the beginning of a header block.
func (c *conn) headers(f *h2.HeadersFrame) error {
	if f.HeadersEnded() {
		return c.complete(f.StreamID, f.StreamEnded(), f.HeaderBlockFragment())
	}
	c.open, c.ends, c.pieces = f.StreamID, f.StreamEnded(), 0
	c.block = append(c.block[:0], f.HeaderBlockFragment()...)
	c.deadline(time.Now().Add(c.server.config.HeaderTimeout))
	return nil
}

// continuation takes more of it. Somewhat more than the limit is read, so that it
// can be answered with 431.
func (c *conn) continuation(f *h2.ContinuationFrame) error {
	c.block = append(c.block, f.HeaderBlockFragment()...)
	if c.pieces++; c.pieces > mostContinuations || len(c.block) > 2*c.server.config.Settings().HeaderLimit() {
		return connectionError{h2.ErrCodeEnhanceYourCalm, "header block too long"}
	}
	if !f.HeadersEnded() {
		return nil
	}
	c.open = 0
	err := c.complete(f.StreamID, c.ends, c.block)
	if cap(c.block) > keepOut {
		c.block = nil
	}
	return err
}

// complete takes a whole header block: a request, a trailer, or what comes too
// late.
func (c *conn) complete(id uint32, ended bool, block []byte) error {
	c.mu.Lock()
	s, last := c.streams[id], c.last
	known, reset := false, false
	if s == nil && id <= last {
		known, reset = c.wasLocked(id)
	}
	c.mu.Unlock()
	switch {
	case s != nil:
		return c.trailer(id, s, ended, block)
	case id%2 == 0:
		return connectionError{h2.ErrCodeProtocol, "a client's streams have odd numbers"}
	case id > last:
		return c.request(id, ended, block)
	case reset:
		return c.decode(nil, 0, false, block)
	case known:
		return connectionError{h2.ErrCodeStreamClosed, "HEADERS on a closed stream"}
	}
	return connectionError{h2.ErrCodeProtocol, "streams are opened in ascending order"}
}

// decode decodes a block into head. The decoder's state is the connection's, so a
// block that cannot be decoded ends it.
func (c *conn) decode(to *exchange.Header, limit int, trailer bool, block []byte) error {
	c.head.begin(to, limit, trailer)
	_, err := c.decoder.Write(block)
	if end := c.decoder.Close(); err == nil {
		err = end
	}
	if err != nil {
		return connectionError{h2.ErrCodeCompression, err.Error()}
	}
	c.head.end()
	return nil
}

// request opens a stream.
func (c *conn) request(id uint32, ended bool, block []byte) error {
	c.mu.Lock()
	c.last = id
	refuse := c.final || len(c.streams) >= maxStreams || c.running >= 2*maxStreams
	c.mu.Unlock()
	if refuse {
		if err := c.decode(nil, 0, false, block); err != nil {
			return err
		}
		c.mu.Lock()
		c.forgetLocked(id, true) // the rest of it may be under way
		c.mu.Unlock()
		return c.streamError(id, h2.ErrCodeRefusedStream)
	}
	settings := c.server.config.Settings()
	s := c.server.worker()
	s.begin(c, id)
	if err := c.decode(&s.exchange.Request.Header, settings.HeaderLimit(), false, block); err != nil {
		s.exchange.Reset()
		if !c.server.park(s) {
			close(s.wake)
		}
		return err
	}
	c.admit(s, ended, settings)
	c.mu.Lock()
	s.ended, s.window = ended, c.grant
	c.streams[id] = s
	c.running++
	c.mu.Unlock()
	s.wake <- struct{}{}
	return nil
}

// admit decides whether the request reaches the handler. It is the reader's,
// since admission.Conn is used by one goroutine at a time.
func (c *conn) admit(s *stream, ended bool, settings *admission.Settings) {
	e := &s.exchange
	s.refused = c.head.request(&e.Request, ended)
	if !ended {
		s.body = newBody(c, s.id, c.head.length, settings.BodyLimit())
		s.body.proceed = c.head.expects == 1
		s.body.patient = admission.Quiet(&e.Request)
	}
	if s.refused != nil {
		c.on.Meet(e)
		return
	}
	if s.body != nil {
		e.Request.Body = exchange.Body{Reader: s.body, Length: c.head.length, Trailer: s.body.Trailer}
	}
	s.refused = c.on.Admit(e, settings)
}

// trailer takes the fields behind a body. Unless it is still open under its id, the
// stream may be another request's by now.
func (c *conn) trailer(id uint32, s *stream, ended bool, block []byte) error {
	var fields exchange.Header
	if err := c.decode(&fields, c.server.config.Settings().HeaderLimit(), true, block); err != nil {
		return err
	}
	c.mu.Lock()
	if c.streams[id] != s {
		c.mu.Unlock()
		return nil
	}
	switch {
	case s.ended:
		c.mu.Unlock()
		return c.streamError(id, h2.ErrCodeStreamClosed)
	case !ended, c.head.flaw != nil, c.head.tooLarge, s.body == nil:
		c.mu.Unlock()
		return c.streamError(id, h2.ErrCodeProtocol)
	}
	s.ended = true
	fields.DelFunc(func(f exchange.Field) bool { return !admission.Trailer(f.Name) })
	s.body.endLocked(fields)
	c.mu.Unlock()
	return nil
}

// data takes a DATA frame, whose payload is read past the framer.
func (c *conn) data(fh h2.FrameHeader) error {
	if fh.StreamID == 0 {
		return connectionError{h2.ErrCodeProtocol, "DATA on stream 0"}
	}
	spare := c.server.chunks.Get().(*chunk)
	payload := spare.data[:fh.Length]
	if _, err := io.ReadFull(c.in, payload); err != nil {
		c.server.chunks.Put(spare)
		return err
	}
	spare.from, spare.to = 0, len(payload)
	if fh.Flags.Has(h2.FlagDataPadded) {
		if len(payload) == 0 || int(payload[0]) >= len(payload) {
			c.server.chunks.Put(spare)
			return connectionError{h2.ErrCodeProtocol, "padding longer than the frame"}
		}
		spare.from, spare.to = 1, len(payload)-int(payload[0])
	}
	kept, refused, err := c.deliver(fh, spare)
	if !kept {
		c.server.chunks.Put(spare)
	}
	if err == nil && refused != h2.ErrCodeNo {
		err = c.streamError(fh.StreamID, refused)
	}
	return err
}

// deliver hands a payload to its stream, and tells whether that keeps it, and what
// is wrong with the stream or the connection.
func (c *conn) deliver(fh h2.FrameHeader, spare *chunk) (kept bool, refused h2.ErrCode, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.kickLocked()
	ended := fh.Flags.Has(h2.FlagDataEndStream)
	size, padding := int64(fh.Length), int64(fh.Length)-int64(spare.to-spare.from)
	if padding == size && !ended {
		if err := c.budget.frame(); err != nil {
			return false, h2.ErrCodeNo, err
		}
	}
	if c.allowed -= size; c.allowed < 0 {
		return false, h2.ErrCodeNo, connectionError{h2.ErrCodeFlowControl, "more data than the connection's window"}
	}
	if c.allowed == 0 {
		c.heldSince = time.Now()
	}
	s := c.streams[fh.StreamID]
	if s == nil || s.ended || s.body == nil {
		c.creditLocked(size)
		if s == nil && fh.StreamID > c.last {
			return false, h2.ErrCodeNo, connectionError{h2.ErrCodeProtocol, "DATA on an idle stream"}
		}
		if _, reset := c.wasLocked(fh.StreamID); s == nil && reset {
			if at := slices.Index(c.unwanted, fh.StreamID); at >= 0 && ended {
				c.unwanted[at] = 0 // it has ended in time
			}
			return false, h2.ErrCodeNo, nil
		}
		return false, h2.ErrCodeStreamClosed, nil
	}
	b := s.body
	if b.window -= size; b.window < 0 {
		c.creditLocked(size)
		return false, h2.ErrCodeFlowControl, nil
	}
	b.creditLocked(padding)
	c.creditLocked(padding)
	kept = b.acceptLocked(spare)
	if ended {
		s.ended = true
		b.endLocked(exchange.Header{})
	}
	return kept, h2.ErrCodeNo, nil
}

// creditLocked lets the client send n bytes more on the connection: in few, large
// steps, and smaller ones the less it may send.
func (c *conn) creditLocked(n int64) {
	if c.owed += n; c.owed < connWindow/2 && c.owed < c.allowed || c.owed == 0 {
		return
	}
	c.out = appendWindowUpdate(c.out, 0, uint32(c.owed))
	if c.allowed += c.owed; !c.heldSince.IsZero() {
		c.held, c.heldSince = c.held+time.Since(c.heldSince), time.Time{}
	}
	c.owed = 0
}

// heldLocked returns for how long the client has not been allowed to send: others'
// bodies that nobody read had filled the connection's window.
func (c *conn) heldLocked(now time.Time) time.Duration {
	if c.heldSince.IsZero() {
		return c.held
	}
	return c.held + now.Sub(c.heldSince)
}

// settingsLocked applies and acknowledges SETTINGS (RFC 9113, 6.5).
func (c *conn) settingsLocked(f *h2.SettingsFrame) error {
	c.greeted = true
	if f.IsAck() {
		return nil
	}
	for i := range f.NumSettings() {
		one := f.Setting(i)
		if err := one.Valid(); err != nil {
			return err
		}
		// One may go through all streams, and a frame holds 2,730.
		if err := c.budget.frame(); err != nil {
			return err
		}
		switch one.ID {
		case h2.SettingInitialWindowSize:
			change := int64(one.Val) - c.grant
			c.grant = int64(one.Val)
			for _, s := range c.streams {
				if s.window += change; s.window > maxWindow {
					return connectionError{h2.ErrCodeFlowControl, "window beyond 2^31-1"}
				}
				s.change.Broadcast()
			}
		case h2.SettingHeaderTableSize:
			c.shrunk = c.shrunk || one.Val < tableSize
		}
	}
	c.out = appendFrameHeader(c.out, 0, h2.FrameSettings, h2.FlagSettingsAck, 0)
	c.kickLocked()
	return nil
}

func (c *conn) pingLocked(f *h2.PingFrame) error {
	if !f.IsAck() {
		c.out = append(appendFrameHeader(c.out, 8, h2.FramePing, h2.FlagPingAck, 0), f.Data[:]...)
		c.kickLocked()
		return nil
	}
	if f.Data == drainPing && c.draining {
		go c.drained()
	}
	return nil
}

// windowLocked lets us send more.
func (c *conn) windowLocked(f *h2.WindowUpdateFrame) error {
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > maxWindow {
			return connectionError{h2.ErrCodeFlowControl, "window beyond 2^31-1"}
		}
		for _, s := range c.streams {
			s.change.Broadcast()
		}
		return nil
	}
	s := c.streams[f.StreamID]
	switch {
	case s != nil:
		if s.window += int64(f.Increment); s.window > maxWindow {
			return h2.StreamError{StreamID: f.StreamID, Code: h2.ErrCodeFlowControl}
		}
		s.change.Broadcast()
	case f.StreamID > c.last:
		return connectionError{h2.ErrCodeProtocol, "WINDOW_UPDATE on an idle stream"}
	}
	return nil
}

// rstLocked ends a stream that the client gives up.
func (c *conn) rstLocked(f *h2.RSTStreamFrame) error {
	if f.StreamID > c.last {
		return connectionError{h2.ErrCodeProtocol, "RST_STREAM on an idle stream"}
	}
	s := c.streams[f.StreamID]
	if s == nil {
		return nil
	}
	c.forgetLocked(f.StreamID, false)
	s.killLocked(errClientReset)
	return c.budget.reset()
}
