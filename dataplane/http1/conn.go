package http1

import (
	"context"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

const (
	// readBuffer is what a connection begins with, and all that most ever need.
	readBuffer = 4 << 10
	// keptBuffer bounds what a connection keeps once a large head is through.
	keptBuffer = 64 << 10
	// A connection that is closed under a client that may still be sending first
	// lets it read the answer: to close with unread bytes would reset it.
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 16 << 20
	// dozeAfter is how long a connection waits for its next request with its buffer
	// at hand.
	dozeAfter = 250 * time.Millisecond
)

// conn is one connection from a client. What it needs for an exchange is reused
// for the next one.
type conn struct {
	server *Server
	net    net.Conn
	raw    syscall.RawConn // nil when there is no socket to look at
	on     *admission.Conn
	ctx    context.Context
	cancel context.CancelCauseFunc

	// Owned by the goroutine that serves, but buf, from, to and armed while a body
	// is read: then by whoever reads it.
	buf      []byte
	from, to int       // buf[from:to] was read and not taken
	armed    time.Time // the socket's read deadline; it may be earlier
	exchange exchange.Exchange
	head     requestHead
	body     *body
	reading  bool      // the request has a body
	keep     bool      // the connection serves on after this exchange
	linger   bool      // the client may still be sending when the connection is closed
	abort    bool      // close with a reset
	last     time.Time // when the last exchange ended or, while it is answered, that began; else when the connection did
	first    bool      // nothing has been answered yet
	beyond   [1]byte   // where a body is read to beyond its end
	doze     [16]byte  // where the next request is awaited without a buffer
	turns    turns

	writing sync.Mutex
	// Guarded by writing until the head of the answer is written, then owned by the
	// goroutine that serves.
	expecting    bool // the client waits for 100 Continue
	writableTill time.Time

	// since is when the exchange in progress began, in Unix nanoseconds; 0 for none.
	since atomic.Int64
	mu    sync.Mutex
	// Guarded by mu: what stands behind the answer, and why it is to end.
	interrupter func(error)
	cause       error
}

// serve serves one request after the other. What panics outside of the handler,
// in a body or as the exchange ends, ends the connection.
func (c *conn) serve() {
	defer func() {
		if v := recover(); v != nil {
			c.server.config.Log.Error("panic while answering a request", slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
		}
	}()
	c.last, c.first = time.Now(), true
	for c.serveTurns() && c.one() {
	}
}

// one serves one request and tells whether there may be another, which is known
// when all of this one has ended.
func (c *conn) one() (more bool) {
	raw, refused, err := c.nextHead()
	if err != nil {
		return false
	}
	return c.answer(c.meet(raw, refused))
}

// meet begins an exchange with a head. It reads nothing from the client.
func (c *conn) meet(raw []byte, refused *admission.Refusal) *admission.Refusal {
	c.exchange.Context, c.exchange.Received = c.ctx, time.Now()
	c.keep, c.reading = false, false
	if refused == nil {
		refused = c.take(raw, c.server.config.Settings())
	}
	return refused
}

// answer answers the exchange and ends it.
func (c *conn) answer(refused *admission.Refusal) (more bool) {
	defer func() { more = c.end() }()
	var resp *exchange.Response
	if refused != nil {
		resp = c.refuse(refused)
	} else {
		c.since.Store(c.exchange.Received.UnixNano())
		resp = c.handle()
	}
	c.last = time.Now()
	// Until it is known better.
	c.exchange.Result.Err = exchange.ErrInternal
	c.respond(resp)
	return
}

// end closes the exchange and tells whether the connection stands at the next
// head. Nothing of the exchange may be used afterwards.
func (c *conn) end() bool {
	c.since.Store(0)
	c.mu.Lock()
	c.interrupter = nil
	if c.cause != nil {
		c.keep = false
	}
	c.mu.Unlock()
	c.last = time.Now()
	c.exchange.Result.Ended = c.last
	c.exchange.End()
	if c.reading {
		whole := c.body.finish(c.keep)
		c.linger = c.linger || !whole
		c.keep = c.keep && whole
		c.last = time.Now()
	}
	c.exchange.Reset()
	c.first = false
	if c.keep {
		c.compact()
	}
	return c.keep
}

// handle asks the handler.
func (c *conn) handle() (resp *exchange.Response) {
	defer func() {
		if v := recover(); v != nil {
			c.server.config.Log.Error("panic while handling a request", slog.String("request_id", c.exchange.ID), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			resp = c.server.config.Refuse(&c.exchange, admission.ReasonInternal, 500)
		}
	}()
	return c.server.config.Handle(&c.exchange)
}

// refuse asks for the answer to what does not reach the handler. What follows on
// the connection may be part of what was refused: it ends.
func (c *conn) refuse(refused *admission.Refusal) *exchange.Response {
	e := &c.exchange
	if e.ID == "" {
		c.on.Meet(e)
	}
	e.Why.Detail = refused.Detail.Error()
	c.keep, c.linger = false, true
	return c.server.config.Refuse(e, refused.Reason, refused.Status)
}

// interrupt ends the exchange in progress with its connection. It may be called
// from any goroutine.
func (c *conn) interrupt(cause error) {
	c.cancel(cause)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		c.cause = cause
	}
	if c.interrupter != nil {
		c.interrupter(cause)
	}
}

// behind notes what stands behind the answer, which ends when the connection does.
func (c *conn) behind(interrupter func(error)) {
	if interrupter == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interrupter = interrupter; c.cause != nil {
		interrupter(c.cause)
	}
}

// write writes all of p.
func (c *conn) write(p []byte) error { return c.writeAt(p, time.Now()) }

// writeAt is write for who knows the time.
func (c *conn) writeAt(p []byte, now time.Time) error {
	if err := c.allowWrite(now); err != nil {
		return err
	}
	_, err := c.net.Write(p)
	return c.lost(err)
}

// allowWrite gives the client time to take one write.
func (c *conn) allowWrite(now time.Time) error {
	patience := c.server.config.WriteTimeout
	if c.writableTill.Sub(now) >= patience {
		return nil
	}
	c.writableTill = now.Add(patience + patience/2)
	return c.lost(c.net.SetWriteDeadline(c.writableTill))
}

// sendContinue tells a client that waits for it to send the body (RFC 9110,
// 10.1.1), unless the answer has begun.
func (c *conn) sendContinue() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if !c.expecting {
		return nil
	}
	c.expecting = false
	return c.write([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
}

// close closes the connection.
func (c *conn) close() {
	if tcp, ok := c.net.(*net.TCPConn); ok && c.abort {
		_ = tcp.SetLinger(0)
	}
	if half, ok := c.net.(interface{ CloseWrite() error }); ok && c.linger && !c.abort {
		if half.CloseWrite() == nil && c.net.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
			_, _ = io.CopyN(io.Discard, c.net, lingerBytes)
		}
	}
	_ = c.net.Close()
}
