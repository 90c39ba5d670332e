package http1

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// errBodyClosed is what reading a closed body returns.
var errBodyClosed = errors.New("read of a closed body")

// respond makes the response of the parsed head.
func (c *ClientConn) respond() (*exchange.Response, error) {
	c.headCame = true
	c.resp = exchange.Response{Status: c.head.status, Header: exchange.HeaderOf(c.head.fields...)}
	if err := c.resp.Header.DropHopByHop(); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrAnswer, err)
	}
	if c.head.status == http.StatusSwitchingProtocols {
		asked := c.call.Request.Upgrade
		if asked == "" || !exchange.EqualFold(c.head.upgrade, asked) || c.head.options&optionUpgrade == 0 {
			return nil, fmt.Errorf("%w: it switched protocols unasked", ErrAnswer)
		}
		c.resp.Upgrade, c.resp.Interrupt = c.upgrade, c.interrupt
		return &c.resp, nil
	}
	c.resp.Body.Length = max(c.head.length, -1)
	c.ready = c.from
	switch length := c.head.length; {
	case length == 0:
		c.ended = true
		if c.call.Request.Method == http.MethodHead {
			// What a GET would have had.
			c.resp.Body.Length = -1
			if c.head.lengths > 0 {
				c.resp.Body.Length = c.head.contentLength
			}
		}
		return &c.resp, nil
	case length > 0:
		n := min(int64(len(c.buf)-c.from), length)
		c.ready += int(n)
		c.left = length - n
		c.ended = c.left == 0
	case length == untilClose:
		c.ready = len(c.buf)
	default:
		c.chunks.reset()
		n, used, err := c.decode(c.buf[c.from:])
		c.ready += n
		// What is left behind the end is nobody's answer.
		c.buf = c.buf[:c.ready+len(c.buf)-c.from-used]
		c.bodyError = err
		c.resp.Body.Trailer = c.trailer
	}
	c.resp.Body.Reader = (*clientBody)(c)
	if !c.ended {
		c.resp.Interrupt = c.interrupt
	}
	return &c.resp, nil
}

// decode takes the framing out of b in place: its first n bytes are data then.
// used bytes of b belong to the body; less than len(b) when it has ended.
func (c *ClientConn) decode(b []byte) (n, used int, err error) {
	for used < len(b) && !c.ended {
		framing, data, done, err := c.chunks.next(b[used:])
		if err != nil {
			return n, len(b), fmt.Errorf("%w: %v", ErrAnswer, err)
		}
		used += framing
		if n != used {
			copy(b[n:], b[used:used+data])
		}
		n += data
		used += data
		c.ended = done
	}
	return n, used, nil
}

// trailers are the fields behind the body, once it was read to its end.
func (c *ClientConn) trailers() exchange.Header {
	if !c.ended {
		return exchange.Header{}
	}
	return c.chunks.header()
}

// clientBody reads the answer's body.
type clientBody ClientConn

// Buffered returns how many bytes Read returns without waiting.
func (b *clientBody) Buffered() int { return b.ready - b.from }

func (b *clientBody) Read(p []byte) (int, error) {
	c := (*ClientConn)(b)
	switch {
	case c.closed:
		return 0, errBodyClosed
	case len(p) == 0:
		return 0, nil
	case c.from < c.ready:
		n := copy(p, c.buf[c.from:c.ready])
		c.from += n
		return n, nil
	}
	for c.bodyError == nil {
		if c.ended {
			return 0, io.EOF
		}
		n, err := c.readBody(p)
		if err != nil {
			_ = c.breakOff(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	c.broken = true
	return 0, c.bodyError
}

// breakOff notes, and returns, why the body ends here.
func (c *ClientConn) breakOff(err error) error {
	c.broken = true
	c.bodyError = fmt.Errorf("read upstream's answer: %w", err)
	return c.bodyError
}

// readBody reads from the connection into p, past the buffer.
func (c *ClientConn) readBody(p []byte) (int, error) {
	if c.head.length > 0 {
		n, err := c.read(p[:min(int64(len(p)), c.left)])
		c.left -= int64(n)
		c.ended = c.left == 0
		return n, short(err)
	}
	n, err := c.read(p)
	if c.head.length == untilClose {
		if err == io.EOF {
			c.ended, c.broken = true, true
			return 0, nil
		}
		return n, err
	}
	if err != nil {
		return 0, short(err)
	}
	data, used, err := c.decode(p[:n])
	if used < n {
		c.broken = true
	}
	return data, err
}

// short says that an end came too early.
func short(err error) error {
	if err == io.EOF {
		return fmt.Errorf("%w: it broke off: %w", ErrAnswer, io.ErrUnexpectedEOF)
	}
	return err
}

// Close gives up what was not read; the connection goes with it.
func (b *clientBody) Close() error {
	c := (*ClientConn)(b)
	if c.closed {
		return nil
	}
	c.closed = true
	if !c.ended {
		c.abort()
		return nil
	}
	// What was not taken out of the buffer is not wanted.
	c.from = max(c.from, c.ready)
	return nil
}
