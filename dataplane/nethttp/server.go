// Package nethttp is the HTTP/1.1 front end on net/http: it turns bytes into an
// exchange.Exchange and the handler's exchange.Response into bytes. It owns the
// connections to clients, decides what of a request can be believed, and refuses
// what could be read in two ways. It knows nothing of routes and policies, and
// writes no refusal of its own: it asks Config.Refuse for them.
package nethttp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// Settings are what the live snapshot says; they may change between requests.
// The zero Settings trust no proxy and have the default limits.
type Settings struct {
	// TrustedProxies are the peers whose X-Forwarded-For, X-Forwarded-Proto,
	// Forwarded and X-Request-Id are believed.
	TrustedProxies []netip.Prefix
	// MaxHeaderBytes bounds request line and header fields; 0 means 64 KiB, more
	// than 1 MiB means 1 MiB.
	MaxHeaderBytes int
	// MaxBodyBytes bounds a request's body; 0 means 10 MiB.
	MaxBodyBytes int64
}

const (
	defaultHeaderBytes = 64 << 10
	mostHeaderBytes    = 1 << 20
	defaultBodyBytes   = 10 << 20
)

func (s *Settings) maxHeaderBytes() int {
	if s.MaxHeaderBytes <= 0 {
		return defaultHeaderBytes
	}
	return min(s.MaxHeaderBytes, mostHeaderBytes)
}

func (s *Settings) maxBodyBytes() int64 {
	if s.MaxBodyBytes <= 0 {
		return defaultBodyBytes
	}
	return s.MaxBodyBytes
}

func (s *Settings) trusts(a netip.Addr) bool {
	for _, p := range s.TrustedProxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Config of a Server.
type Config struct {
	// Handle answers an exchange; never nil. It is called on one goroutine per
	// connection. The exchange and its strings hold until Done has run.
	Handle func(*exchange.Exchange) *exchange.Response
	// Refuse renders the front end's own refusals: request_malformed,
	// request_too_large, and internal_error when Handle panics. The Request holds
	// what is known of it, which may be nothing but Peer. What decided stands in
	// the exchange's Why.
	Refuse func(e *exchange.Exchange, reason string, status int) *exchange.Response
	// Settings returns the live settings. It is called several times per request
	// and so is cheap; nil means the zero Settings.
	Settings func() *Settings

	// HeaderTimeout bounds the time from a head's first byte to its last; 0 means 10s.
	HeaderTimeout time.Duration
	// BodyTimeout bounds the wait for more of a request's body; 0 means 30s.
	BodyTimeout time.Duration
	// WriteTimeout bounds the wait for the client to take one write; 0 means 60s.
	WriteTimeout time.Duration
	// IdleTimeout bounds the wait for the next request; 0 means 2m.
	IdleTimeout time.Duration
	// Grace is how long a draining server goes on accepting, so that balancers
	// notice that it is not ready; each answer closes its connection.
	Grace time.Duration
	// Drain bounds the wait, after Grace, for requests and upgraded connections
	// in flight; 0 means 30s.
	Drain time.Duration
	// Log gets what cannot be said to the client; nil discards it.
	Log *slog.Logger
}

func or(d, zero time.Duration) time.Duration {
	if d <= 0 {
		return zero
	}
	return d
}

func (c *Config) headerTimeout() time.Duration { return or(c.HeaderTimeout, 10*time.Second) }
func (c *Config) bodyTimeout() time.Duration   { return or(c.BodyTimeout, 30*time.Second) }
func (c *Config) writeTimeout() time.Duration  { return or(c.WriteTimeout, time.Minute) }
func (c *Config) idleTimeout() time.Duration   { return or(c.IdleTimeout, 2*time.Minute) }
func (c *Config) drain() time.Duration         { return or(c.Drain, 30*time.Second) }

// ErrCut is wrapped by Run's error when connections had to be cut at the end of
// the drain.
var ErrCut = errors.New("requests in flight were cut")

var errStopping = errors.New("node is stopping")

// Server serves one listener. Make one with New; run it once.
type Server struct {
	config    Config
	exchanges sync.Pool
	buffers   sync.Pool
	open      tracker
	draining  atomic.Bool
	killed    atomic.Bool
}

// New makes a server.
func New(c Config) *Server {
	if c.Settings == nil {
		zero := &Settings{}
		c.Settings = func() *Settings { return zero }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{config: c}
	s.exchanges.New = func() any { return new(exchange.Exchange) }
	s.buffers.New = func() any { return new([copyBuffer]byte) }
	return s
}

func (s *Server) settings() *Settings { return s.config.Settings() }

type connKey struct{}

// Run serves the listener, which it closes, until ctx ends; then it drains. It
// returns when all connections are closed: nil, ErrCut, or the listener's error.
// The listener may yield TLS connections that negotiate http/1.1.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	life, kill := context.WithCancelCause(context.WithoutCancel(ctx))
	defer kill(nil)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	hs := &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: s.config.headerTimeout(),
		IdleTimeout:       s.config.idleTimeout(),
		// Our own limit is reached first.
		MaxHeaderBytes:               2 * mostHeaderBytes,
		BaseContext:                  func(net.Listener) context.Context { return life },
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:                     slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
		DisableGeneralOptionsHandler: true,
		Protocols:                    protocols,
	}
	served := make(chan error, 1)
	go func() { served <- hs.Serve(&listener{ln, s}) }()
	select {
	case err := <-served:
		s.cut(hs, kill)
		return fmt.Errorf("serve %v: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	s.draining.Store(true)
	if s.config.Grace > 0 {
		grace := time.NewTimer(s.config.Grace)
		defer grace.Stop()
		select {
		case err := <-served:
			served <- err
		case <-grace.C:
		}
	}
	ln.Close()
	<-served
	return s.finish(hs, kill)
}

// finish ends what is still open after the listener is closed.
func (s *Server) finish(hs *http.Server, kill context.CancelCauseFunc) error {
	late, cancel := context.WithTimeout(context.Background(), s.config.drain())
	defer cancel()
	// net/http waits five seconds for a connection that never sent anything.
	s.open.closeSilent()
	err := hs.Shutdown(late)
	if err == nil || !errors.Is(err, context.DeadlineExceeded) {
		select {
		case <-s.open.empty():
			return nil
		case <-late.Done():
		}
	}
	left := s.cut(hs, kill)
	return fmt.Errorf("%w: %d connections", ErrCut, left)
}

// cut ends every connection and waits for their handlers.
func (s *Server) cut(hs *http.Server, kill context.CancelCauseFunc) int {
	s.killed.Store(true)
	kill(errStopping)
	left := s.open.closeAll()
	hs.Close()
	<-s.open.empty()
	return left
}

// listener yields vetting connections.
type listener struct {
	net.Listener
	server *Server
}

func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: raw, server: l.server, peer: peerOf(raw.RemoteAddr())}
	l.server.open.add(c)
	return c, nil
}

// peerOf returns the zero Addr for what is not an IP address.
func peerOf(a net.Addr) netip.Addr {
	if at, err := netip.ParseAddrPort(a.String()); err == nil {
		return at.Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
