package http1

import (
	"errors"
	"io"
	"net"
	"time"
)

type upgradeFunc func(client io.ReadWriteCloser) error

// upgradeBuffer carries bytes of an upgraded connection; one a direction for as
// long as it is open.
const upgradeBuffer = 4 << 10

// splice carries bytes both ways until one side ends, the connection is
// interrupted or both are silent for too long. It closes both: a WebSocket has no
// half-closed state (RFC 6455, 7.1.1).
func (c *ClientConn) splice(client io.ReadWriteCloser) error {
	c.broken = true
	c.active.Store(time.Now().UnixNano())
	c.watch()
	up := make(chan error, 1)
	go func() {
		up <- c.carryUp(client)
		c.conn.Close()
		client.Close()
	}()
	down := c.carryDown(client)
	client.Close()
	c.conn.Close()
	back := <-up
	if cause := c.cause.Load(); cause != nil {
		return *cause
	}
	return errors.Join(down, back)
}

func (c *ClientConn) carryDown(client io.Writer) error {
	for {
		if c.from < len(c.buf) {
			if _, err := client.Write(c.buf[c.from:]); err != nil {
				return ended(err)
			}
			c.from = len(c.buf)
			c.active.Store(time.Now().UnixNano())
		}
		if err := c.fill(); err != nil {
			return ended(err)
		}
	}
}

func (c *ClientConn) carryUp(client io.Reader) error {
	buffer := make([]byte, upgradeBuffer)
	for {
		n, err := client.Read(buffer)
		if n > 0 {
			if _, err := c.conn.Write(buffer[:n]); err != nil {
				return ended(err)
			}
			c.active.Store(time.Now().UnixNano())
		}
		if err != nil {
			return ended(err)
		}
	}
}

// ended is nil for how connections end.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}
