// Package listen owns the sockets that clients connect to, and their life: it
// accepts, hands each connection to the front end that speaks its protocol, and
// drains. It knows nothing of HTTP but how a front end is served and stopped.
package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
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

// Config of Run.
type Config struct {
	// Grace is how long a draining listener goes on accepting, so that balancers
	// notice that it is not ready; each answer closes its connection.
	Grace time.Duration
	// Drain bounds the wait, after Grace, for requests and upgraded connections
	// in flight; 0 means 30s.
	Drain time.Duration
	// Log gets what goes wrong with accepting; nil discards it.
	Log *slog.Logger

	// HTTP1 serves HTTP/1.1; required by New.
	HTTP1 Front
	// HTTP2 serves HTTP/2; nil: it is not offered.
	HTTP2 Front
	// HandshakeTimeout bounds a TLS handshake, and the wait for the first bytes of a
	// connection in clear text; 0 means 10s.
	HandshakeTimeout time.Duration
	// Handshakes bounds the TLS handshakes under way at once; 0 means 4096.
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
)

// ErrCut is wrapped by Run's error when connections had to be cut at the end of
// the drain.
var ErrCut = errors.New("requests in flight were cut")

// Run serves the listener, which it closes, until ctx ends; then it drains. It
// returns when all connections are closed: nil, ErrCut, or the listener's error.
func Run(ctx context.Context, ln net.Listener, front Front, c Config) error {
	if c.Drain <= 0 {
		c.Drain = defaultDrain
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	a := &acceptor{ln: ln, front: front, log: c.Log, stop: make(chan struct{})}
	accepted := make(chan error, 1)
	go func() { accepted <- a.run() }()
	select {
	case err := <-accepted:
		_ = ln.Close()
		front.Cut()
		a.serving.Wait()
		return fmt.Errorf("serve %v: %w", ln.Addr(), err)
	case <-ctx.Done():
	}
	front.Goodbye()
	if c.Grace > 0 {
		grace := time.NewTimer(c.Grace)
		defer grace.Stop()
		select {
		case err := <-accepted:
			accepted <- err
		case <-grace.C:
		}
	}
	close(a.stop)
	_ = ln.Close()
	<-accepted
	return a.finish(c.Drain)
}

// acceptor is one listener at work.
type acceptor struct {
	ln      net.Listener
	front   Front
	log     *slog.Logger
	stop    chan struct{}
	serving sync.WaitGroup
	open    atomic.Int64
}

// finish ends what is still open after the listener is closed.
func (a *acceptor) finish(patience time.Duration) error {
	a.front.Drain()
	empty := make(chan struct{})
	go func() {
		a.serving.Wait()
		close(empty)
	}()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-empty:
		return nil
	case <-late.C:
	}
	left := a.open.Load()
	a.front.Cut()
	<-empty
	return fmt.Errorf("%w: %d connections", ErrCut, left)
}

// run hands over connections until the listener fails for good or stop is closed.
func (a *acceptor) run() error {
	pause := firstPause
	for {
		c, err := a.ln.Accept()
		if err == nil {
			pause = firstPause
			a.open.Add(1)
			a.serving.Go(func() {
				defer a.open.Add(-1)
				a.front.Serve(c, &admission.Conn{Peer: admission.PeerOf(c.RemoteAddr().String())}, nil)
			})
			continue
		}
		if !passing(err) {
			return err
		}
		a.log.Warn("accepting pauses", "error", err, "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-a.stop:
			timer.Stop()
			return err
		case <-timer.C:
		}
		pause = min(2*pause, lastPause)
	}
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
