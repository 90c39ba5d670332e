//go:build !unix

package http1

import "syscall"

// Elsewhere a client that has gone is noticed when it is written to.
func hungUp(syscall.RawConn) (gone, shut bool) { return false, false }

func readable(syscall.RawConn) bool { return false }
