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

	serving sync.WaitGroup
	mu      sync.Mutex
	// Guarded by mu. ending: no further connection.
	fronts map[*quichttp3.Server]struct{}
	ending bool
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
		if !l.add(front) {
			_ = conn.CloseWithError(quic.ApplicationErrorCode(quichttp3.ErrCodeNoError), "")
			continue
		}
		go func() {
			defer l.remove(front)
			defer c.watch(l.server.config.IdleTimeout)()
			// What ends a connection is said to its client.
			_ = front.ServeQUICConn(conn)
			_ = conn.CloseWithError(quic.ApplicationErrorCode(quichttp3.ErrCodeNoError), "")
		}()
	}
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

func (l *life) add(front *quichttp3.Server) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ending {
		return false
	}
	l.fronts[front] = struct{}{}
	l.serving.Add(1)
	return true
}

func (l *life) remove(front *quichttp3.Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.fronts, front)
	l.serving.Done()
}

// end says goodbye on every connection, and waits for clients to hang up, which
// they need not do, at most until ctx ends: then it closes them.
func (l *life) end(ctx context.Context) {
	var goodbyes sync.WaitGroup
	l.mu.Lock()
	l.ending = true
	for front := range l.fronts {
		goodbyes.Go(func() { _ = front.Shutdown(ctx) })
	}
	l.mu.Unlock()
	l.serving.Wait()
	goodbyes.Wait()
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
		patience := time.NewTimer(farewell)
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
