package http2

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/http1"
)

// littleOut is how much a request writes that waits for its answer meanwhile: it
// cannot leave before that is written.
const littleOut = 32 << 10

// blockLocked queues a header block.
func (c *ClientConn) blockLocked(id uint32, block []byte, end bool) {
	if c.shrunk {
		// The upstream made its table smaller and is told that we do not use it.
		c.shrunk = false
		block = append([]byte{tableSizeZero}, block...)
	}
	c.out = appendBlock(c.out, id, block, end)
}

// kickLocked has another goroutine write what is queued, unless somebody does
// already. The reader never writes, so that it always reads on.
func (c *ClientConn) kickLocked() {
	if c.flushing || len(c.out) == 0 || c.broken != nil {
		return
	}
	c.flushing = true
	go c.drain()
}

func (c *ClientConn) drainOut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drainLocked(nil)
}

// flushLocked writes what is queued while the stream waits for its answer anyway:
// small requests need no other goroutine.
func (c *ClientConn) flushLocked(s *ClientStream) {
	if c.flushing || len(c.out) == 0 || c.broken != nil {
		return
	}
	c.flushing, s.writing = true, true
	c.drainLocked(s)
	s.writing = false
	c.kickLocked()
}

// leaveLocked lets go of a request that is over while it writes for all: behind the
// write that is under way others write on. One that has lasted for glance would keep
// it for longer: the socket takes not even little, and the connection ends.
func (s *ClientStream) leaveLocked(now time.Time) {
	c := s.c
	switch lasts := now.Sub(c.writes); {
	case c.writes.IsZero():
		s.timer.Reset(glance)
	case lasts < glance:
		s.timer.Reset(glance - lasts)
	default:
		c.cutLocked(fmt.Errorf("write to upstream: %w", http1.ErrTimeout))
	}
}

// drainLocked writes what is queued, until nothing is, or the stream, whose request
// waits meanwhile, has its answer, or it would have to write much for others. It
// lets go of the lock in between, and of flushing at the end.
func (c *ClientConn) drainLocked(s *ClientStream) {
	for len(c.out) > 0 && c.broken == nil && (s == nil || !s.headed && s.err == nil && len(c.out) <= littleOut) {
		if len(c.streams) > 1 && len(c.out) < outLimit/2 {
			// Others may be about to ask too: one write carries them all.
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
		out, parting := c.out, c.ending != nil
		c.out, c.answers = c.spare[:0], 0
		c.taken += uint64(len(out))
		c.writes = time.Now()
		c.mu.Unlock()
		n, err := c.write(out, parting)
		c.mu.Lock()
		c.writes = time.Time{}
		if c.spare = nil; cap(out) <= keepOut {
			c.spare = out[:0]
		}
		if err != nil && c.broken == nil {
			c.brokenLocked(err, len(out)-n)
		}
		c.room.Broadcast()
	}
	if c.broken != nil {
		c.out = nil
	}
	c.flushing = false
	c.room.Broadcast()
}

// brokenLocked notes that writing has failed before the last bytes of what was to
// be written. Answers may have come all the same: the reader finds the end.
func (c *ClientConn) brokenLocked(err error, unwritten int) {
	c.taken -= uint64(unwritten)
	c.broken = fmt.Errorf("write to upstream: %w", err)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// It takes nothing more, and so sends nothing of use.
		c.stopLocked(c.broken)
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(afterlife))
}

// write writes with a deadline, which is moved only when it would be short: it
// ends between three quarters of clientWrite and the whole of it. It belongs to
// whoever has set flushing. parting: the deadline is set, for the last time.
func (c *ClientConn) write(p []byte, parting bool) (int, error) {
	if !parting && (c.writeBy.IsZero() || time.Until(c.writeBy) < clientWrite*3/4) {
		c.writeBy = time.Now().Add(clientWrite)
		if err := c.nc.SetWriteDeadline(c.writeBy); err != nil {
			return 0, err
		}
	}
	return c.nc.Write(p)
}

// dataLocked queues as much of the data as the windows and the queue let, and
// returns the rest. last: the stream ends with it.
func (s *ClientStream) dataLocked(data []byte, last bool) []byte {
	c := s.c
	for len(data) > 0 && len(c.out) <= outLimit {
		n := min(int64(len(data)), maxFrame, s.window, c.window)
		if n <= 0 {
			break
		}
		flags := h2.Flags(0)
		if last && n == int64(len(data)) {
			flags = h2.FlagDataEndStream
		}
		c.out = append(appendFrameHeader(c.out, int(n), h2.FrameData, flags, s.id), data[:n]...)
		s.window -= n
		c.window -= n
		c.budget.sent()
		data = data[n:]
	}
	return data
}
