// Package listen owns the sockets that clients connect to, and their life: it
// accepts, shakes hands in TLS under the certificate that the client's name calls
// for, hands each connection to the front end that speaks its protocol, and
// drains. What is spoken on a socket comes from the Gateway's listeners and may
// change while it is open. It knows nothing of HTTP but how a front end is served
// and stopped, and the one path at which ACME authorities ask.
package listen

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
)

// Front serves connections of one protocol. Its methods may be called
// concurrently.
type Front interface {
	// Serve serves one connection until it ends, and closes it. first are the bytes
	// that were read from it already.
	Serve(c net.Conn, on *admission.Conn, first []byte)
	// Goodbye makes every answer from now on tell its client to go elsewhere.
	Goodbye()
	// Drain is Goodbye and closes what is idle.
	Drain()
	// Cut closes everything, now and from now on.
	Cut()
}

// Config of Listeners.
type Config struct {
	// Grace is how long a draining node goes on accepting, so that balancers notice
	// that it is not ready; each answer closes its connection.
	Grace time.Duration
	// Drain bounds the wait, after Grace, for requests and upgraded connections
	// in flight; 0 means 30s.
	Drain time.Duration
	// Log gets what cannot be said to a client; nil discards it.
	Log *slog.Logger

	// HTTP1 serves HTTP/1.1; required by New.
	HTTP1 Front
	// HTTP2 serves HTTP/2; nil: it is not offered.
	HTTP2 Front
	// HTTP3 serves HTTP/3; nil: it is not offered.
	HTTP3 QUIC
	// Packets is what Packets returned in the process that this one succeeds; nil
	// for none. New takes it over.
	Packets map[string]*os.File
	// Refuse reports whether new connections are to be closed at once, for want of
	// memory; nil: never.
	Refuse func() bool
	// HandshakeTimeout bounds a TLS handshake, and the wait for the first bytes of a
	// connection in clear text; 0 means 10s.
	HandshakeTimeout time.Duration
	// Handshakes bounds the TLS handshakes under way at once: one more ends the
	// oldest. 0 means 4096.
	Handshakes int
}

func (c *Config) complete() {
	if c.Drain <= 0 {
		c.Drain = defaultDrain
	}
	if c.HandshakeTimeout <= 0 {
		c.HandshakeTimeout = 10 * time.Second
	}
	if c.Handshakes <= 0 {
		c.Handshakes = 4096
	}
	if c.Refuse == nil {
		c.Refuse = func() bool { return false }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

const (
	defaultDrain = 30 * time.Second
	// Accepting pauses when the process is out of file descriptors, twice as long
	// each time.
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
	// handOverGrace is how long connections of a process that has a successor wait
	// for their next request, which tells the client to connect anew: one that is
	// closed while the request is under way would be a failure.
	handOverGrace = 5 * time.Second
)

// ErrCut is wrapped by Run's error when connections had to be cut at the end of
// the drain.
var ErrCut = errors.New("requests in flight were cut")

// Run serves one socket in clear text, as Listeners.Run does.
func Run(ctx context.Context, ln net.Listener, front Front, c Config) error {
	c.HTTP1 = front
	l, err := New(c, map[string]net.Listener{HTTP: ln})
	if err != nil {
		return err
	}
	return l.Run(ctx)
}

// passing tells whether an accept failed for a want that passes: of descriptors
// or memory, or because the client was faster.
func passing(err error) bool {
	for _, one := range [...]syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, one) {
			return true
		}
	}
	return false
}
