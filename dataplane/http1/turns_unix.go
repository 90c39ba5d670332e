//go:build unix

package http1

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
)

// turns is how far a connection has come in serveTurns.
type turns struct {
	serve func(fd uintptr) bool // conn.turn; nil unless net is the socket itself
	// met: the exchange has begun and waits for its answer, which needs to read from
	// the client.
	met     bool
	refused *admission.Refusal
	over    bool // the connection serves no more
}

func (c *conn) readyTurns() {
	switch c.net.(type) {
	case *net.TCPConn, *net.UnixConn:
		if c.raw != nil {
			c.turns.serve = c.turn
		}
	}
}

// serveTurns serves requests on a bare socket as long as they come whole and
// without a body, all in one step of the poller. A read that does not fill the
// buffer has emptied the socket; whatever comes later is an event, and none is
// missed since the poller's state is not reset in between. So the wait for the next
// request begins without a read that would find nothing. Only the end of a client's
// stream that came together with its request is no event of its own: it is seen
// when the wait is looked over, after dozeAfter.
//
// It returns false when the connection is to end, true when one is to take over.
func (c *conn) serveTurns() (more bool) {
	t := &c.turns
	for t.serve != nil && !c.server.draining.Load() {
		if c.arm(c.last.Add(dozeAfter)) != nil {
			return false
		}
		err := c.raw.Read(t.serve)
		switch {
		case t.over:
			return false
		case t.met:
			t.met = false
			if !c.answer(t.refused) {
				return false
			}
			continue
		case err == nil || !errors.Is(err, os.ErrDeadlineExceeded):
			return true
		}
		c.armed = time.Time{}
		if time.Since(c.last) >= dozeAfter {
			return true
		}
		// The deadline was left from a request before.
	}
	return true
}

// cut ends the connection from another goroutine. To close it would wait for a turn
// to end.
func (c *conn) cut() {
	if c.turns.serve == nil {
		_ = c.net.Close()
		return
	}
	_ = c.raw.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
	_ = c.net.SetDeadline(past)
}

// turn is called by the poller: at first, and whenever there may be something to
// read. It returns false to wait for more.
func (c *conn) turn(fd uintptr) (done bool) {
	for empty := false; ; {
		for c.from < c.to {
			raw, refused := c.wholeHead(0)
			if raw == nil && refused == nil {
				return true
			}
			refused = c.meet(raw, refused)
			if c.reading || c.exchange.Request.Upgrade != "" {
				c.turns.met, c.turns.refused = true, refused
				return true
			}
			if !c.answer(refused) {
				c.turns.over = true
				return true
			}
		}
		if empty {
			return c.server.draining.Load()
		}
		space := c.space()
		n, err := sysRead(fd, space)
		switch {
		case err == syscall.EAGAIN:
			return false
		case err == syscall.EINTR:
			continue
		case n <= 0:
			// Whoever takes over meets the end or the error, too.
			return true
		}
		c.to += n
		empty = n < len(space)
	}
}
