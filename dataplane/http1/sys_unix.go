//go:build unix && (!linux || race)

package http1

import (
	"errors"
	"syscall"
)

// Calls on sockets that do not block; 0 is no error. Package syscall tells the race
// detector that what is written to a socket comes before what is read from it.

func sysRead(fd uintptr, p []byte) (int, syscall.Errno) { return told(syscall.Read(int(fd), p)) }

func sysWrite(fd uintptr, p []byte) (int, syscall.Errno) { return told(syscall.Write(int(fd), p)) }

// sysPeek looks whether there is something to read, and leaves it.
func sysPeek(fd uintptr) (int, syscall.Errno) {
	var one [1]byte
	n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return told(n, err)
}

func told(n int, err error) (int, syscall.Errno) {
	var number syscall.Errno
	if errors.As(err, &number) {
		return n, number
	}
	return n, 0
}
