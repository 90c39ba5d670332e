//go:build !unix

package http1

type turns struct{}

func (c *conn) readyTurns() {}

func (c *conn) serveTurns() (more bool) { return true }

func (c *conn) cut() { _ = c.net.Close() }
