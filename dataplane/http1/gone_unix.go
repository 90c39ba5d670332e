//go:build unix

package http1

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// poll tells what stands at the socket without taking it.
func poll(raw syscall.RawConn, events int16) (revents int16) {
	_ = raw.Control(func(fd uintptr) {
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
		if n, err := unix.Poll(fds[:], 0); n == 1 && err == nil {
			revents = fds[0].Revents
		}
	})
	return revents
}

// hungUp tells whether the connection is gone in both directions, and whether the
// client has shut down its side.
func hungUp(raw syscall.RawConn) (gone, shut bool) {
	revents := poll(raw, pollShut)
	return revents&(unix.POLLERR|unix.POLLHUP) != 0, revents&pollShut != 0
}

// readable tells whether there is something to read.
func readable(raw syscall.RawConn) bool { return poll(raw, unix.POLLIN)&unix.POLLIN != 0 }
