//go:build unix

package http1

import (
	"errors"
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
	var one [1]byte
	_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	c.peeked = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK || err == syscall.EINTR
}
