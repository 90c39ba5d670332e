package http1

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// Write buffers: the small one holds a head and an ordinary body, so that one
// write sends both; the large one carries what fills it.
const (
	smallBuffer = 16 << 10
	largeBuffer = 64 << 10
)

// framing is how an answer's body is delimited.
type framing uint8

const (
	noBody framing = iota
	byLength
	byChunks
	byClose
)

var (
	errShort = fmt.Errorf("answer shorter than its length: %w", io.ErrUnexpectedEOF)
	errOver  = errors.New("answer longer than its length")
	// errNoPipe says that the rest of a body cannot be spliced, and is to be copied.
	errNoPipe = errors.New("no pipe")
)

// unsent is why an answer failed of which nothing has been written.
type unsent struct{ error }

func (u unsent) Unwrap() error { return u.error }

// lost says what a failed write means.
func (c *conn) lost(err error) error {
	if err == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cause != nil:
		// To end the connection from outside is to let its deadline pass.
		return c.cause
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %w", exchange.ErrClientSlow, err)
	}
	return fmt.Errorf("%w: %w", exchange.ErrClientGone, err)
}

// respond writes the response and decides whether the connection serves on.
func (c *conn) respond(resp *exchange.Response) {
	e := &c.exchange
	if resp.Body.Reader != nil {
		// Evaluated now: resp may be replaced below.
		defer resp.Body.Reader.Close()
	}
	c.behind(resp.Interrupt)
	if resp.Status == 101 && resp.Upgrade != nil && e.Request.Upgrade != "" {
		e.Result.Status = resp.Status
		e.Result.Bytes, e.Result.Err = c.upgrade(resp)
		c.keep = false
		return
	}
	if resp.Status < 200 || resp.Status > 599 {
		c.server.config.Log.Error("response with a status that is no answer", slog.String("request_id", e.ID), slog.Int("status", resp.Status))
		resp = c.server.config.Refuse(e, admission.ReasonInternal, 500)
	}
	e.Result.Status = resp.Status
	if c.reading {
		c.answerEarly()
	}
	if c.keep && c.server.goodbye.Load() {
		c.keep, c.linger = false, true
	}
	frame := c.frame(resp)
	pooled := c.server.small.Get().(*[smallBuffer]byte)
	defer c.server.small.Put(pooled)
	b := c.appendHead(pooled[:0], resp, frame)
	if frame == noBody || resp.Body.Reader == nil {
		if frame == byChunks {
			b = append(b, "0\r\n\r\n"...)
		}
		e.Result.Err = c.writeAt(b, c.last)
	} else {
		e.Result.Bytes, e.Result.Err = c.stream(b, resp, frame)
	}
	if e.Result.Err != nil {
		c.broke(frame)
	}
}

// broke ends an answer that cannot be finished. The client is told, if it has heard
// nothing yet and is still there.
func (c *conn) broke(frame framing) {
	e := &c.exchange
	why, whole := e.Result.Err.(unsent)
	if fail := e.Fail; whole && fail != nil && c.ctx.Err() == nil {
		e.Fail = nil
		c.respond(fail(e, why.error))
		return
	}
	// Nothing but a broken connection tells the client that the body is short;
	// where its end is the connection's, only a reset does.
	c.keep, c.linger, c.abort = false, false, frame == byClose
}

// answerEarly settles what becomes of a request's body when the answer begins
// before its end.
func (c *conn) answerEarly() {
	c.body.answered.Store(true)
	c.writing.Lock()
	unasked := c.expecting
	c.expecting = false
	c.writing.Unlock()
	// A client that was not asked for its body may send it or not (RFC 9110, 10.1.1).
	if unasked || c.body.broken() || c.body.long() {
		c.keep, c.linger = false, true
	}
}

// frame decides how the body is delimited (RFC 9112, 6).
func (c *conn) frame(resp *exchange.Response) framing {
	switch {
	case c.exchange.Request.Method == "HEAD" || resp.Status == 204 || resp.Status == 304:
		return noBody
	case resp.Body.Length >= 0:
		return byLength
	case c.head.minor == 0 || c.exchange.Request.Proto == "":
		c.keep = false
		return byClose
	}
	return byChunks
}

// stream writes the head and the body behind it, and returns how much of the body
// was written.
func (c *conn) stream(head []byte, resp *exchange.Response, frame framing) (int64, error) {
	if frame == byChunks {
		return c.streamChunks(head, resp)
	}
	if frame == byLength && resp.Body.Length <= int64(cap(head)-len(head)) {
		return c.writeWhole(head, resp)
	}
	from := c.spliceable(&resp.Body)
	body, b, sent := resp.Body.Reader, head, int64(0)
	start, begun := len(head), false
	for {
		if start == cap(b) {
			if err := c.write(b); err != nil {
				return sent, err
			}
			b, start, begun = b[:0], 0, true
		}
		n, err := body.Read(b[start:cap(b)])
		if !begun && err != nil && (err != io.EOF || frame == byLength && int64(n) < resp.Body.Length) {
			return 0, unsent{cut(err)}
		}
		begun = true
		if frame == byLength && sent+int64(n) > resp.Body.Length {
			n, err = int(resp.Body.Length-sent), errOver
		}
		if start+n > 0 {
			if werr := c.write(b[:start+n]); werr != nil {
				return sent, werr
			}
		}
		sent += int64(n)
		full := start+n == cap(b)
		start = 0
		switch {
		case err == io.EOF && frame == byLength && sent < resp.Body.Length:
			return sent, errShort
		case err == io.EOF:
			return sent, nil
		case err != nil:
			return sent, err
		case frame == byLength && sent == resp.Body.Length:
			return sent, c.atEnd(body)
		case from != nil && from.from == from.ready:
			n, err := c.splice(from)
			if sent += n; err != errNoPipe {
				return sent, err
			}
			from = nil
		case full && cap(b) < largeBuffer:
			pooled := c.server.large.Get().(*[largeBuffer]byte)
			defer c.server.large.Put(pooled)
			b = pooled[:0]
		}
	}
}

// atEnd expects the end of a body that has been read to its length.
func (c *conn) atEnd(body io.Reader) error {
	for {
		n, err := body.Read(c.beyond[:])
		switch {
		case n > 0:
			return errOver
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// writeWhole sends a small answer of known length in one piece.
func (c *conn) writeWhole(head []byte, resp *exchange.Response) (int64, error) {
	start := len(head)
	b := head[:start+int(resp.Body.Length)]
	there, ok := resp.Body.Reader.(interface{ Buffered() int })
	prompt := ok && int64(there.Buffered()) >= resp.Body.Length
	n, err := io.ReadFull(resp.Body.Reader, b[start:])
	if err != nil {
		return 0, unsent{cut(err)}
	}
	now := c.last
	if !prompt {
		now = time.Now()
	}
	if werr := c.writeAt(b[:start+n], now); werr != nil {
		return 0, werr
	}
	return int64(n), c.atEnd(resp.Body.Reader)
}

// cut says that an end came too early.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return errShort
	}
	return err
}
