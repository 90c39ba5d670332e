package http1

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// Errors of ClientConn.Do, beside those of the request's body and the causes of
// interruption. None wraps exchange.ErrMalformed or ErrTooLarge: these are for
// what a client did.
var (
	// ErrUnsent means that nothing of the request was sent: any other connection may
	// be tried.
	ErrUnsent = errors.New("the connection was closed before the request")
	// ErrNoAnswer means that the connection ended before the first byte of an
	// answer. On a connection that was used before, that is how servers end an idle
	// one (RFC 9112, 9.3.1).
	ErrNoAnswer = errors.New("the connection was closed without an answer")
	// ErrAnswer means that the answer broke off or cannot be understood in exactly
	// one way.
	ErrAnswer = errors.New("invalid answer")
	// ErrTimeout means that the head did not come before the deadline, or nothing of
	// the body for longer than Call.Idle.
	ErrTimeout = errors.New("no answer in time")
)

const (
	maxAnswerHead = 256 << 10
	maxInterim    = 16
	clientBuffer  = 4 << 10
	// keepBuffer is the largest buffer that an idle connection keeps.
	keepBuffer = 16 << 10
	// glance is how long a request waits before anything is set up that lets its
	// context interrupt it: most are answered sooner, and pay nothing.
	glance = time.Second
	// unboundedWrite is what an idle connection's socket surely takes at once.
	unboundedWrite = 4 << 10
)

// Call is one request to send.
type Call struct {
	// Context interrupts the request, the answer's body and an upgraded connection,
	// at the latest glance (1 s) after it ended.
	Context context.Context
	Request *exchange.Request
	// Body is the whole body when Whole is set; else Request.Body is streamed.
	Body  []byte
	Whole bool
	// Now is the time; Deadline bounds the wait for the answer's head.
	Now, Deadline time.Time
	// Watch has the end of Context interrupt at once, not up to glance later.
	Watch bool
	// Idle bounds the silence within a body or on an upgraded connection; 0 does not.
	Idle time.Duration
}

// ClientConn is one connection to an upstream. It carries one request at a time:
// Do, then Finish. The Response of Do, its strings, its body reader and trailers
// lie in the connection and hold until Finish. All methods but Interrupt belong
// to one goroutine.
type ClientConn struct {
	conn net.Conn
	// raw is conn, or what lies below its TLS: closing it waits for nobody.
	raw net.Conn
	// peek looks into the socket; nil where there is none.
	peek     syscall.RawConn
	peekFunc func(fd uintptr)
	askFunc  func(fd uintptr) bool
	peeked   bool
	asked    asked
	beyond   [1]byte // where TLS is asked for what nobody expects
	// used is set once the connection has carried a request.
	used bool

	buf []byte // buf[from:] is read and not consumed
	// from is where the head ends once it is parsed: body bytes are decoded in place
	// behind it, up to ready.
	from, ready int
	out         []byte
	head        responseHead
	resp        exchange.Response
	chunks      chunks

	call Call
	// left of a body with a length; ended when all of the body was read from the
	// connection, closed when the reader was closed.
	left      int64
	ended     bool
	closed    bool
	broken    bool
	bodyError error

	// armed and writeArmed are the socket's deadlines; zero for none.
	armed, writeArmed time.Time
	headCame          bool
	unwatch           func() bool
	active            atomic.Int64 // last byte on an upgraded connection, in Unix nanoseconds

	sender    sender
	cause     atomic.Pointer[error]
	interrupt func(error)
	trailer   func() exchange.Header
	upgrade   upgradeFunc
}

// NewClientConn takes over a connection, which may be a *tls.Conn that has shaken
// hands.
func NewClientConn(conn net.Conn) *ClientConn {
	c := &ClientConn{conn: conn, raw: conn, buf: make([]byte, 0, clientBuffer)}
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		c.raw = over.NetConn()
	}
	if s, ok := c.raw.(syscall.Conn); ok {
		c.peek, _ = s.SyscallConn()
	}
	c.peekFunc, c.askFunc = c.look, c.ask
	c.interrupt, c.trailer, c.upgrade = c.Interrupt, c.trailers, c.splice
	c.sender.result = make(chan error, 1)
	return c
}

// Do sends a request and returns the head of its answer; the body streams. A
// connection that was idle is looked at first, however short that was: what the
// upstream said unasked would be taken for the answer, and every answer behind it
// for that of the request before. One that is not Alive is ErrUnsent. After an error the connection is closed and the request's body is not read any more;
// after an answer the caller calls Finish once it has done with it. call is the
// caller's again when Do returns.
func (c *ClientConn) Do(call *Call) (*exchange.Response, error) {
	c.begin(call)
	resp, err := c.do()
	if err != nil {
		// What else failed when the client left failed for that.
		if cause := context.Cause(call.Context); cause != nil {
			err = fmt.Errorf("ask upstream: %w", cause)
		}
		c.broken = true
		c.Finish()
		return nil, err
	}
	return resp, nil
}

func (c *ClientConn) begin(call *Call) {
	c.call = *call
	c.ended, c.closed, c.headCame, c.bodyError = false, false, false, nil
	c.left = 0
}

func (c *ClientConn) do() (*exchange.Response, error) {
	if err := context.Cause(c.call.Context); err != nil {
		return nil, fmt.Errorf("ask upstream: %w", err)
	}
	if !c.call.Now.Before(c.call.Deadline) {
		return nil, ErrTimeout
	}
	if c.call.Watch {
		c.watch()
	}
	if err := c.send(); err != nil {
		return nil, err
	}
	if err := c.readHead(); err != nil {
		return nil, err
	}
	return c.respond()
}

// send writes the head and what is there of the body, and starts sending what
// is not.
func (c *ClientConn) send() error {
	r := c.call.Request
	length := int64(len(c.call.Body))
	streams := !c.call.Whole && r.Body.Reader != nil && r.Body.Length != 0
	if streams {
		length = r.Body.Length
	}
	out, err := appendRequest(c.out[:0], r, length)
	c.out = out
	if err != nil {
		return err
	}
	if c.call.Whole {
		c.out = append(c.out, c.call.Body...)
	}
	switch {
	case len(c.out) > unboundedWrite:
		c.armWrite(c.call.Deadline)
	case !c.writeArmed.IsZero():
		c.armWrite(time.Time{})
	}
	atOnce := c.used && !streams && c.writeArmed.IsZero() && c.canAsk()
	if c.used && !atOnce && !c.Alive() {
		return ErrUnsent
	}
	c.armFirst()
	n, err := 0, error(nil)
	if atOnce {
		if n, err = c.askAtOnce(); errors.Is(err, ErrUnsent) {
			return err
		}
	}
	if err == nil && n < len(c.out) {
		var more int
		more, err = c.conn.Write(c.out[n:])
		n += more
	}
	switch {
	case err == nil:
	case c.cause.Load() != nil:
		return fmt.Errorf("ask upstream: %w", *c.cause.Load())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrTimeout
	case n == 0:
		return fmt.Errorf("%w: %w", ErrUnsent, err)
	default:
		// It may have answered before it closed.
		c.broken = true
		return nil
	}
	if streams {
		if !c.writeArmed.IsZero() {
			c.armWrite(time.Time{})
		}
		c.sender.start(c, r.Body.Reader, length)
	}
	return nil
}

// armFirst sets the deadline of the first wait. One of a request before, not yet
// passed, serves as well.
func (c *ClientConn) armFirst() {
	first := c.call.Now.Add(glance)
	if c.call.Deadline.Before(first) {
		first = c.call.Deadline
	}
	if c.armed.Before(c.call.Now) || c.armed.After(first) {
		c.arm(first)
	}
}

// readHead waits for the head of the final answer and parses it.
func (c *ClientConn) readHead() error {
	taken, known, interim := 0, 0, 0
	for {
		end, err := headEnd(c.buf[c.from:], known)
		if err != nil {
			return invalid(err)
		}
		if end < 0 {
			known = len(c.buf) - c.from
			if taken+known > maxAnswerHead {
				return invalid(errAnswerHead)
			}
			if err := c.fill(); err != nil {
				return c.noHead(err, taken+known)
			}
			continue
		}
		if err := parseResponse(c.buf[c.from:c.from+end], c.call.Request.Method, &c.head); err != nil {
			return invalid(err)
		}
		c.from += end
		if c.head.status >= 200 || c.head.status == 101 {
			return nil
		}
		if interim++; interim > maxInterim {
			return invalid(errInterim)
		}
		taken += end
		known = 0
	}
}

var (
	errAnswerHead = fmt.Errorf("a head beyond %d bytes", maxAnswerHead)
	errInterim    = fmt.Errorf("more than %d interim answers", maxInterim)
)

// invalid says what is wrong with an answer; that it wraps something else is nobody's
// to see.
func invalid(detail error) error { return fmt.Errorf("%w: %v", ErrAnswer, detail) }

// noHead says why no head came; got bytes of it did.
func (c *ClientConn) noHead(err error, got int) error {
	switch {
	case c.cause.Load() != nil:
		return fmt.Errorf("ask upstream: %w", *c.cause.Load())
	case c.sender.bodyError.Load() != nil:
		return fmt.Errorf("read request body: %w", *c.sender.bodyError.Load())
	case errors.Is(err, ErrTimeout):
		return err
	case got == 0:
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	return fmt.Errorf("%w: it broke off in the head: %w", ErrAnswer, err)
}

// Finish ends the exchange, and tells whether the connection can carry another
// one; if not, it is closed. When it returns nobody reads the request's body,
// which is closed when it was not needed to its end.
func (c *ClientConn) Finish() (reusable bool) {
	sent := c.sender.finish(c)
	if c.unwatch != nil {
		if !c.unwatch() {
			c.broken = true
		}
		c.unwatch = nil
	}
	reusable = sent && !c.broken && c.ended && c.head.persistent() && c.head.minor == 1 && c.from == len(c.buf) && c.cause.Load() == nil
	fields := c.resp.Header.Fields()
	clear(fields)
	c.head.fields = fields[:0]
	c.resp = exchange.Response{}
	c.call = Call{}
	c.chunks.reset()
	c.buf, c.from, c.ready = c.buf[:0], 0, 0
	if !reusable {
		c.abort()
		return false
	}
	if cap(c.buf) > keepBuffer {
		c.buf = make([]byte, 0, clientBuffer)
	}
	if cap(c.out) > keepBuffer {
		c.out = nil
	}
	c.used = true
	return true
}

// Close closes an idle connection, in TLS with a farewell.
func (c *ClientConn) Close() error {
	c.broken = true
	return c.conn.Close()
}

// abort closes the connection whatever is under way on it.
func (c *ClientConn) abort() {
	c.broken = true
	c.raw.Close()
}
