package http2

import (
	"fmt"
	"io"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// chunk is a piece of a body on its way in: the payload of a DATA frame, or of
// several small ones.
type chunk struct {
	from, to int
	data     [maxFrame]byte
}

// errSlow is what a body says whose client does not keep to the minimum rate.
var errSlow = fmt.Errorf("%w: the body comes too slowly", exchange.ErrMalformed)

// body is what a request carries. The reader of the connection fills it; one
// other goroutine reads it, which may go on after the exchange: then it gets
// errEnded. So a body is never reused.
type body struct {
	c  *conn
	id uint32
	// wake belongs to c.mu.
	wake sync.Cond

	// Guarded by c.mu.
	chunks   []*chunk
	declared int64 // Content-Length still to come, -1 when not said
	left     int64 // of the limit
	window   int64 // what the client may send
	owed     int64 // read, but not given back to the window
	err      error // what Read returns behind the chunks; io.EOF at the end
	proceed  bool  // the client waits for 100 (Continue)
	pace     admission.Pace
	patient  bool // silence is no attack
	trailer  exchange.Header
}

func newBody(c *conn, id uint32, declared, limit int64) *body {
	b := &body{c: c, id: id, declared: declared, left: limit, window: streamWindow, pace: admission.Pace{Patience: c.server.config.BodyTimeout}}
	b.wake.L = &c.mu
	return b
}

// Read implements io.Reader. Its errors wrap exchange.ErrMalformed,
// exchange.ErrTooLarge, or say why the stream has ended.
func (b *body) Read(p []byte) (int, error) {
	c := b.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.proceed {
		b.proceed = false
		c.continueLocked(b.id)
	}
	b.waitLocked()
	if len(b.chunks) == 0 {
		return 0, b.err
	}
	n := 0
	for n < len(p) && len(b.chunks) > 0 {
		first := b.chunks[0]
		k := copy(p[n:], first.data[first.from:first.to])
		first.from += k
		n += k
		if first.from == first.to {
			c.server.chunks.Put(first)
			b.chunks[0] = nil
			b.chunks = b.chunks[1:]
		}
	}
	b.pace.Received(n)
	if b.left -= int64(n); b.left < 0 {
		b.dropLocked(fmt.Errorf("%w: body beyond its limit", exchange.ErrTooLarge))
		return 0, b.err
	}
	b.creditLocked(int64(n))
	c.creditLocked(int64(n))
	c.flushLocked()
	if len(b.chunks) == 0 && b.err == io.EOF {
		return n, io.EOF
	}
	return n, nil
}

// Buffered returns how many bytes can be read without waiting.
func (b *body) Buffered() int {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	n := 0
	for _, one := range b.chunks {
		n += one.to - one.from
	}
	return n
}

// waitLocked waits until there is something to return, or the client is too slow.
func (b *body) waitLocked() {
	if len(b.chunks) > 0 || b.err != nil {
		return
	}
	c, begun := b.c, time.Now()
	held := c.heldLocked(begun)
	// waited leaves out what the client could not help.
	waited := func() time.Duration {
		now := time.Now()
		return now.Sub(begun) - (c.heldLocked(now) - held)
	}
	late := false
	var timer *time.Timer
	if !b.patient {
		timer = time.AfterFunc(b.pace.Allows(), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			late = true
			b.wake.Broadcast()
		})
		defer timer.Stop()
	}
	for len(b.chunks) == 0 && b.err == nil {
		if late && !b.patient {
			left := b.pace.Allows() - waited()
			if left <= 0 {
				b.err = errSlow
				return
			}
			late = false
			timer.Reset(left)
		}
		b.wake.Wait()
	}
	b.pace.Waited(waited())
}

// Close leaves the rest unread.
func (b *body) Close() error {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	b.dropLocked(errEnded)
	b.c.flushLocked()
	return nil
}

// Trailer returns the trailer fields, once Read has returned io.EOF.
func (b *body) Trailer() exchange.Header {
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	return b.trailer
}

// dropLocked fails the body and gives what was not read back to the connection.
func (b *body) dropLocked(err error) {
	if b.err == nil || b.err == io.EOF {
		b.err = err
	}
	unread := int64(0)
	for _, one := range b.chunks {
		unread += int64(one.to - one.from)
		b.c.server.chunks.Put(one)
	}
	b.chunks = nil
	b.c.creditLocked(unread)
	b.wake.Broadcast()
}

// failLocked ends the body behind what has come.
func (b *body) failLocked(err error) {
	if b.err == nil {
		b.err = err
	}
	b.wake.Broadcast()
}

// acceptLocked takes a payload of n bytes, of which spare holds the data, and
// tells whether it keeps spare.
func (b *body) acceptLocked(spare *chunk) (kept bool) {
	n := int64(spare.to - spare.from)
	if b.err != nil {
		b.c.creditLocked(n)
		return false
	}
	if b.declared >= 0 {
		if b.declared -= n; b.declared < 0 {
			b.c.creditLocked(n)
			b.failLocked(errLength)
			return false
		}
	}
	if n == 0 {
		return false
	}
	if last := len(b.chunks) - 1; last >= 0 && int(n) <= len(b.chunks[last].data)-b.chunks[last].to {
		at := b.chunks[last]
		at.to += copy(at.data[at.to:], spare.data[spare.from:spare.to])
	} else {
		b.chunks, kept = append(b.chunks, spare), true
	}
	b.wake.Broadcast()
	return kept
}

// endLocked notes the end of the body.
func (b *body) endLocked(trailer exchange.Header) {
	if b.declared > 0 {
		b.failLocked(errLength)
		return
	}
	b.trailer = trailer
	b.failLocked(io.EOF)
}

// creditLocked lets the client send n bytes more on the stream: in few, large
// steps.
func (b *body) creditLocked(n int64) {
	if b.owed += n; b.owed < streamWindow/2 || b.err != nil {
		return
	}
	b.c.out = appendWindowUpdate(b.c.out, b.id, uint32(b.owed))
	b.window += b.owed
	b.owed = 0
}

func appendWindowUpdate(dst []byte, id, n uint32) []byte {
	dst = appendFrameHeader(dst, 4, h2.FrameWindowUpdate, 0, id)
	return append(dst, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}
