// Package http2 serves HTTP/2 (RFC 9113) on connections that it is given: one
// reader per connection, one goroutine per request, frames of all of them written
// together. It turns frames into an exchange.Exchange and the handler's
// exchange.Response into frames. What is malformed is refused, and what exhausts
// (resets, floods, bombs) ends the connection. It knows nothing of routes,
// policies and listeners, and writes no refusal of its own: it asks Config.Refuse.
//
// Server push, priorities and extended CONNECT are not offered.
package http2

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// Preface is what a client sends first (RFC 9113, 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Config of a Server. Handle is called on one goroutine per request.
type Config = admission.Config

// maxStreams bounds the requests in flight on one connection.
const maxStreams = 128

var (
	// errCut is the cause of what Cut ends.
	errCut = exchange.ErrStopping
	// errClientGone is the cause of what a lost connection ends.
	errClientGone = fmt.Errorf("it closed the connection: %w", exchange.ErrClientGone)
	// errClientReset is the cause of what RST_STREAM ends.
	errClientReset = fmt.Errorf("it reset the stream: %w", exchange.ErrClientGone)
	// errEnded is what a request's body says after its exchange.
	errEnded = errors.New("the exchange has ended")
)

// maxParked bounds the goroutines that wait for another request.
const maxParked = 256

// Server serves connections. Make one with NewServer. It is safe for concurrent use.
type Server struct {
	config  Config
	buffers sync.Pool // *[copyBuffer]byte, for answers on their way out
	chunks  sync.Pool // *chunk, for bodies on their way in
	date    atomic.Pointer[date]

	mu sync.Mutex
	// Guarded by mu.
	conns    map[*conn]struct{}
	parked   []*stream // last in, first out: its stack is warm
	parting  bool
	draining bool
	cut      bool
}

// NewServer makes a server.
func NewServer(c Config) *Server {
	c.Complete()
	s := &Server{config: c, conns: map[*conn]struct{}{}}
	s.buffers.New = func() any { return new([copyBuffer]byte) }
	s.chunks.New = func() any { return new(chunk) }
	return s
}

// Serve serves one connection, which it closes, until it and every request on it
// have ended. first holds bytes that were already read from it.
func (s *Server) Serve(nc net.Conn, on *admission.Conn, first []byte) {
	c := newConn(s, nc, on, first)
	s.mu.Lock()
	if s.cut {
		s.mu.Unlock()
		_ = nc.Close()
		return
	}
	c.greet()
	s.conns[c] = struct{}{}
	parting, draining := s.parting, s.draining
	s.mu.Unlock()
	if draining {
		c.drain()
	} else if parting {
		c.part()
	}
	c.serve()
	s.remove(c)
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if len(s.conns) > 0 {
		return
	}
	for _, w := range s.parked {
		close(w.wake)
	}
	s.parked = nil
}

// Goodbye makes every connection, from its next answer on, tell its client to use
// another (GOAWAY). Requests that are on their way by then are answered.
func (s *Server) Goodbye() {
	s.mu.Lock()
	s.parting = true
	conns := s.list()
	s.mu.Unlock()
	for _, c := range conns {
		c.part()
	}
}

// Drain is Goodbye without waiting for an answer; what is idle is closed once its
// client has heard it. It does not wait. Calls after the first do nothing.
func (s *Server) Drain() {
	s.mu.Lock()
	s.parting, s.draining = true, true
	conns := s.list()
	s.mu.Unlock()
	for _, c := range conns {
		c.drain()
	}
}

// Cut closes all connections and interrupts what is behind them. Connections that
// are served later are closed at once.
func (s *Server) Cut() {
	s.mu.Lock()
	s.draining, s.cut = true, true
	conns := s.list()
	s.mu.Unlock()
	for _, c := range conns {
		c.mu.Lock()
		c.failLocked(errCut)
		c.mu.Unlock()
		_ = c.nc.Close()
	}
}

func (s *Server) list() []*conn {
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns
}

// Open returns how many connections are being served.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// worker returns a stream with a goroutine of its own that waits for work.
func (s *Server) worker() *stream {
	s.mu.Lock()
	if last := len(s.parked) - 1; last >= 0 {
		w := s.parked[last]
		s.parked[last], s.parked = nil, s.parked[:last]
		s.mu.Unlock()
		return w
	}
	s.mu.Unlock()
	w := &stream{server: s, wake: make(chan struct{}, 1)}
	go w.work()
	return w
}

// park keeps a stream for another request, or tells it to end.
func (s *Server) park(w *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.parked) == maxParked || len(s.conns) == 0 {
		return false
	}
	s.parked = append(s.parked, w)
	return true
}
