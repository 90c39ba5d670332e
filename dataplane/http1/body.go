package http1

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// drainLimit is how much of a body that nobody wanted is read and dropped, so
// that the connection serves on.
const drainLimit = 256 << 10

var (
	errEnded = errors.New("the exchange has ended")
	errLong  = fmt.Errorf("%w: body beyond its limit", exchange.ErrTooLarge)
)

// body reads a request's body. While an exchange lasts it owns the connection's
// read buffer behind the head.
type body struct {
	conn     *conn
	trailers func() exchange.Header // is trailer
	// ended is set when a read in progress must not go on, answered once the answer
	// has begun: the sender may take its time then.
	ended, answered atomic.Bool

	mu sync.Mutex
	// Guarded by mu, which a reader holds.
	chunked bool
	// left of the body, or of what a chunked one may still bring.
	left   int64
	chunks chunks
	data   int // so many bytes of chunk data lie at the front of the buffer
	last   bool
	pace   admission.Pace
	err    error
	told   bool // the reader knows that the body ended
}

// openBody prepares the reader of a body of the length, -1 for a chunked one. A
// reader that somebody may still hold is not used again.
func (c *conn) openBody(length, limit int64, expects bool) *body {
	if c.body == nil {
		c.body = &body{conn: c}
		c.body.trailers = c.body.trailer
	}
	b := c.body
	b.chunks.reset()
	b.chunked, b.left, b.data, b.last, b.err, b.told = length < 0, length, 0, false, nil, false
	b.pace = admission.Pace{Patience: c.server.config.BodyTimeout}
	if b.chunked {
		b.left = limit
	}
	b.ended.Store(false)
	b.answered.Store(false)
	// Who has begun to send waits for nothing.
	c.reading, c.expecting = true, expects && c.from == c.to
	return b
}

// trailer returns the trailer fields that may be passed on, once Read has
// returned io.EOF.
func (b *body) trailer() exchange.Header {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != io.EOF {
		return exchange.Header{}
	}
	return b.chunks.header()
}

// Close ends reading, also a Read that waits in another goroutine: an upstream
// that has answered early wants no more of the body. What is left of it the
// connection drops.
func (b *body) Close() error {
	b.ended.Store(true)
	if !b.mu.TryLock() {
		return b.conn.net.SetReadDeadline(past)
	}
	b.mu.Unlock()
	return nil
}

// Buffered returns how many bytes Read returns without waiting.
func (b *body) Buffered() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.err != nil || b.ended.Load():
		return 0
	case b.chunked:
		return b.data
	}
	return int(min(int64(b.conn.to-b.conn.from), b.left))
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended.Load() && b.err == nil {
		return 0, errEnded
	}
	n, err := b.read(p)
	if err == io.EOF {
		b.told = true
	}
	return n, err
}

func (b *body) read(p []byte) (n int, err error) {
	switch {
	case b.err != nil:
		return 0, b.err
	case len(p) == 0:
		return 0, nil
	case b.chunked:
		n, err = b.readChunked(p)
	default:
		n, err = b.readLength(p)
	}
	if err != errEnded {
		b.err = err
	}
	return n, err
}

func (b *body) readLength(p []byte) (n int, err error) {
	c := b.conn
	p = p[:min(int64(len(p)), b.left)]
	if c.from < c.to {
		n = copy(p, c.buf[c.from:c.to])
		c.from += n
	} else if n, err = b.wait(p); err != nil {
		return 0, err
	}
	if b.left -= int64(n); b.left == 0 {
		err = io.EOF
	}
	return n, err
}

func (b *body) readChunked(p []byte) (int, error) {
	c := b.conn
	for b.data == 0 {
		if b.last {
			return 0, io.EOF
		}
		if c.from == c.to {
			n, err := b.wait(c.room())
			if err != nil {
				return 0, err
			}
			c.to += n
		}
		framing, data, done, err := b.chunks.next(c.buf[c.from:c.to])
		if err != nil {
			return 0, err
		}
		c.from += framing
		b.data, b.last = data, done
	}
	n := copy(p, c.buf[c.from:c.from+b.data])
	c.from += n
	b.data -= n
	if b.left -= int64(n); b.left < 0 {
		return 0, errLong
	}
	return n, nil
}

// wait reads from the socket, as long as the client keeps to the minimum rate.
func (b *body) wait(p []byte) (int, error) {
	c := b.conn
	if err := c.sendContinue(); err != nil {
		return 0, err
	}
	begun := time.Now()
	n, err := c.read(p, begun.Add(b.pace.Allows()), &b.ended)
	for errors.Is(err, os.ErrDeadlineExceeded) && b.answered.Load() {
		n, err = c.read(p, time.Now().Add(b.pace.Patience), &b.ended)
	}
	b.pace.Received(n)
	if !b.answered.Load() {
		b.pace.Waited(time.Since(begun))
	}
	switch {
	case err == errStopping:
		return 0, errEnded
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
		fallthrough
	case err != nil:
		return 0, fmt.Errorf("%w: incomplete body: %w", exchange.ErrMalformed, err)
	}
	return n, nil
}

// broken tells whether the body is known not to end where it should. While
// somebody reads it, it is not known.
func (b *body) broken() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.err != nil && b.err != io.EOF
}

// long tells whether more is to come than is worth reading. While somebody waits
// for it in vain, it is: the client would be waited for after its answer.
func (b *body) long() bool {
	if !b.mu.TryLock() {
		return true
	}
	defer b.mu.Unlock()
	return !b.chunked && b.err == nil && b.left > drainLimit
}

// finish ends the body with its exchange. It returns whether the connection stands
// at the next head, after what is left of the body has been dropped, if drain is
// set.
func (b *body) finish(drain bool) bool {
	_ = b.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended.Store(false)
	// Nothing bounds the wait for what is dropped but its rate.
	b.answered.Store(false)
	if b.err == nil && drain {
		b.drop()
	}
	whole := b.err == io.EOF
	if b.err = errEnded; !b.told {
		// Whoever has not seen its end may ask again, when it would be the next one's.
		b.conn.body = nil
	}
	return whole
}

// drop reads up to drainLimit bytes for nothing.
func (b *body) drop() {
	pooled := b.conn.server.small.Get().(*[smallBuffer]byte)
	defer b.conn.server.small.Put(pooled)
	for total := 0; total <= drainLimit; {
		n, err := b.read(pooled[:])
		if total += n; err != nil {
			return
		}
	}
}
