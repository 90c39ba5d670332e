package http2

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"portcullis.dev/portcullis/dataplane/http1"
)

const (
	clientReadBuffer = 32 << 10
	// What an upstream may send ahead of the client: on one stream, and on all of
	// them together before we have read it off the wire.
	clientStreamWindow = 512 << 10
	clientConnWindow   = 4 << 20
	// firstStreams is how many requests go out before the upstream has said how many
	// it takes; mostStreams bounds them whatever it says.
	firstStreams = 100
	mostStreams  = 1000
	// mostFree bounds the streams that a connection keeps for other requests.
	mostFree = 256
	// maxInterim bounds the 1xx answers before one answer.
	maxInterim = 16
	// clientWrite bounds the wait for the upstream to take what is written.
	clientWrite = 30 * time.Second
	// farewell bounds the last write, afterlife what is read when writing has failed:
	// an upstream may have answered before it closed.
	farewell  = 250 * time.Millisecond
	afterlife = time.Second
	// glance is how long a request waits before anything is set up that lets its
	// context interrupt it: most are answered sooner, and pay nothing.
	glance = time.Second

	defaultClientIdle = time.Minute
)

// ErrBegun is wrapped, beside http1.ErrUnsent, when a request that was not
// processed cannot be sent again as it is: some of its body has been read.
var ErrBegun = errors.New("some of the request's body was read")

// ClientConfig of a ClientConn.
type ClientConfig struct {
	// Scheme is that of the requests: http or https.
	Scheme string
	// Idle is how long the connection stays open without requests; 0 means 60s.
	Idle time.Duration
	// Changed is called when a stream may have become free, and when the connection
	// takes no more. It must neither wait nor call the connection; nil: nobody asks.
	Changed func()
	// Ended is called once, when the connection is closed; nil: nobody asks.
	Ended func(*ClientConn)
}

// ClientConn is one connection to an upstream, with many requests at once. One
// goroutine reads; what is written is written together, by a request that has
// nothing else to do, or a goroutine that lasts as long as there is something. All
// methods are safe for concurrent use, and none but NewClientConn's goroutine waits.
type ClientConn struct {
	config ClientConfig
	nc     net.Conn
	// raw is nc, or what lies below its TLS: closing it waits for nobody.
	raw   net.Conn
	start time.Time
	drain func() // drainOut, made once
	// heard is when something was last read, since start.
	heard atomic.Int64

	// Owned by the reader.
	in      *bufio.Reader
	framer  *h2.Framer
	decoder *hpack.Decoder
	head    answerHead
	kind    h2.FrameType // of the frame being read
	greeted bool         // the upstream's SETTINGS have come
	ends    bool         // the header block that is not complete ends its stream
	block   []byte       // what has come of it
	pieces  int
	woken   []*ClientStream // have something new and are not told yet

	// Owned by whoever has set flushing.
	writeBy time.Time

	mu sync.Mutex
	// Guarded by mu.
	streams  map[uint32]*ClientStream
	free     []*ClientStream
	reserved int    // streams handed out that have no id yet
	next     uint32 // the next stream's id
	most     int64  // what the upstream takes at once
	closed   [remembered]closedStream
	closedAt int
	budget   budget
	stray    int64 // what may still come on streams that we have reset

	out      []byte // frames to be written
	answers  int    // bytes of out that answer control frames
	spare    []byte
	taken    uint64 // bytes handed to the socket, ever
	flushing bool
	writes   time.Time // when the write that is under way began; zero: none is
	room     sync.Cond // out has been written
	broken   error     // of writing
	ending   error     // why the reader is to return

	final   bool      // takes no further requests
	refused bool      // and not those that are reserved either
	goodbye uint32    // the last stream of the upstream's GOAWAY
	window  int64     // what may be sent
	grant   int64     // the upstream's initial window for streams
	shrunk  bool      // the upstream has made its table smaller
	allowed int64     // what the upstream may send
	owed    int64     // read, but not given back
	beat    vigilance // of a connection that is silent or idle
	resets  resets
}

// NewClientConn takes over a connection, which may be a *tls.Conn that has shaken
// hands, greets the upstream and begins to read. It ends when Retire or Cut is
// called, when the upstream says so, or after Config.Idle.
func NewClientConn(nc net.Conn, config ClientConfig) *ClientConn {
	if config.Idle <= 0 {
		config.Idle = defaultClientIdle
	}
	if config.Changed == nil {
		config.Changed = func() {}
	}
	if config.Ended == nil {
		config.Ended = func(*ClientConn) {}
	}
	now := time.Now()
	c := &ClientConn{
		config: config, nc: nc, raw: nc, start: now,
		streams: map[uint32]*ClientStream{}, next: 1, most: firstStreams, budget: newBudget(now), goodbye: maxWindow,
		window: initialWindow, grant: initialWindow, allowed: clientConnWindow,
	}
	if over, ok := nc.(interface{ NetConn() net.Conn }); ok {
		c.raw = over.NetConn()
	}
	c.in = bufio.NewReaderSize(listener{c}, clientReadBuffer)
	c.framer = h2.NewFramer(io.Discard, c.in)
	c.framer.SetMaxReadFrameSize(maxFrame)
	c.decoder = hpack.NewDecoder(tableSize, c.head.field)
	c.room.L = &c.mu
	c.drain = c.drainOut
	c.mu.Lock()
	defer c.mu.Unlock()
	c.greetLocked()
	c.beat.timer = time.AfterFunc(min(config.Idle, silence), c.look)
	go c.run()
	return c
}

// greetLocked queues the preface and our SETTINGS.
func (c *ClientConn) greetLocked() {
	settings := [...]h2.Setting{
		{ID: h2.SettingEnablePush, Val: 0},
		{ID: h2.SettingInitialWindowSize, Val: clientStreamWindow},
		{ID: h2.SettingMaxHeaderListSize, Val: maxAnswerHead},
	}
	c.out = append(c.out, Preface...)
	c.out = appendFrameHeader(c.out, 6*len(settings), h2.FrameSettings, 0, 0)
	for _, s := range settings {
		c.out = append(c.out, byte(s.ID>>8), byte(s.ID), byte(s.Val>>24), byte(s.Val>>16), byte(s.Val>>8), byte(s.Val))
	}
	c.out = appendWindowUpdate(c.out, 0, clientConnWindow-initialWindow)
	c.kickLocked()
}

// Stream reserves a stream for one request, and returns nil when the connection
// takes no more. The caller calls Do on it, once.
func (c *ClientConn) Stream() *ClientStream {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.final || c.ending != nil || c.broken != nil || int64(len(c.streams)+c.reserved+c.resets.unconfirmed) >= c.most {
		return nil
	}
	if len(c.streams)+c.reserved == 0 {
		c.beat.since = time.Since(c.start)
	}
	c.reserved++
	if last := len(c.free) - 1; last >= 0 {
		s := c.free[last]
		c.free[last], c.free = nil, c.free[:last]
		return s
	}
	return newClientStream(c)
}

// Busy returns how many requests the connection carries.
func (c *ClientConn) Busy() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams) + c.reserved
}

// Retire lets the connection end with its last request. It takes no more.
func (c *ClientConn) Retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.final = true
	c.restLocked()
}

// RetireIdle is Retire for a connection that carries no request and would take one;
// false: it is none.
func (c *ClientConn) RetireIdle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.final || c.ending != nil || c.broken != nil || len(c.streams)+c.reserved > 0 {
		return false
	}
	c.final = true
	c.restLocked()
	return true
}

// Cut closes the connection; its requests fail with the cause.
func (c *ClientConn) Cut(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutLocked(cutError{cause})
}

// cutError ends a connection at once, without a farewell.
type cutError struct{ cause error }

func (e cutError) Error() string { return e.cause.Error() }
func (e cutError) Unwrap() error { return e.cause }

func (c *ClientConn) cutLocked(why error) {
	if c.ending == nil {
		c.ending = why
	}
	if c.broken == nil {
		c.broken = why
	}
	_ = c.raw.Close()
}

// restLocked ends a connection that takes no more requests and has none.
func (c *ClientConn) restLocked() {
	if !c.final || len(c.streams)+c.reserved > 0 || c.ending != nil {
		return
	}
	c.stopLocked(errDrained)
}

// stopLocked makes the reader return.
func (c *ClientConn) stopLocked(why error) {
	if c.ending == nil {
		c.ending = why
	}
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// readGuarded is read; a panic, which some answer may bring about, ends this connection
// and not the process.
func (c *ClientConn) readGuarded() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = connectionError{h2.ErrCodeInternal, fmt.Sprintf("panic while reading: %v\n%s", v, debug.Stack())}
		}
	}()
	return c.read()
}

// run reads until the connection ends, and ends everything on it.
func (c *ClientConn) run() {
	err := c.readGuarded()
	c.wake()
	c.mu.Lock()
	if c.ending == nil {
		c.ending = err
	}
	c.beat.timer.Stop()
	c.failLocked(c.ending)
	var violation connectionError
	polite := c.broken == nil && (errors.As(c.ending, &violation) || c.ending == errIdle || c.ending == errDrained)
	if polite {
		_ = c.nc.SetWriteDeadline(time.Now().Add(farewell))
		for c.flushing {
			c.room.Wait()
		}
		c.out = appendFrameHeader(c.out, 8, h2.FrameGoAway, 0, 0)
		c.out = append(c.out, 0, 0, 0, 0, byte(violation.code>>24), byte(violation.code>>16), byte(violation.code>>8), byte(violation.code))
		c.flushing = true
		c.drainLocked(nil)
		polite = c.broken == nil
	}
	if c.broken == nil {
		c.broken = c.ending
	}
	c.room.Broadcast()
	c.config.Changed()
	c.mu.Unlock()
	if polite {
		_ = c.nc.Close()
	}
	_ = c.raw.Close()
	c.config.Ended(c)
}

// failLocked ends every stream.
func (c *ClientConn) failLocked(why error) {
	c.final = true
	var violation connectionError
	var cut cutError
	for _, s := range c.streams {
		err := fmt.Errorf("%w: %w", http1.ErrNoAnswer, why)
		switch {
		case s.at >= c.taken:
			err = fmt.Errorf("%w: %w", http1.ErrUnsent, why)
		case errors.As(why, &cut):
			err = cut.cause
		case errors.As(why, &violation):
			err = fmt.Errorf("%w: %w", http1.ErrAnswer, why)
		case s.headed:
			err = fmt.Errorf("%w: it broke off: %w", http1.ErrAnswer, unexpected(why))
		}
		s.failLocked(err)
	}
}

// unexpected keeps an end that came too early from being taken for one in time.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// listener is what the reader reads from: it notes when something came.
type listener struct{ c *ClientConn }

func (l listener) Read(p []byte) (int, error) {
	n, err := l.c.nc.Read(p)
	if n > 0 {
		l.c.heard.Store(int64(time.Since(l.c.start)))
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.c.mu.Lock()
		defer l.c.mu.Unlock()
		if l.c.ending == nil && l.c.broken != nil {
			return n, l.c.broken
		}
	}
	return n, err
}
