//go:build unix

package http1

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Alive tells, without waiting, whether the connection is open and silent, as an
// idle one is. One that the upstream has closed, or on which it has said
// something unasked, is not alive.
func (c *ClientConn) Alive() bool {
	if c.peek == nil {
		return true
	}
	c.peeked = false
	if err := c.peek.Control(c.peekFunc); err != nil || !c.peeked {
		return false
	}
	return c.raw == c.conn || c.silent()
}

// silent tells whether TLS holds nothing back that it has read from the socket
// already, together with what was asked for.
func (c *ClientConn) silent() bool {
	c.arm(past)
	n, err := c.conn.Read(c.beyond[:])
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

func (c *ClientConn) look(fd uintptr) {
	_, err := sysPeek(fd)
	c.peeked = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK || err == syscall.EINTR
}

// asked is how far askAtOnce has come.
type asked struct {
	begun bool
	sent  int
	err   error
}

// canAsk tells whether askAtOnce works here: on a bare socket.
func (c *ClientConn) canAsk() bool { return c.peek != nil && c.raw == c.conn }

// askAtOnce looks at the socket, sends the request and waits for the first bytes of
// the answer in one step of the poller. That spares a read that would find nothing
// yet: whatever comes after the look is an event that the wait, which was prepared
// before it, does not miss. It returns how much was sent; an error is that of
// sending. What goes wrong with the wait is found by the next read.
func (c *ClientConn) askAtOnce() (sent int, err error) {
	c.asked = asked{}
	_ = c.peek.Read(c.askFunc)
	if !c.asked.begun && !c.Alive() {
		// The poller did not come to look: a deadline left from before has passed.
		return 0, ErrUnsent
	}
	return c.asked.sent, c.asked.err
}

// ask is called by the poller: at first, and each time that there may be something
// to read. It returns false to wait.
func (c *ClientConn) ask(fd uintptr) (done bool) {
	a := &c.asked
	if !a.begun {
		a.begun = true
		if c.look(fd); !c.peeked {
			a.err = ErrUnsent
			return true
		}
		switch n, err := sysWrite(fd, c.out); err {
		case 0:
			a.sent = n
		case syscall.EAGAIN, syscall.EINTR:
		default:
			a.err = fmt.Errorf("%w: %w", ErrUnsent, err)
		}
		// What was not taken is written by one who can wait for it.
		return a.err != nil || a.sent < len(c.out)
	}
	n, err := sysRead(fd, c.buf[:cap(c.buf)])
	if err == syscall.EAGAIN || err == syscall.EINTR {
		return false
	}
	c.buf = c.buf[:max(n, 0)]
	return true
}
