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
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// Preface is what a client sends first (RFC 9113, 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Config of a Server.
type Config struct {
	// Handle answers an exchange; never nil. It is called on one goroutine per
	// request. The exchange and its strings hold until Done has run.
	Handle func(*exchange.Exchange) *exchange.Response
	// Refuse renders the front end's own refusals, whose reasons are those of
	// package admission; never nil.
	Refuse func(e *exchange.Exchange, reason string, status int) *exchange.Response
	// Settings returns the live settings. It is called for every request and so is
	// cheap; nil means the zero Settings.
	Settings func() *admission.Settings

	// HeaderTimeout bounds the time from a head's first byte to its last, and that
	// of the connection's first frame; 0 means 10s.
	HeaderTimeout time.Duration
	// BodyTimeout bounds the wait for more of a request's body before the answer has
	// begun; 0 means 30s. Streams of gRPC may be silent for as long as they like.
	BodyTimeout time.Duration
	// WriteTimeout bounds the wait for the client to take more; 0 means 60s.
	WriteTimeout time.Duration
	// IdleTimeout bounds the wait for the next request; 0 means 2m.
	IdleTimeout time.Duration
	// MaxStreams bounds the requests in flight on one connection; 0 means 128.
	MaxStreams int
	// Log gets what cannot be said to the client; nil discards it.
	Log *slog.Logger
}

func (c *Config) setDefaults() {
	for _, d := range []struct {
		have *time.Duration
		zero time.Duration
	}{
		{&c.HeaderTimeout, 10 * time.Second}, {&c.BodyTimeout, 30 * time.Second},
		{&c.WriteTimeout, time.Minute}, {&c.IdleTimeout, 2 * time.Minute},
	} {
		if *d.have <= 0 {
			*d.have = d.zero
		}
	}
	if c.MaxStreams <= 0 {
		c.MaxStreams = 128
	}
	if c.Settings == nil {
		zero := &admission.Settings{}
		c.Settings = func() *admission.Settings { return zero }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

var (
	// errCut is the cause of what Cut ends.
	errCut = errors.New("node is stopping")
	// errClientGone is the cause of what a lost connection ends.
	errClientGone = errors.New("the client closed the connection")
	// errClientReset is the cause of what RST_STREAM ends.
	errClientReset = errors.New("the client reset the stream")
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
	empty    chan struct{} // closed when conns is empty; nil when nobody asked
}

// NewServer makes a server.
func NewServer(c Config) *Server {
	c.setDefaults()
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
	if s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
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

// Empty returns a channel that is closed once no connection is being served.
func (s *Server) Empty() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.empty != nil {
		return s.empty
	}
	empty := make(chan struct{})
	if len(s.conns) == 0 {
		close(empty)
	} else {
		s.empty = empty
	}
	return empty
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
