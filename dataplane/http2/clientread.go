package http2

import (
	"errors"
	"fmt"
	"io"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/http1"
)

const (
	frameHeader = 9
	// mostWoken is how many streams wait to be told while there is more to read.
	mostWoken = 16
)

// read reads frames until one ends the connection, and returns why.
func (c *ClientConn) read() error {
	for {
		if len(c.woken) >= mostWoken || c.in.Buffered() < frameHeader {
			c.wake()
		}
		fh, err := c.framer.ReadFrameHeader()
		if err == nil {
			if int(fh.Length) > c.in.Buffered() {
				c.wake()
			}
			err = c.frame(fh)
		}
		if err == nil {
			continue
		}
		if err = c.readError(err); err != nil {
			return err
		}
	}
}

// wake tells the streams that have something new. They are told late, when there is
// nothing more to read, so that an answer that came whole is read whole.
func (c *ClientConn) wake() {
	if len(c.woken) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.woken {
		s.change.Broadcast()
		c.woken[i] = nil
	}
	c.woken = c.woken[:0]
}

// later has a stream told.
func (c *ClientConn) later(s *ClientStream) {
	if last := len(c.woken) - 1; last < 0 || c.woken[last] != s {
		c.woken = append(c.woken, s)
	}
}

// readError ends the stream, and then is nil, or says why the connection ends.
func (c *ClientConn) readError(err error) error {
	var stream h2.StreamError
	var connection h2.ConnectionError
	switch {
	case errors.As(err, &stream):
		c.mu.Lock()
		defer c.mu.Unlock()
		s := c.streams[stream.StreamID]
		if s == nil {
			if err := c.budget.frame(); err != nil {
				return err
			}
			return c.strangerLocked(stream.StreamID, c.kind)
		}
		s.refuseLocked(stream.Code, fmt.Errorf("%w: %w", http1.ErrAnswer, err))
		return nil
	case errors.As(err, &connection):
		why := "invalid frame"
		if detail := c.framer.ErrorDetail(); detail != nil {
			why = detail.Error()
		}
		return connectionError{h2.ErrCode(connection), why}
	case errors.Is(err, h2.ErrFrameTooLarge):
		return connectionError{h2.ErrCodeFrameSize, err.Error()}
	}
	return err
}

// frame reads the rest of a frame and acts on it.
func (c *ClientConn) frame(fh h2.FrameHeader) error {
	c.kind = fh.Type
	if !c.greeted && (fh.Type != h2.FrameSettings || fh.Flags.Has(h2.FlagSettingsAck)) {
		return connectionError{h2.ErrCodeProtocol, "the first frame is not SETTINGS"}
	}
	switch fh.Type {
	case h2.FrameData:
		return c.data(fh)
	case h2.FrameHeaders, h2.FrameContinuation:
		return c.fragment(fh)
	}
	frame, err := c.framer.ReadFrameForHeader(fh)
	if err != nil {
		return err
	}
	return c.control(frame)
}

// fragment takes a piece of a header block, past the framer, which has seen to it
// that nothing comes between the pieces.
func (c *ClientConn) fragment(fh h2.FrameHeader) error {
	first := fh.Type == h2.FrameHeaders
	if fh.StreamID == 0 {
		return connectionError{h2.ErrCodeProtocol, "a header block on stream 0"}
	}
	if first {
		c.block, c.pieces, c.ends = c.block[:0], 0, fh.Flags.Has(h2.FlagHeadersEndStream)
	} else if c.pieces++; c.pieces > mostContinuations || len(c.block) > 2*maxAnswerHead {
		return connectionError{h2.ErrCodeEnhanceYourCalm, "header block too long"}
	}
	start, size := len(c.block), int(fh.Length)
	c.block = append(c.block, make([]byte, size)...)
	if _, err := io.ReadFull(c.in, c.block[start:]); err != nil {
		return err
	}
	if first {
		from, to, err := within(fh, c.block)
		if err != nil {
			return err
		}
		c.block = append(c.block[:0], c.block[from:to]...)
	}
	if !fh.Flags.Has(h2.FlagHeadersEndHeaders) {
		return nil
	}
	err := c.complete(fh.StreamID, c.ends, c.block)
	if cap(c.block) > keepOut {
		c.block = nil
	}
	return err
}

// within finds the fragment in the payload of a HEADERS frame (RFC 9113, 6.2).
func within(fh h2.FrameHeader, payload []byte) (from, to int, err error) {
	to = len(payload)
	if fh.Flags.Has(h2.FlagHeadersPadded) {
		if to == 0 {
			return 0, 0, connectionError{h2.ErrCodeFrameSize, "HEADERS too short"}
		}
		from, to = 1, to-int(payload[0])
	}
	if fh.Flags.Has(h2.FlagHeadersPriority) {
		from += 5
	}
	if from > to {
		return 0, 0, connectionError{h2.ErrCodeProtocol, "padding longer than the frame"}
	}
	return from, to, nil
}

// complete takes a whole header block: the head of an answer, an interim one, a
// trailer, or what comes too late.
func (c *ClientConn) complete(id uint32, ended bool, block []byte) error {
	c.mu.Lock()
	s := c.streams[id]
	if s == nil {
		err := c.closedLocked(id, h2.FrameHeaders)
		if err == nil {
			err = c.budget.frame()
		}
		if err != nil {
			c.mu.Unlock()
			return err
		}
	}
	trailer := s != nil && s.headed
	c.mu.Unlock()
	c.head.begin(s == nil, trailer)
	_, err := c.decoder.Write(block)
	if end := c.decoder.Close(); err == nil {
		err = end
	}
	if err != nil {
		return connectionError{h2.ErrCodeCompression, err.Error()}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beat.pings = 0
	if s == nil || c.streams[id] != s {
		return nil
	}
	if err := c.head.verdict(ended); err != nil {
		s.refuseLocked(h2.ErrCodeProtocol, err)
		return nil
	}
	return c.takeLocked(s, ended)
}

// takeLocked hands the block that was decoded to its stream.
func (c *ClientConn) takeLocked(s *ClientStream, ended bool) error {
	h := &c.head
	switch {
	case s.ended:
		s.refuseLocked(h2.ErrCodeStreamClosed, fmt.Errorf("%w: HEADERS behind its end", http1.ErrAnswer))
		return nil
	case h.trailer:
		s.behind, h.fields = h.fields, s.behind[:0]
		if err := s.completeLocked(); err != nil {
			s.refuseLocked(h2.ErrCodeProtocol, err)
		}
	case h.status < 200:
		if s.interim++; s.interim > maxInterim {
			s.refuseLocked(h2.ErrCodeEnhanceYourCalm, fmt.Errorf("%w: more than %d interim answers", http1.ErrAnswer, maxInterim))
		}
		return c.budget.frame()
	default:
		s.headed, s.alone, s.status, s.length, s.declared = true, ended, h.status, h.length, h.length
		s.fields, h.fields = h.fields, s.fields[:0]
		s.empty = s.call.Request.Method == "HEAD" || h.status == 204 || h.status == 304
		if ended {
			if err := s.completeLocked(); err != nil {
				s.headed = false
				s.refuseLocked(h2.ErrCodeProtocol, err)
			}
		}
	}
	c.later(s)
	return nil
}

// data takes a DATA frame, whose payload is read past the framer.
func (c *ClientConn) data(fh h2.FrameHeader) error {
	if fh.StreamID == 0 {
		return connectionError{h2.ErrCodeProtocol, "DATA on stream 0"}
	}
	spare := clientChunks.Get().(*chunk)
	payload := spare.data[:fh.Length]
	if _, err := io.ReadFull(c.in, payload); err != nil {
		clientChunks.Put(spare)
		return err
	}
	spare.from, spare.to = 0, len(payload)
	if fh.Flags.Has(h2.FlagDataPadded) {
		if len(payload) == 0 || int(payload[0]) >= len(payload) {
			clientChunks.Put(spare)
			return connectionError{h2.ErrCodeProtocol, "padding longer than the frame"}
		}
		spare.from, spare.to = 1, len(payload)-int(payload[0])
	}
	kept, err := c.deliver(fh, spare)
	if !kept {
		clientChunks.Put(spare)
	}
	return err
}

// deliver hands a payload to its stream, and tells whether that keeps it. The
// connection's window is given back at once: how much waits for slow clients is
// bounded by the windows of their streams, and none of them holds up others.
func (c *ClientConn) deliver(fh h2.FrameHeader, spare *chunk) (kept bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ended := fh.Flags.Has(h2.FlagDataEndStream)
	size := int64(fh.Length)
	if spare.from == spare.to && !ended {
		if err := c.budget.frame(); err != nil {
			return false, err
		}
	}
	if c.allowed -= size; c.allowed < 0 {
		return false, connectionError{h2.ErrCodeFlowControl, "more data than the connection's window"}
	}
	if c.owed += size; c.owed >= clientConnWindow/2 {
		c.out = appendWindowUpdate(c.out, 0, uint32(c.owed))
		c.allowed += c.owed
		c.owed = 0
		c.kickLocked()
	}
	c.beat.pings = 0
	s := c.streams[fh.StreamID]
	if s == nil {
		if err := c.closedLocked(fh.StreamID, h2.FrameData); err != nil {
			return false, err
		}
		if c.stray -= size; c.stray < 0 {
			return false, connectionError{h2.ErrCodeStreamClosed, "more data on streams that were reset than was on its way"}
		}
		return false, nil
	}
	switch s.allowed -= size; {
	case s.ended:
		s.refuseLocked(h2.ErrCodeStreamClosed, fmt.Errorf("%w: DATA behind its end", http1.ErrAnswer))
		return false, nil
	case !s.headed:
		s.refuseLocked(h2.ErrCodeProtocol, fmt.Errorf("%w: DATA before its head", http1.ErrAnswer))
		return false, nil
	case s.allowed < 0:
		s.refuseLocked(h2.ErrCodeFlowControl, fmt.Errorf("%w: more data than its window", http1.ErrAnswer))
		return false, nil
	}
	s.creditLocked(size - int64(spare.to-spare.from))
	if kept, err = s.acceptLocked(spare); err == nil && ended {
		err = s.completeLocked()
	}
	if err != nil {
		s.refuseLocked(h2.ErrCodeProtocol, err)
	}
	c.later(s)
	return kept, nil
}
