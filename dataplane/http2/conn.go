package http2

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

const (
	// readBuffer is small, since every idle connection has one; larger payloads are
	// read past it.
	readBuffer = 4 << 10
	// tableSize is what a client's encoder may remember: the default.
	tableSize = 4096
	// connWindow and streamWindow are what a client may send ahead of the upstream.
	connWindow   = 1 << 20
	streamWindow = 256 << 10
	// initialWindow is that of RFC 9113, 6.9.2.
	initialWindow = 64<<10 - 1
	maxWindow     = 1<<31 - 1
	// remembered is how many closed streams are told from those that never were.
	remembered = 128
)

// connectionError ends a connection with GOAWAY.
type connectionError struct {
	code h2.ErrCode
	why  string
}

func (e connectionError) Error() string { return e.code.String() + ": " + e.why }

// Why a connection ends that has done nothing wrong.
var (
	errDrained = errors.New("drained")
	errIdle    = errors.New("idle")
)

// conn is one connection.
type conn struct {
	server *Server
	nc     net.Conn
	on     *admission.Conn

	// Owned by the reader.
	in      *bufio.Reader
	framer  *h2.Framer
	decoder *hpack.Decoder
	head    head
	kind    h2.FrameType // of the frame being read
	greeted bool         // the client's SETTINGS have come
	armed   bool         // a read deadline is set
	open    uint32       // the stream whose header block is not complete
	ends    bool         // and whether it ends with it
	block   []byte       // what has come of it
	pieces  int

	// Owned by whoever has set flushing.
	writeBy time.Time

	idle *time.Timer

	mu sync.Mutex
	// Guarded by mu.
	streams   map[uint32]*stream
	last      uint32 // the highest stream seen
	closed    [remembered]closedStream
	closedAt  int
	running   int       // workers, also of streams that are reset
	quiet     sync.Cond // running or flushing ended
	idleSince time.Time
	budget    budget
	out       []byte // frames to be written
	answers   int    // bytes of out that answer control frames
	spare     []byte
	flushing  bool
	room      sync.Cond // out has been written
	broken    error     // of writing
	ending    error     // why the reader is to return
	final     bool      // no further streams: GOAWAY says so
	parting   bool      // the next answer says goodbye
	draining  bool
	window    int64         // what may be sent
	grant     int64         // the client's initial window for streams
	shrunk    bool          // the client has made its table smaller
	allowed   int64         // what the client may send
	owed      int64         // read, but not given back
	held      time.Duration // how long allowed was 0
	heldSince time.Time     // zero while it is not
	unwanted  []uint32      // streams that are answered and to be reset soon
}

type closedStream struct {
	id    uint32
	reset bool // by us: frames may still be under way
}

func newConn(s *Server, nc net.Conn, on *admission.Conn, first []byte) *conn {
	now := time.Now()
	c := &conn{
		server: s, nc: nc, on: on, streams: map[uint32]*stream{}, idleSince: now, budget: newBudget(now),
		window: initialWindow, grant: initialWindow, allowed: connWindow,
	}
	var from io.Reader = nc
	if len(first) > 0 {
		from = io.MultiReader(bytes.NewReader(first), nc)
	}
	c.in = bufio.NewReaderSize(from, readBuffer)
	c.framer = h2.NewFramer(io.Discard, c.in)
	c.framer.SetMaxReadFrameSize(maxFrame)
	c.decoder = hpack.NewDecoder(tableSize, c.head.field)
	c.quiet.L, c.room.L = &c.mu, &c.mu
	return c
}

// serve runs the connection to its end.
func (c *conn) serve() {
	c.mu.Lock()
	c.idle = time.AfterFunc(c.server.config.IdleTimeout, c.checkIdle)
	c.mu.Unlock()
	err := c.read()
	c.idle.Stop()
	c.end(err)
}

// greet queues our SETTINGS: the first frame of all.
func (c *conn) greet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	settings := [...]h2.Setting{
		{ID: h2.SettingMaxConcurrentStreams, Val: maxStreams},
		{ID: h2.SettingInitialWindowSize, Val: streamWindow},
		{ID: h2.SettingMaxHeaderListSize, Val: uint32(c.server.config.Settings().HeaderLimit())},
	}
	c.out = appendFrameHeader(c.out, 6*len(settings), h2.FrameSettings, 0, 0)
	for _, s := range settings {
		c.out = append(c.out, byte(s.ID>>8), byte(s.ID), byte(s.Val>>24), byte(s.Val>>16), byte(s.Val>>8), byte(s.Val))
	}
	c.out = appendWindowUpdate(c.out, 0, connWindow-initialWindow)
	c.kickLocked()
}

// read reads frames until one ends the connection, and returns why.
func (c *conn) read() error {
	c.deadline(time.Now().Add(c.server.config.HeaderTimeout))
	var preface [len(Preface)]byte
	if _, err := io.ReadFull(c.in, preface[:]); err != nil {
		return c.readError(err)
	}
	if string(preface[:]) != Preface {
		return connectionError{h2.ErrCodeProtocol, "no preface"}
	}
	for {
		if c.armed && c.greeted && c.open == 0 {
			c.deadline(time.Time{})
		}
		fh, err := c.framer.ReadFrameHeader()
		if err == nil {
			err = c.frame(fh)
		}
		if err == nil {
			continue
		}
		if err = c.readError(err); err != nil {
			return err
		}
	}
}

// readError ends the stream, and then is nil, or says why the connection ends.
func (c *conn) readError(err error) error {
	var stream h2.StreamError
	var connection h2.ConnectionError
	switch {
	case errors.As(err, &stream) && c.kind == h2.FrameHeaders:
		// Its block is not decoded, and without it the next cannot be.
		return connectionError{stream.Code, "invalid HEADERS"}
	case errors.As(err, &stream):
		return c.streamError(stream.StreamID, stream.Code)
	case errors.As(err, &connection):
		why := "invalid frame"
		if detail := c.framer.ErrorDetail(); detail != nil {
			why = detail.Error()
		}
		return connectionError{h2.ErrCode(connection), why}
	case errors.Is(err, h2.ErrFrameTooLarge):
		return connectionError{h2.ErrCodeFrameSize, "frame too large"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending != nil {
		return c.ending
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return connectionError{h2.ErrCodeEnhanceYourCalm, "a frame or a header block took too long"}
	}
	return err
}

// streamError resets one stream that the client has got wrong.
func (c *conn) streamError(id uint32, code h2.ErrCode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id > c.last {
		return connectionError{code, "on an idle stream"}
	}
	c.resetLocked(id, code)
	if s := c.streams[id]; s != nil {
		c.forgetLocked(id, true)
		s.killLocked(fmt.Errorf("%w: stream error: %v", exchange.ErrClientGone, code))
	}
	c.kickLocked()
	return c.budget.reset()
}

// unwantedGrace is how long a client whose request was answered before its end may
// go on sending it, in vain. Many (curl 7.88 and its library) forget an answer that
// they have not read when they learn of the reset; most have ended by then.
const unwantedGrace = 250 * time.Millisecond

// resetLaterLocked tells the client to stop sending what is not wanted any more
// (RFC 9113, 8.1), once it has had time to read its answer.
func (c *conn) resetLaterLocked(id uint32) {
	if c.unwanted = append(c.unwanted, id); len(c.unwanted) == 1 {
		time.AfterFunc(unwantedGrace, c.resetUnwanted)
	}
}

func (c *conn) resetUnwanted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := c.unwanted
	c.unwanted = nil
	if c.ending != nil || c.broken != nil {
		return
	}
	for _, id := range ids {
		if id != 0 {
			c.resetLocked(id, h2.ErrCodeNo)
		}
	}
	c.kickLocked()
}

// forgetLocked takes a stream off the list of open ones.
func (c *conn) forgetLocked(id uint32, reset bool) {
	delete(c.streams, id)
	c.closed[c.closedAt%remembered] = closedStream{id, reset}
	c.closedAt++
}

// wasLocked says what is known of a stream that is not open.
func (c *conn) wasLocked(id uint32) (known, reset bool) {
	for i := range c.closed {
		if c.closed[i].id == id {
			return true, c.closed[i].reset
		}
	}
	return false, false
}

// deadline sets when reading fails, unless it is to fail at once.
func (c *conn) deadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = !t.IsZero()
	if c.ending == nil {
		_ = c.nc.SetReadDeadline(t)
	}
}

// stopLocked makes the reader return.
func (c *conn) stopLocked(why error) {
	if c.ending == nil {
		c.ending = why
	}
	c.wakeReaderLocked()
}

func (c *conn) wakeReaderLocked() {
	if c.ending == nil {
		c.ending = errClientGone
	}
	_ = c.nc.SetReadDeadline(time.Unix(1, 0))
}

// failLocked ends every stream.
func (c *conn) failLocked(why error) {
	c.final = true
	for id, s := range c.streams {
		c.forgetLocked(id, true)
		s.killLocked(why)
	}
	c.room.Broadcast()
	if why == errCut {
		c.broken = why
		c.wakeReaderLocked()
	}
}

// done notes that a worker has ended.
func (c *conn) done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running--; c.running > 0 {
		return
	}
	c.idleSince = time.Now()
	c.quiet.Broadcast()
	c.restLocked()
}

// restLocked ends a drained connection that has nothing to do.
func (c *conn) restLocked() {
	if c.final && c.running == 0 && len(c.streams) == 0 {
		c.stopLocked(errDrained)
	}
}

// checkIdle ends the connection when no request came for too long.
func (c *conn) checkIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending != nil {
		return
	}
	limit := c.server.config.IdleTimeout
	if c.running == 0 && time.Since(c.idleSince) >= limit {
		c.stopLocked(errIdle)
		return
	}
	next := limit
	if c.running == 0 {
		next = limit - time.Since(c.idleSince)
	}
	c.idle.Reset(next)
}

const (
	lingerTime  = time.Second
	lingerBytes = 256 << 10
)

// end says goodbye, closes the connection, and waits for the workers.
func (c *conn) end(why error) {
	c.mu.Lock()
	var failed connectionError
	lost := !errors.As(why, &failed) && why != errIdle && why != errDrained
	cause := errClientGone
	if !lost && failed.why != "" {
		cause = fmt.Errorf("%w: %w", exchange.ErrClientGone, failed)
		c.server.config.Log.Debug("connection ended", "peer", c.on.Peer, "error", failed)
	}
	if c.ending == nil {
		c.ending = why
	}
	c.failLocked(cause)
	_ = c.nc.SetWriteDeadline(time.Now().Add(lingerTime))
	if !lost && c.broken == nil {
		c.goAwayLocked(c.last, failed.code, failed.why)
		c.flushLocked()
		for c.flushing {
			c.room.Wait()
		}
	}
	linger := !lost && c.broken == nil
	c.mu.Unlock()
	if linger {
		c.linger()
	}
	_ = c.nc.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken == nil {
		c.broken = cause
	}
	for c.running > 0 || c.flushing {
		if c.flushing {
			c.room.Wait()
			continue
		}
		c.quiet.Wait()
	}
}

// linger lets the client read what was written: to close with unread bytes would
// reset the connection under it.
func (c *conn) linger() {
	half, ok := c.nc.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil || c.nc.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c.in, lingerBytes)
}

// drainPing is the payload of the PING whose answer tells that the client has
// seen the first GOAWAY.
var drainPing = [8]byte{'d', 'r', 'a', 'i', 'n'}

// drainPatience bounds the wait for that answer.
const drainPatience = time.Second

// drain says goodbye in two steps (RFC 9113, 6.8): first that no more streams are
// to be opened, then, once the client has heard it, which was the last.
func (c *conn) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drainLocked()
}

// part makes the next answer say goodbye: a client that were told before its
// first would find no node to ask while balancers still send it here.
func (c *conn) part() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parting = true
}

func (c *conn) drainLocked() {
	if c.draining || c.final {
		return
	}
	c.draining = true
	c.goAwayLocked(maxWindow, h2.ErrCodeNo, "")
	c.out = append(appendFrameHeader(c.out, 8, h2.FramePing, 0, 0), drainPing[:]...)
	c.kickLocked()
	time.AfterFunc(drainPatience, c.drained)
}

// drained says which stream was the last.
func (c *conn) drained() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.final || c.ending != nil {
		return
	}
	c.final = true
	c.goAwayLocked(c.last, h2.ErrCodeNo, "")
	c.kickLocked()
	c.restLocked()
}
