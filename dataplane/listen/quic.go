package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/http3"
	"portcullis.dev/portcullis/dataplane/listen/relay"
)

// QUIC serves HTTP/3 on UDP sockets: http3.Server is one.
type QUIC interface {
	// Run serves a socket until ctx ends, drains it and closes it.
	Run(ctx context.Context, s http3.Socket) error
}

// quicRetry is how long a UDP port that cannot be opened is left alone: another
// process may be about to leave it.
const quicRetry = time.Second

// quic runs HTTP/3 beside the TLS sockets whose listeners ask for it, on the UDP
// ports of the same numbers. A port that cannot be had is no reason to refuse a
// configuration: clients come by TCP.
type quic struct {
	listeners *Listeners
	changed   chan struct{} // capacity 1: the live settings may want something else

	mu sync.Mutex
	// Guarded by mu, by the socket's name.
	running map[string]*quicSocket
	// inherited are those that a predecessor hands over and nobody serves yet: the
	// settings that this process begins with may be older than the predecessor's.
	inherited map[string]map[string]*os.File
}

type quicSocket struct {
	stop context.CancelFunc
	// port is the open port, or nil.
	port atomic.Pointer[relay.Socket]
	// serving holds the value of Alt-Svc while the port is served, else "".
	serving atomic.Pointer[string]
	problem atomic.Pointer[string]
}

func (q *quic) wake() {
	select {
	case q.changed <- struct{}{}:
	default:
	}
}

// run has what the live settings want running, until ctx ends; then it waits for
// all to drain.
func (q *quic) run(ctx context.Context) {
	var serving sync.WaitGroup
	defer q.leave()
	defer serving.Wait()
	for {
		q.reconcile(ctx, &serving)
		select {
		case <-ctx.Done():
			return
		case <-q.changed:
		}
	}
}

func (q *quic) reconcile(ctx context.Context, serving *sync.WaitGroup) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for name, ln := range q.listeners.sockets {
		one := q.running[name]
		switch wanted := q.wanted(name) != nil; {
		case wanted && one == nil:
			life, stop := context.WithCancel(ctx)
			one = &quicSocket{stop: stop}
			q.running[name] = one
			serving.Go(func() { q.serve(life, name, ln.Addr(), one) })
		case !wanted && one != nil:
			one.stop()
			delete(q.running, name)
		}
	}
}

// wanted returns what is spoken on a socket that HTTP/3 is offered for, or nil.
func (q *quic) wanted(name string) *spoken {
	if s := q.listeners.live.Load(); s != nil && q.listeners.config.HTTP3 != nil {
		if one := s.listeners[name]; one != nil && one.http3 && one.tls != nil {
			return one
		}
	}
	return nil
}

var (
	errUnserved = errors.New("the socket is not served")
	errMemory   = errors.New("memory is short")
)

// config is for one handshake; an error refuses the connection.
func (q *quic) config(name string) (*tls.Config, error) {
	if q.listeners.config.Refuse() {
		q.listeners.counters.refused.Add(1)
		return nil, errMemory
	}
	if s := q.wanted(name); s != nil {
		return s.tls, nil
	}
	return nil, errUnserved
}

// serve serves one UDP port until ctx ends, and tries again when it cannot.
func (q *quic) serve(ctx context.Context, name string, at net.Addr, one *quicSocket) {
	defer one.stop()
	var port int
	if tcp, ok := at.(*net.TCPAddr); ok {
		port = tcp.Port
	}
	altSvc := http3.AltSvc(port)
	for ctx.Err() == nil {
		pc, err := q.open(name, at)
		if err == nil {
			one.port.Store(pc)
			one.serving.Store(&altSvc)
			one.problem.Store(nil)
			err = q.speak(ctx, name, pc)
			one.serving.Store(nil)
			one.port.Store(nil)
		}
		if err != nil && ctx.Err() == nil {
			problem := fmt.Sprintf("HTTP/3: %v", err)
			if old := one.problem.Swap(&problem); old == nil || *old != problem {
				q.listeners.config.Log.Warn("HTTP/3 is not served", "name", name, "address", at.String(), "error", err)
			}
		} else if err != nil {
			q.listeners.config.Log.Warn("HTTP/3 was not drained in time", "name", name, "error", err)
		}
		pause := time.NewTimer(quicRetry)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

// open takes over the port that a predecessor has, or opens it.
func (q *quic) open(name string, at net.Addr) (*relay.Socket, error) {
	q.mu.Lock()
	files := q.inherited[name]
	delete(q.inherited, name)
	q.mu.Unlock()
	if files != nil {
		return relay.Inherit(files, q.listeners.config.Log)
	}
	return relay.Listen(at.String(), q.listeners.config.Log)
}

// speak serves HTTP/3 on an open port, once it is this process's to read, and
// closes it.
func (q *quic) speak(ctx context.Context, name string, pc *relay.Socket) error {
	if err := pc.Await(ctx); err != nil {
		return pc.Close()
	}
	keys := pc.Keys()
	return q.listeners.config.HTTP3.Run(ctx, http3.Socket{
		Conn: pc, IDs: pc.IDs(), TokenKey: &keys.Token, ResetKey: &keys.Reset,
		SNIDecides: func() bool { s := q.wanted(name); return s == nil || s.verifies },
		// Each handshake asks what is live.
		TLS: &tls.Config{MinVersion: tls.VersionTLS13, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return q.config(name)
		}},
	})
}

// altSvc returns the Alt-Svc that answers on the socket carry; "" for none.
func (q *quic) altSvc(name string) string {
	if one := q.of(name); one != nil {
		if serving := one.serving.Load(); serving != nil {
			return *serving
		}
	}
	return ""
}

// problem says why HTTP/3 is not served on the socket; "" when it is, or need not
// be.
func (q *quic) problem(name string) string {
	if one := q.of(name); one != nil {
		if problem := one.problem.Load(); problem != nil {
			return *problem
		}
	}
	return ""
}

func (q *quic) of(name string) *quicSocket {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.running[name]
}
