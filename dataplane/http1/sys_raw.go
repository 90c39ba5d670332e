//go:build linux && !race

package http1

import (
	"syscall"
	"unsafe"
)

// Calls on sockets that do not block: the scheduler need not be told of them, as
// package syscall would, and they take little of a connection's stack. 0 is no error.

func sysRead(fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), err
}

func sysWrite(fd uintptr, p []byte) (int, syscall.Errno) {
	n, _, err := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	return int(n), err
}

// sysPeek looks whether there is something to read, and leaves it.
func sysPeek(fd uintptr) (int, syscall.Errno) {
	var one [1]byte
	n, _, err := syscall.RawSyscall6(syscall.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(&one)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	return int(n), err
}
