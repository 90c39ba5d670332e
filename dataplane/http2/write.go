package http2

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
)

const (
	// maxFrame is the largest payload that is sent or accepted: the default, which
	// every peer takes (RFC 9113, 4.2).
	maxFrame = 16 << 10
	// outLimit is how much data may wait to be written before its senders wait.
	outLimit = 64 << 10
	// keepOut is the largest buffer that a connection keeps between writes.
	keepOut = 32 << 10
)

func appendFrameHeader(dst []byte, length int, kind h2.FrameType, flags h2.Flags, id uint32) []byte {
	return append(dst, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags),
		byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

// appendBlock appends a header block as HEADERS and, as needed, CONTINUATION.
func appendBlock(dst []byte, id uint32, block []byte, end bool) []byte {
	kind, flags := h2.FrameHeaders, h2.Flags(0)
	if end {
		flags = h2.FlagHeadersEndStream
	}
	for {
		n := min(len(block), maxFrame)
		if n == len(block) {
			flags |= h2.FlagHeadersEndHeaders
		}
		dst = append(appendFrameHeader(dst, n, kind, flags, id), block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return dst
		}
		kind, flags = h2.FrameContinuation, 0
	}
}

// blockLocked queues a header block.
func (c *conn) blockLocked(id uint32, block []byte, end bool) {
	if c.shrunk {
		// The client made its table smaller and is told that we do not use it.
		c.shrunk = false
		block = append([]byte{tableSizeZero}, block...)
	}
	c.out = appendBlock(c.out, id, block, end)
}

// continueLocked queues a 100 (Continue).
func (c *conn) continueLocked(id uint32) {
	if s := c.streams[id]; s != nil && !s.headed {
		c.blockLocked(id, appendStatus(nil, 100), false)
		c.flushLocked()
	}
}

// resetLocked queues RST_STREAM.
func (c *conn) resetLocked(id uint32, code h2.ErrCode) {
	c.out = appendFrameHeader(c.out, 4, h2.FrameRSTStream, 0, id)
	c.out = append(c.out, byte(code>>24), byte(code>>16), byte(code>>8), byte(code))
}

// goAwayLocked queues GOAWAY; last is the highest stream that is, or may yet be,
// answered.
func (c *conn) goAwayLocked(last uint32, code h2.ErrCode, why string) {
	c.out = appendFrameHeader(c.out, 8+len(why), h2.FrameGoAway, 0, 0)
	c.out = append(c.out, byte(last>>24), byte(last>>16), byte(last>>8), byte(last),
		byte(code>>24), byte(code>>16), byte(code>>8), byte(code))
	c.out = append(c.out, why...)
}

// flushLocked writes what is queued, until nothing is, unless somebody else is
// doing that already. It lets go of the lock in between.
func (c *conn) flushLocked() {
	if c.flushing || len(c.out) == 0 {
		return
	}
	c.flushing = true
	c.drainOutLocked()
}

// kickLocked is flushLocked on another goroutine: the reader never writes, so that
// it always reads on.
func (c *conn) kickLocked() {
	if c.flushing || len(c.out) == 0 {
		return
	}
	c.flushing = true
	go func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.drainOutLocked()
	}()
}

func (c *conn) drainOutLocked() {
	for len(c.out) > 0 && c.broken == nil {
		if c.running > 1 && len(c.out) < outLimit/2 {
			// Others may be about to answer too: one write carries them all.
			c.mu.Unlock()
			runtime.Gosched()
			c.mu.Lock()
		}
		out := c.out
		c.out, c.answers = c.spare[:0], 0
		c.mu.Unlock()
		err := c.write(out)
		c.mu.Lock()
		if c.spare = nil; cap(out) <= keepOut {
			c.spare = out[:0]
		}
		c.room.Broadcast()
		if err != nil && c.broken == nil {
			c.broken = err
			why := errClientGone
			if errors.Is(err, os.ErrDeadlineExceeded) {
				why = fmt.Errorf("%w: %w", exchange.ErrClientSlow, err)
			}
			c.failLocked(why)
			c.wakeReaderLocked()
		}
	}
	if c.broken != nil {
		c.out = nil
	}
	c.flushing = false
	c.room.Broadcast()
}

// write writes with a deadline, which is moved only when it would be short: it
// ends between three quarters of WriteTimeout and the whole of it. It belongs to
// whoever has set flushing.
func (c *conn) write(p []byte) error {
	timeout := c.server.config.WriteTimeout
	if c.writeBy.IsZero() || time.Until(c.writeBy) < timeout*3/4 {
		c.writeBy = time.Now().Add(timeout)
		if err := c.nc.SetWriteDeadline(c.writeBy); err != nil {
			return err
		}
	}
	_, err := c.nc.Write(p)
	return err
}
