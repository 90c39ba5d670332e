package nethttp

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

const (
	readBuffer  = 4 << 10
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
)

// conn stands between the socket and net/http, which forgives what we must not:
// it drops Content-Length when Transfer-Encoding is there too, and takes bare
// line feeds, repeated lengths and chunk extensions. conn reads ahead to the end
// of each head, vets it, and lets net/http see one message at a time; it follows
// the framing of bodies for that. Where a head is refused it hands net/http a
// harmless request in its place, so that the refusal is answered in turn, by the
// handler, like any other answer.
type conn struct {
	net.Conn
	server *Server
	peer   netip.Addr

	// Owned by the goroutine that reads; net/http has one at a time.
	buf     []byte
	from    int // buf[from:] is what was read and not handed on
	ready   int // so many bytes of it are vetted
	scanned int // so many bytes of the head are known to hold no end
	state   readState
	left    int64
	chunks  chunks
	begun   time.Time // when the first byte of the head came
	err     error     // what reading ends with, once state is ended
	spliced bool

	mu sync.Mutex
	// Guarded by mu. Heads vetted and not yet handled, and the read deadline that
	// net/http wants.
	heads    []*head
	deadline time.Time

	armed   bool // the socket's read deadline is ours; owned by the reader
	touched atomic.Bool
	linger  atomic.Bool
	broken  atomic.Pointer[error] // what was wrong with a body
	hangUp  bool                  // after this answer; owned by the handler
	closing sync.Once
}

type readState uint8

const (
	readHead readState = iota
	readLength
	readChunks
	readEnded
)

// Read implements net.Conn for net/http, and after splice for the upgraded
// protocol.
func (c *conn) Read(p []byte) (int, error) {
	if c.spliced {
		return c.Conn.Read(p)
	}
	if len(p) == 0 {
		return 0, nil
	}
	for c.ready == 0 {
		var err error
		switch c.state {
		case readEnded:
			return 0, c.err
		case readHead:
			err = c.readHead()
		case readLength:
			if c.from == len(c.buf) {
				return c.readBody(p)
			}
			c.ready = int(min(c.left, int64(len(c.buf)-c.from)))
			c.consume(int64(c.ready))
		case readChunks:
			err = c.readChunks()
		}
		if err != nil {
			return 0, err
		}
	}
	n := copy(p, c.buf[c.from:c.from+c.ready])
	c.from += n
	c.ready -= n
	return n, nil
}

// fill reads more behind what is buffered. Slow clients get until the deadline;
// a zero one leaves it to net/http.
func (c *conn) fill(deadline time.Time) error {
	if c.from == len(c.buf) {
		c.buf, c.from = c.buf[:0], 0
	}
	if len(c.buf) == cap(c.buf) {
		grown := make([]byte, len(c.buf)-c.from, max(readBuffer, 2*(len(c.buf)-c.from)))
		copy(grown, c.buf[c.from:])
		c.buf, c.from = grown, 0
	}
	c.arm(deadline)
	n, err := c.Conn.Read(c.buf[len(c.buf):cap(c.buf)])
	c.buf = c.buf[:len(c.buf)+n]
	if n > 0 {
		c.touched.Store(true)
		return nil
	}
	return err
}

// readHead waits for a whole head and vets it.
func (c *conn) readHead() error {
	limit := c.server.settings().maxHeaderBytes()
	for {
		raw := c.buf[c.from:]
		end, err := headEnd(raw, c.scanned)
		switch {
		case err != nil:
			c.refuse(&head{refused: err})
			return nil
		case end > limit || end < 0 && len(raw) > limit:
			c.refuse(&head{refused: &refusal{http.StatusRequestHeaderFieldsTooLarge, reasonTooLarge, fmt.Errorf("head beyond %d bytes", limit)}})
			return nil
		case end >= 0:
			c.accept(string(raw[:end]))
			return nil
		}
		c.scanned = len(raw)
		deadline := time.Time{}
		if len(raw) > 0 {
			if c.begun.IsZero() {
				c.begun = time.Now()
			}
			deadline = c.begun.Add(c.server.config.headerTimeout())
		}
		if err := c.fill(deadline); err != nil {
			return err
		}
	}
}

// accept vets a head and makes it and the body behind it readable.
func (c *conn) accept(text string) {
	h := parseHead(text)
	h.received = time.Now()
	if h.refused != nil {
		c.refuse(h)
		return
	}
	c.scanned, c.begun = 0, time.Time{}
	c.ready = len(text)
	switch h.early = len(c.buf)-c.from > len(text); {
	case h.length > 0:
		c.state, c.left, h.early = readLength, h.length, false
	case h.length < 0:
		c.state, c.chunks, h.early = readChunks, chunks{}, false
	}
	c.push(h)
}

// refuse ends reading with a stand-in for the request.
func (c *conn) refuse(h *head) {
	if h.received.IsZero() {
		h.received = time.Now()
	}
	method := http.MethodGet
	if h.method == http.MethodHead {
		method = h.method
	}
	c.buf = append(c.buf[:0], method+" / HTTP/1.1\r\nHost: refused\r\nConnection: close\r\n\r\n"...)
	c.from, c.ready = 0, len(c.buf)
	c.state, c.err = readEnded, io.EOF
	c.linger.Store(true)
	c.push(h)
}

// readBody reads a body of known length past the buffer.
func (c *conn) readBody(p []byte) (int, error) {
	c.arm(time.Now().Add(c.server.config.bodyTimeout()))
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.consume(int64(n))
	return n, err
}

func (c *conn) consume(n int64) {
	if c.left -= n; c.left == 0 {
		c.state = readHead
	}
}

func (c *conn) readChunks() error {
	if c.from == len(c.buf) {
		if err := c.fill(time.Now().Add(c.server.config.bodyTimeout())); err != nil {
			return err
		}
	}
	n, done, err := c.chunks.scan(c.buf[c.from:])
	c.ready = n
	switch {
	case err != nil:
		c.state, c.err = readEnded, err
		c.broken.Store(&err)
		c.linger.Store(true)
	case done:
		c.state = readHead
	}
	return nil
}

// arm sets the socket's read deadline to the earlier of ours and net/http's, so
// that its way of interrupting a read, a deadline in the past, always works.
func (c *conn) arm(ours time.Time) {
	if ours.IsZero() && !c.armed {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = !ours.IsZero()
	if at := c.deadline; ours.IsZero() || !at.IsZero() && at.Before(ours) {
		ours = at
	}
	c.Conn.SetReadDeadline(ours)
}

// SetReadDeadline implements net.Conn for net/http.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return c.Conn.SetReadDeadline(t)
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// Write gives a client that does not read a limited time per write.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.server.config.writeTimeout())); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

func (c *conn) push(h *head) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heads = append(c.heads, h)
}

// pop returns the head of the request that net/http hands to the handler: both
// see requests in the order in which they came.
func (c *conn) pop() *head {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.heads) == 0 {
		return nil
	}
	h := c.heads[0]
	c.heads = append(c.heads[:0], c.heads[1:]...)
	return h
}

// splice hands the connection over to an upgraded protocol. It fails when the
// client has sent bytes before it could know the answer.
func (c *conn) splice() error {
	if c.from != len(c.buf) || c.state != readHead {
		return fmt.Errorf("%w: data before the protocol was switched", exchange.ErrMalformed)
	}
	c.spliced = true
	c.arm(time.Time{})
	return nil
}

// Close closes the connection. After a refusal it first lets the client read the
// answer: to close with unread bytes would reset the connection under it.
func (c *conn) Close() error {
	err := net.ErrClosed
	c.closing.Do(func() {
		if half, ok := c.Conn.(interface{ CloseWrite() error }); ok && c.linger.Load() && !c.server.killed.Load() {
			if half.CloseWrite() == nil && c.Conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
				io.CopyN(io.Discard, c.Conn, lingerBytes)
			}
		}
		err = c.Conn.Close()
		c.server.open.remove(c)
	})
	return err
}
