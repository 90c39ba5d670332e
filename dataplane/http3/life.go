package http3

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"
)

// life is one socket's: the connections on it, and how they end.
type life struct {
	server   *Server
	socket   Socket
	listener *quic.Listener
	changed  chan struct{} // capacity 1: there are fewer of what end waits for

	mu sync.Mutex
	// Guarded by mu: one front per connection, and the handshakes under way.
	fronts  map[*quichttp3.Server]struct{}
	shaking int
	// leaving is nil until the goodbye. What comes later has begun before, and is
	// told at once; nothing comes once ended is set.
	leaving context.Context
	ended   bool
}

type handshakeKey struct{}

// begin counts a handshake, until the connection is accepted or comes to nothing.
func (l *life) begin(ctx context.Context, _ *quic.ClientInfo) (context.Context, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shaking++
	over := sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.shaking--
		l.wake()
	})
	context.AfterFunc(ctx, over)
	return context.WithValue(ctx, handshakeKey{}, over), nil
}

func (l *life) wake() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// accept serves connections until the listener is closed.
func (l *life) accept() error {
	for {
		conn, err := l.listener.Accept(context.Background())
		if err != nil {
			return err
		}
		c := &client{conn: conn, sniDecides: l.socket.SNIDecides()}
		front := l.front(c)
		leaving, ok := l.add(front)
		if over, counted := conn.Context().Value(handshakeKey{}).(func()); counted {
			over()
		}
		if !ok {
			_ = conn.CloseWithError(quic.ApplicationErrorCode(quichttp3.ErrCodeNoError), "")
			continue
		}
		go l.serve(front, c, leaving)
	}
}

// serve serves one connection; with leaving set it is told to go elsewhere, and
// that what it has sent already was not processed, so that it may ask again there.
func (l *life) serve(front *quichttp3.Server, c *client, leaving context.Context) {
	defer l.remove(front)
	defer c.watch(l.server.config.IdleTimeout)()
	var goodbye sync.WaitGroup
	defer goodbye.Wait()
	if leaving != nil {
		told := front.ConnContext
		front.ConnContext = func(ctx context.Context, conn *quic.Conn) context.Context {
			// Not before: a server that is shut down serves none.
			goodbye.Go(func() { _ = front.Shutdown(leaving) })
			return told(ctx, conn)
		}
	}
	// What ends a connection is said to its client.
	_ = front.ServeQUICConn(c.conn)
	_ = c.conn.CloseWithError(quic.ApplicationErrorCode(quichttp3.ErrCodeNoError), "")
}

// front serves one connection. quic-go makes room for a head as soon as its length
// is announced, for each stream, so that it must not be much more than is taken:
// the live limit itself is held by serve, which answers.
func (l *life) front(c *client) *quichttp3.Server {
	s := l.server
	return &quichttp3.Server{
		Handler:        http.HandlerFunc(s.serve),
		MaxHeaderBytes: 2 * s.config.Settings().HeaderLimit(),
		IdleTimeout:    s.config.IdleTimeout,
		ConnContext:    func(ctx context.Context, _ *quic.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
	}
}

func (l *life) add(front *quichttp3.Server) (leaving context.Context, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return nil, false
	}
	l.fronts[front] = struct{}{}
	return l.leaving, true
}

func (l *life) remove(front *quichttp3.Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.fronts, front)
	l.wake()
}

// end says goodbye on every connection, and waits for clients to hang up, which
// they need not do, and for handshakes under way, at most until ctx ends: then it
// closes the connections.
func (l *life) end(ctx context.Context) {
	defer context.AfterFunc(ctx, l.wake)()
	var goodbyes sync.WaitGroup
	l.mu.Lock()
	l.leaving = ctx
	for front := range l.fronts {
		goodbyes.Go(func() { _ = front.Shutdown(ctx) })
	}
	l.mu.Unlock()
	for !l.over(ctx) {
		<-l.changed
	}
	goodbyes.Wait()
}

// over reports whether nothing is left to wait for, and then lets nothing come.
func (l *life) over(ctx context.Context) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = len(l.fronts) == 0 && (l.shaking == 0 || ctx.Err() != nil)
	return l.ended
}

// patience is how long the last answers, or what a handshake under way is for, may
// take once no request is being served.
func (l *life) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shaking > 0 {
		return welcome
	}
	return farewell
}

func (l *life) cut() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l.end(ctx)
}

// drain waits for the requests in flight, and for their answers to arrive.
func (l *life) drain() error {
	s := l.server
	ctx, cut := context.WithCancel(context.Background())
	defer cut()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		l.end(ctx)
	}()
	late := time.NewTimer(s.draining)
	defer late.Stop()
	left := 0
	select {
	case <-s.work.done():
		// Clients that heed the goodbye hang up once they have what was answered.
		patience := time.NewTimer(l.patience())
		defer patience.Stop()
		select {
		case <-finished:
		case <-patience.C:
		case <-late.C:
		}
	case <-late.C:
		left = s.work.count()
	}
	cut()
	<-finished
	if left > 0 {
		return fmt.Errorf("%w: %d", ErrCut, left)
	}
	return nil
}
