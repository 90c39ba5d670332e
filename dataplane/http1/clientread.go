package http1

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// fill reads more behind what is buffered.
func (c *ClientConn) fill() error {
	if c.from == len(c.buf) {
		c.buf, c.from = c.buf[:0], 0
	}
	if len(c.buf) == cap(c.buf) {
		grown := make([]byte, len(c.buf)-c.from, max(clientBuffer, 2*(len(c.buf)-c.from)))
		copy(grown, c.buf[c.from:])
		c.buf, c.from = grown, 0
	}
	n, err := c.read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	return err
}

// read waits for bytes. It arms no deadline that it does not need: one that is
// left from a request before makes it look whether it is time to give up, and
// from then on the context can interrupt.
func (c *ClientConn) read(p []byte) (int, error) {
	for start := c.waitBegins(); ; {
		n, err := c.conn.Read(p)
		if n > 0 {
			return n, nil
		}
		if err = c.stillWaits(err, start); err != nil {
			return 0, err
		}
	}
}

// waitBegins returns the time, if the wait that begins depends on it.
func (c *ClientConn) waitBegins() (start time.Time) {
	if c.headCame && c.call.Idle > 0 {
		start = time.Now()
	}
	return start
}

// stillWaits returns why a wait that began at start and got nothing but err is
// over; nil to go on with it.
func (c *ClientConn) stillWaits(err error, start time.Time) error {
	switch {
	case err == nil:
		return nil
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return c.why(err)
	}
	limit := c.limit(start)
	if !limit.IsZero() && !time.Now().Before(limit) {
		return ErrTimeout
	}
	c.watch()
	c.arm(limit)
	return nil
}

// limit is when a wait that began at start ends; zero for never.
func (c *ClientConn) limit(start time.Time) time.Time {
	switch {
	case !c.headCame:
		return c.call.Deadline
	case c.call.Idle <= 0:
		return time.Time{}
	}
	if active := time.Unix(0, c.active.Load()); active.After(start) {
		start = active
	}
	return start.Add(c.call.Idle)
}

func (c *ClientConn) arm(at time.Time) {
	c.armed = at
	c.raw.SetReadDeadline(at)
}

func (c *ClientConn) armWrite(at time.Time) {
	c.writeArmed = at
	c.raw.SetWriteDeadline(at)
}

// watch lets the end of the context interrupt from now on.
func (c *ClientConn) watch() {
	if c.unwatch == nil && c.call.Context.Done() != nil {
		ctx := c.call.Context
		c.unwatch = context.AfterFunc(ctx, func() { c.Interrupt(context.Cause(ctx)) })
	}
}

// Interrupt ends what is under way with the cause, which readers return. It is
// safe for concurrent use, any number of times, between Do and Finish.
func (c *ClientConn) Interrupt(cause error) {
	c.cause.CompareAndSwap(nil, &cause)
	c.raw.Close()
}

// why puts the cause of an interruption, or of a request that breaks off while its
// answer comes, in place of its effect.
func (c *ClientConn) why(err error) error {
	if cause := c.cause.Load(); cause != nil {
		return *cause
	}
	if broken := c.sender.bodyError.Load(); broken != nil {
		return fmt.Errorf("read request body: %w", *broken)
	}
	return err
}
