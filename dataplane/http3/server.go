// Package http3 is the HTTP/3 front end (RFC 9114), on quic-go: it turns its
// requests into an exchange.Exchange and the handler's exchange.Response into its
// answers. It owns the QUIC connections to clients and refuses what could be read
// in two ways. It knows nothing of routes and policies, and writes no refusal of
// its own: it asks Config.Refuse for them.
package http3

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"
	"golang.org/x/time/rate"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// Config of a Server. Handle is called on one goroutine per request.
type Config = admission.Config

// Socket is one UDP socket to serve.
type Socket struct {
	// Conn is closed by Run.
	Conn net.PacketConn
	// TLS must have a certificate; its NextProtos are replaced. TLS 1.3 is what QUIC
	// has.
	TLS *tls.Config
	// SNIDecides is asked for each connection: see admission.Conn.
	SNIDecides func() bool
	// IDs, TokenKey and ResetKey are shared with other processes on the same socket;
	// nil: there are none.
	IDs      quic.ConnectionIDGenerator
	TokenKey *quic.TokenGeneratorKey
	ResetKey *quic.StatelessResetKey
}

const (
	// maxStreams bounds the requests in flight on one connection.
	maxStreams = 128
	// streamWindow and connWindow are what a client may send ahead of the upstream.
	streamWindow = 1 << 20
	connWindow   = 2 << 20
	// farewell is how long the last answers may take to arrive.
	farewell = time.Second
	// welcome is that for clients whose handshakes are under way.
	welcome = 5 * time.Second
	// handshakeTimeout bounds a handshake without progress.
	handshakeTimeout = 10 * time.Second
	// unverifiedRate is how many handshakes a second begin at once. Beyond it a client
	// first proves its address by a round trip (Retry, RFC 9000, 8.1.2): a signature is
	// too dear to be given to forged ones.
	unverifiedRate = 200
)

// Server serves sockets. Make one with New; Run may be called several times, also
// at once.
type Server struct {
	config    Config
	draining  time.Duration // patience with what is in flight at the end
	exchanges sync.Pool
	buffers   sync.Pool
	work      work
	// unverified are the handshakes with who may not be where he says.
	unverified *rate.Limiter
}

// New makes a server. drain bounds the wait for requests in flight once Run is to
// end; 0 means 30s.
func New(c Config, drain time.Duration) *Server {
	c.Complete()
	if drain <= 0 {
		drain = 30 * time.Second
	}
	s := &Server{config: c, draining: drain, unverified: rate.NewLimiter(unverifiedRate, unverifiedRate)}
	s.exchanges.New = func() any { return new(exchange.Exchange) }
	s.buffers.New = func() any { return new([copyBuffer]byte) }
	return s
}

// InFlight returns how many requests are being served.
func (s *Server) InFlight() int { return s.work.count() }

// ErrCut is wrapped by Run's error when requests had to be cut at the end of the
// drain.
var ErrCut = errors.New("requests in flight were cut")

type connKey struct{}

// Run serves the socket until ctx ends; then it says goodbye (GOAWAY), finishes
// the requests in flight and closes the socket. Connections that a client keeps
// open without a request are closed at the end of the drain.
func (s *Server) Run(ctx context.Context, socket Socket) error {
	l := &life{server: s, socket: socket, changed: make(chan struct{}, 1), fronts: map[*quichttp3.Server]struct{}{}}
	transport := &quic.Transport{
		ConnContext: l.begin,
		Conn:        socket.Conn, VerifySourceAddress: func(net.Addr) bool { return !s.unverified.Allow() },
		ConnectionIDGenerator: socket.IDs, TokenGeneratorKey: socket.TokenKey, StatelessResetKey: socket.ResetKey,
	}
	// No 0-RTT: who records it can send it once more (RFC 8446, 8).
	listener, err := transport.Listen(quichttp3.ConfigureTLSConfig(socket.TLS), &quic.Config{
		MaxIncomingStreams: maxStreams,
		// Three of a client's own and those of QPACK.
		MaxIncomingUniStreams: 8,
		// What one connection may have in memory here, as in HTTP/2.
		MaxStreamReceiveWindow:     streamWindow,
		MaxConnectionReceiveWindow: connWindow,
		MaxIdleTimeout:             s.config.IdleTimeout,
		HandshakeIdleTimeout:       handshakeTimeout,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("serve QUIC on %v: %w", socket.Conn.LocalAddr(), err), transport.Close(), socket.Conn.Close())
	}
	l.listener = listener
	served := make(chan error, 1)
	go func() {
		defer close(served)
		served <- l.accept()
	}()
	select {
	case err = <-served:
		err = fmt.Errorf("serve QUIC on %v: %w", socket.Conn.LocalAddr(), err)
		l.cut()
	case <-ctx.Done():
		err = l.drain()
	}
	err = errors.Join(err, listener.Close())
	for range served {
	}
	return errors.Join(err, transport.Close(), closed(socket.Conn))
}

// closed closes the socket, which the transport may have done.
func closed(c net.PacketConn) error {
	if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// AltSvc returns the value of the Alt-Svc field (RFC 7838) that offers HTTP/3 on
// the UDP port.
func AltSvc(port int) string { return fmt.Sprintf(`h3=":%d"; ma=86400`, port) }
