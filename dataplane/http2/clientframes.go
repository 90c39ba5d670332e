package http2

import (
	"fmt"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/http1"
)

// control acts on a frame that is neither DATA nor of a header block.
func (c *ClientConn) control(frame h2.Frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.budget.frame(); err != nil {
		return err
	}
	before := len(c.out)
	var err error
	switch f := frame.(type) {
	case *h2.SettingsFrame:
		err = c.settingsLocked(f)
	case *h2.PingFrame:
		c.pongLocked(f)
	case *h2.WindowUpdateFrame:
		err = c.windowLocked(f)
	case *h2.RSTStreamFrame:
		err = c.rstLocked(f)
	case *h2.GoAwayFrame:
		err = c.goAwayLocked(f)
	case *h2.PushPromiseFrame:
		// We have said that we take none (RFC 9113, 8.4).
		err = connectionError{h2.ErrCodeProtocol, "PUSH_PROMISE, which is disabled"}
	}
	if c.answers += max(0, len(c.out)-before); err == nil && c.answers > mostAnswers {
		err = connectionError{h2.ErrCodeEnhanceYourCalm, "answers to control frames are not read"}
	}
	return err
}

// settingsLocked applies and acknowledges SETTINGS (RFC 9113, 6.5).
func (c *ClientConn) settingsLocked(f *h2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if !c.greeted {
		c.greeted, c.most = true, mostStreams
		c.config.Changed()
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
		case h2.SettingEnablePush:
			if one.Val != 0 {
				return connectionError{h2.ErrCodeProtocol, "a server that enables push"}
			}
		case h2.SettingMaxConcurrentStreams:
			c.most = min(int64(one.Val), mostStreams)
			c.config.Changed()
		case h2.SettingInitialWindowSize:
			change := int64(one.Val) - c.grant
			c.grant = int64(one.Val)
			for _, s := range c.streams {
				if s.window += change; s.window > maxWindow {
					return connectionError{h2.ErrCodeFlowControl, "window beyond 2^31-1"}
				}
				s.mayLocked()
			}
		case h2.SettingHeaderTableSize:
			c.shrunk = c.shrunk || one.Val < tableSize
		}
	}
	c.out = appendFrameHeader(c.out, 0, h2.FrameSettings, h2.FlagSettingsAck, 0)
	c.kickLocked()
	return nil
}

// mayLocked wakes a sender that may have waited for a window.
func (s *ClientStream) mayLocked() {
	if s.sender.running {
		s.change.Broadcast()
	}
}

func (c *ClientConn) pongLocked(f *h2.PingFrame) {
	switch {
	case !f.IsAck():
		c.out = append(appendFrameHeader(c.out, 8, h2.FramePing, h2.FlagPingAck, 0), f.Data[:]...)
		c.kickLocked()
	case f.Data == resetPing && c.resets.covered > 0:
		c.confirmedLocked()
	}
}

// strangerLocked says what is wrong with a frame on a stream that is not open, if
// it cannot have been on its way when we closed the stream.
func (c *ClientConn) strangerLocked(id uint32, kind h2.FrameType) error {
	if id%2 == 0 || id >= c.next {
		return connectionError{h2.ErrCodeProtocol, kind.String() + " on an idle stream"}
	}
	return nil
}

// closedLocked is strangerLocked for frames that nothing may follow a stream's end
// with: only what we have reset may still send them.
func (c *ClientConn) closedLocked(id uint32, kind h2.FrameType) error {
	if err := c.strangerLocked(id, kind); err != nil {
		return err
	}
	for i := range c.closed {
		if c.closed[i].id == id && !c.closed[i].reset {
			return connectionError{h2.ErrCodeStreamClosed, kind.String() + " on a closed stream"}
		}
	}
	return nil
}

// windowLocked lets us send more.
func (c *ClientConn) windowLocked(f *h2.WindowUpdateFrame) error {
	if f.StreamID == 0 {
		if c.window += int64(f.Increment); c.window > maxWindow {
			return connectionError{h2.ErrCodeFlowControl, "window beyond 2^31-1"}
		}
		for _, s := range c.streams {
			s.mayLocked()
		}
		return nil
	}
	s := c.streams[f.StreamID]
	if s == nil {
		return c.strangerLocked(f.StreamID, f.Type)
	}
	if s.window += int64(f.Increment); s.window > maxWindow {
		s.refuseLocked(h2.ErrCodeFlowControl, fmt.Errorf("%w: window beyond 2^31-1", http1.ErrAnswer))
		return nil
	}
	s.mayLocked()
	return nil
}

// refuseLocked resets a stream that the upstream has got wrong.
func (s *ClientStream) refuseLocked(code h2.ErrCode, why error) {
	s.resetLocked(code)
	s.failLocked(why)
}

// rstLocked ends a stream that the upstream gives up. Behind a complete answer that
// only says that the rest of the request is not wanted (RFC 9113, 8.1).
func (c *ClientConn) rstLocked(f *h2.RSTStreamFrame) error {
	s := c.streams[f.StreamID]
	if s == nil {
		return c.strangerLocked(f.StreamID, f.Type)
	}
	c.forgetLocked(s, false)
	switch {
	case s.ended:
	case f.ErrCode == h2.ErrCodeRefusedStream && !s.headed:
		s.failLocked(fmt.Errorf("%w: %v", http1.ErrUnsent, f.ErrCode))
	default:
		s.failLocked(fmt.Errorf("%w: stream reset: %v", http1.ErrAnswer, f.ErrCode))
	}
	return nil
}

// goAwayLocked takes the upstream's farewell (RFC 9113, 6.8): the streams up to its
// last go on, what is beyond was not processed.
func (c *ClientConn) goAwayLocked(f *h2.GoAwayFrame) error {
	if f.LastStreamID > c.goodbye {
		return connectionError{h2.ErrCodeProtocol, "a GOAWAY that takes an earlier one back"}
	}
	c.goodbye, c.final, c.refused = f.LastStreamID, true, true
	for id, s := range c.streams {
		if id > f.LastStreamID {
			c.stray += s.allowed
			c.forgetLocked(s, true)
			s.failLocked(fmt.Errorf("%w: GOAWAY: %v", http1.ErrUnsent, f.ErrCode))
		}
	}
	c.restLocked()
	return nil
}
