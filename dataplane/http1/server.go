package http1

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// Config of a Server. Handle is called on one goroutine per connection.
type Config = admission.Config

var (
	errStopping = exchange.ErrStopping
	errGone     = fmt.Errorf("it closed the connection: %w", exchange.ErrClientGone)
)

// Server serves connections, each on the goroutine that calls Serve. Make one
// with NewServer. Its methods may be called concurrently.
type Server struct {
	config Config
	// goodbye: answers end their connections; draining: idle ones are closed, too.
	goodbye, draining atomic.Bool
	date              atomic.Pointer[date]
	small, large      sync.Pool // write buffers
	heads             sync.Pool // read buffers
	pipes             pipes

	mu sync.Mutex
	// Guarded by mu.
	conns   map[*conn]struct{}
	killed  bool
	watch   *time.Timer // looks for clients that have gone; runs while connections are open
	watched bool
}

// NewServer makes a server.
func NewServer(c Config) *Server {
	c.Complete()
	s := &Server{config: c, conns: map[*conn]struct{}{}}
	s.heads.New = func() any { return new([readBuffer]byte) }
	s.small.New = func() any { return new([smallBuffer]byte) }
	s.large.New = func() any { return new([largeBuffer]byte) }
	return s
}

// Serve serves one connection until it ends, and closes it. first are the bytes
// that were read from it already. on is used by this connection only.
func (s *Server) Serve(nc net.Conn, on *admission.Conn, first []byte) {
	c := &conn{server: s, net: nc, on: on, raw: rawConn(nc)}
	c.readyTurns()
	if c.buf = s.takeBuffer(); len(first) > len(c.buf) {
		c.buf = make([]byte, len(first))
	}
	c.to = copy(c.buf, first)
	ctx, cancel := context.WithCancelCause(context.Background())
	c.ctx, c.cancel = ctx, cancel
	defer cancel(nil)
	if !s.add(c) {
		nc.Close()
		return
	}
	defer s.remove(c)
	defer func() { s.giveBuffer(c.buf) }()
	defer c.close()
	c.serve()
}

// takeBuffer returns a read buffer; giveBuffer takes one back that nothing refers
// to any more, if it is of the common size.
func (s *Server) takeBuffer() []byte { return s.heads.Get().(*[readBuffer]byte)[:] }

func (s *Server) giveBuffer(b []byte) {
	if len(b) == readBuffer {
		s.heads.Put((*[readBuffer]byte)(b))
	}
}

// rawConn returns what looks at the socket of a connection, nil for one that has
// none.
func rawConn(nc net.Conn) syscall.RawConn {
	if inner, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = inner.NetConn()
	}
	if direct, ok := nc.(syscall.Conn); ok {
		if raw, err := direct.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// Goodbye makes every answer from now on close its connection. Connections that
// are idle stay open: a request may be on its way to them.
func (s *Server) Goodbye() { s.goodbye.Store(true) }

// Drain makes every answer from now on close its connection and closes those
// that are idle.
func (s *Server) Drain() {
	s.goodbye.Store(true)
	s.draining.Store(true)
	for _, c := range s.list() {
		// Wakes whoever reads: one that waits for a request sees that it is time to go,
		// the others go on.
		_ = c.net.SetReadDeadline(past)
	}
}

// past is a deadline that interrupts.
var past = time.Unix(1, 0)

// Cut closes all connections, now and from now on, and interrupts what stands
// behind them.
func (s *Server) Cut() {
	s.goodbye.Store(true)
	s.draining.Store(true)
	s.mu.Lock()
	s.killed = true
	s.mu.Unlock()
	for _, c := range s.list() {
		c.interrupt(errStopping)
		c.cut()
	}
}

// Open returns the number of connections that are being served.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *Server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.killed {
		return false
	}
	s.conns[c] = struct{}{}
	if !s.watched {
		s.watched = true
		if s.watch == nil {
			s.watch = time.AfterFunc(watchEvery, s.look)
		} else {
			s.watch.Reset(watchEvery)
		}
	}
	return true
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

func (s *Server) list() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}
