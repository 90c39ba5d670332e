package http1

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// nextHead waits for a whole head and takes it out of the buffer, which holds it
// until compact.
func (c *conn) nextHead() (raw []byte, refused *admission.Refusal, err error) {
	var begun time.Time
	if c.first {
		begun = c.last
	}
	for known := 0; ; {
		if raw, refused = c.wholeHead(known); raw != nil || refused != nil {
			return raw, refused, nil
		}
		known = c.to - c.from
		until, idle := c.last.Add(c.server.config.IdleTimeout), &c.server.draining
		if known > 0 {
			idle = nil
			if begun.IsZero() {
				begun = time.Now()
			}
		}
		if !begun.IsZero() {
			until = begun.Add(c.server.config.HeaderTimeout)
		}
		if err := c.more(until, idle); err != nil {
			return nil, nil, err
		}
	}
}

// wholeHead takes a head out of the buffer if all of it is there; of what is, the
// first known bytes have been looked at before.
func (c *conn) wholeHead(known int) (raw []byte, refused *admission.Refusal) {
	raw = c.buf[c.from:c.to]
	// Those that are live when the head comes: a connection may have been idle long.
	limit := c.server.config.Settings().HeaderLimit()
	end, err := headEnd(raw, known)
	switch {
	case err != nil:
		c.from = c.to
		return nil, refusal(err)
	case end > limit || end < 0 && len(raw) > limit:
		c.from = c.to
		return nil, refusal(errHeadLimit)
	case end < 0:
		return nil, nil
	}
	c.from += end
	return raw[:end:end], nil
}

// more reads more of a head. A connection on which none begins for a while gives
// its buffer to others as it waits on: that is most of what idle ones would hold.
// idle is nil within a head.
func (c *conn) more(until time.Time, idle *atomic.Bool) error {
	soon := c.last.Add(dozeAfter)
	if idle == nil || !soon.Before(until) {
		n, err := c.read(c.space(), until, idle)
		c.to += n
		return err
	}
	n, err := c.read(c.space(), soon, idle)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.to += n
		return err
	}
	c.empty()
	if n, err = c.read(c.doze[:], until, idle); err != nil {
		return err
	}
	c.buf = c.server.takeBuffer()
	c.to = copy(c.buf, c.doze[:n])
	return nil
}

// empty gives the buffer to others, with all strings that lie in it.
func (c *conn) empty() {
	c.head = requestHead{}
	c.exchange = exchange.Exchange{}
	c.server.giveBuffer(c.buf)
	c.buf, c.from, c.to = nil, 0, 0
}

// space returns where more of a head may be read to; only between exchanges.
func (c *conn) space() []byte {
	switch {
	case c.to < len(c.buf):
	case c.from > 0:
		c.compact()
	default:
		grown := make([]byte, 2*len(c.buf))
		copy(grown, c.buf)
		c.buf = grown
	}
	return c.buf[c.to:]
}

// room returns where more of a body may be read to, while strings of the exchange
// lie in the buffer: what has been taken from it stays as it is. It is called
// when nothing is left to be taken.
func (c *conn) room() []byte {
	low := c.from
	if c.reading && len(c.buf)-low < readBuffer/4 {
		// The old buffer lives as long as its strings.
		c.buf = make([]byte, readBuffer)
		low = 0
	}
	c.from, c.to = low, low
	return c.buf[low:]
}

// compact moves what is left to the front of the buffer, or of a smaller one;
// only between exchanges.
func (c *conn) compact() {
	rest := c.buf[c.from:c.to]
	if len(c.buf) > keptBuffer && len(rest) < readBuffer {
		c.buf = make([]byte, readBuffer)
	} else if c.from < c.to && c.to < len(c.buf) {
		// Pipelined requests are taken where they lie.
		return
	}
	c.to, c.from = copy(c.buf, rest), 0
}

// read reads once, until a deadline. It sets the socket's only when that is later
// than the deadline wanted, and goes over it when it comes too early: most reads
// set none. stop, when set, ends the waiting.
func (c *conn) read(p []byte, until time.Time, stop *atomic.Bool) (int, error) {
	for {
		if err := c.arm(until); err != nil {
			return 0, err
		}
		// A request that has come is taken, so that none is lost.
		if stop != nil && stop.Load() && (stop != &c.server.draining || c.raw == nil || !readable(c.raw)) {
			return 0, errStopping
		}
		n, err := c.net.Read(p)
		switch {
		case n > 0:
			return n, nil
		case err == nil:
			continue
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return 0, err
		}
		c.armed = time.Time{}
		if !time.Now().Before(until) {
			return 0, err
		}
	}
}

// arm sets the socket's read deadline if that is later than the one wanted.
func (c *conn) arm(until time.Time) error {
	if !c.armed.IsZero() && !c.armed.After(until) {
		return nil
	}
	c.armed = until
	return c.net.SetReadDeadline(until)
}
