//go:build unix

package http1

import "syscall"

// Alive tells, without waiting, whether the connection is open and silent, as an
// idle one is. One that the upstream has closed, or on which it has said
// something unasked, is not alive.
func (c *ClientConn) Alive() bool {
	if c.peek == nil {
		return true
	}
	c.peeked = false
	if err := c.peek.Control(c.peekFunc); err != nil {
		return false
	}
	return c.peeked
}

func (c *ClientConn) look(fd uintptr) {
	var one [1]byte
	_, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	c.peeked = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK || err == syscall.EINTR
}
