//go:build !unix

package http1

// Alive cannot tell here, and says yes: a dead connection is found when it is used.
func (c *ClientConn) Alive() bool { return true }

func (c *ClientConn) look(uintptr) {}

type asked struct{}

func (c *ClientConn) canAsk() bool { return false }

func (c *ClientConn) askAtOnce() (int, error) { return 0, nil }

func (c *ClientConn) ask(uintptr) bool { return true }
