package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
	"portcullis.dev/portcullis/dataplane/http2"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// maxRefusals bounds how often a request is sent that connections refuse.
const maxRefusals = 3

// http2Trip is the roundTripper for HTTP/2 (RFC 9113): few connections, each with
// many requests; another one when all have as many as the upstream takes.
type http2Trip struct {
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	at     location
	tls    *tls.Config // nil for clear text, where the protocol is known beforehand
	config http2.ClientConfig
	// connect bounds the wait for a connection.
	connect time.Duration
	gate    *gate
	// opening is held by who opens a connection, so that a burst of requests opens
	// one, not one each.
	opening chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	conns   []*http2.ClientConn
	retired bool
}

func newHTTP2(dial func(context.Context, string, string) (net.Conn, error), at location, s *settings, g *gate) *http2Trip {
	t := &http2Trip{
		dial: dial, at: at, connect: s.connect, gate: g, opening: make(chan struct{}, 1),
	}
	t.config = http2.ClientConfig{Scheme: at.scheme, Idle: s.idle, Changed: g.free, Ended: t.forget}
	g.join(t)
	if at.scheme == "https" {
		t.tls = s.tls.Clone()
		t.tls.NextProtos = []string{"h2"}
		if t.tls.ServerName == "" {
			t.tls.ServerName = at.name
		}
	}
	return t
}

// roundTrip implements roundTripper. A request that a connection certainly did
// not process (REFUSED_STREAM, or beyond the last stream of a GOAWAY) is sent on
// another, unless its body has been read.
func (t *http2Trip) roundTrip(call *http1.Call) (*exchange.Response, func(*exchange.Exchange), error) {
	if call.Request.Upgrade != "" {
		// HTTP/2 has no Upgrade (RFC 9113, 8.6), and few servers extended CONNECT.
		return nil, nil, fmt.Errorf("%w: it speaks HTTP/2, which cannot switch to %s", http1.ErrAnswer, call.Request.Upgrade)
	}
	s, err := t.take(call)
	if err != nil {
		return nil, nil, err
	}
	if !ready(call) {
		return t.ask(s, call)
	}
	buffer := bodies.Get().(*[smallBody]byte)
	defer bodies.Put(buffer)
	own := *call
	if err := collect(&own, buffer[:]); err != nil {
		s.Release()
		return nil, nil, err
	}
	resp, done, err := t.ask(s, &own)
	if errors.Is(err, errDial) {
		// Others could not send it either: what has been read is not theirs to read.
		err = fmt.Errorf("%w: %w: %v", http2.ErrBegun, http1.ErrUnsent, err)
	}
	return resp, done, err
}

// ask sends a request on the stream, and as long as it is refused on others.
func (t *http2Trip) ask(s *http2.ClientStream, call *http1.Call) (*exchange.Response, func(*exchange.Exchange), error) {
	for refusals := 0; ; refusals++ {
		resp, done, err := s.Do(call)
		if err == nil {
			return resp, done, nil
		}
		if !errors.Is(err, http1.ErrUnsent) || errors.Is(err, http2.ErrBegun) || refusals == maxRefusals {
			return nil, nil, err
		}
		if s, err = t.take(call); err != nil {
			return nil, nil, err
		}
	}
}

// ready tells whether some of a body whose length is not known can be read without
// waiting: that of a unary call of gRPC is there whole as a rule.
func ready(call *http1.Call) bool {
	b := &call.Request.Body
	if call.Whole || b.Reader == nil || b.Length >= 0 {
		return false
	}
	there, ok := b.Reader.(interface{ Buffered() int })
	return ok && there.Buffered() > 0
}

// collect reads what is there of the body. If that is all of it, it is sent with
// the head, and can be sent once more.
func collect(call *http1.Call, buffer []byte) error {
	n, err := call.Request.Body.Reader.Read(buffer)
	switch {
	case err == io.EOF:
		call.Body, call.Whole = buffer[:n], true
	case err != nil:
		return fmt.Errorf("read request body: %w", err)
	default:
		rest := *call.Request
		rest.Body.Reader = &resumed{ReadCloser: rest.Body.Reader, first: bytes.Clone(buffer[:n])}
		call.Request = &rest
	}
	return nil
}

// resumed is a body of which the first bytes have been read.
type resumed struct {
	io.ReadCloser
	first []byte
}

// Read implements io.Reader.
func (r *resumed) Read(p []byte) (int, error) {
	if len(r.first) == 0 {
		return r.ReadCloser.Read(p)
	}
	n := copy(p, r.first)
	r.first = r.first[n:]
	return n, nil
}

var (
	errConnecting = errors.New("connecting took too long")
	errNoHTTP2    = errors.New("the upstream does not speak HTTP/2")
	errFull       = errors.New("a fresh connection takes no request")
)

// take returns a stream for one request: of a connection that has one to spare, or
// of a new one, before the connect timeout and the deadline.
func (t *http2Trip) take(call *http1.Call) (*http2.ClientStream, error) {
	if s := t.reserve(); s != nil {
		return s, nil
	}
	if !t.gate.begin() {
		return nil, errPending
	}
	defer t.gate.over()
	at := call.Now.Add(t.connect)
	if call.Deadline.Before(at) {
		at = call.Deadline
	}
	ctx, cancel := context.WithDeadlineCause(call.Context, at, errConnecting)
	defer cancel()
	s, err := t.await(ctx)
	switch {
	case err == nil:
		return s, nil
	case call.Context.Err() != nil:
		return nil, fmt.Errorf("ask upstream: %w", context.Cause(call.Context))
	case errors.Is(err, ErrOverloaded):
		return nil, err
	case !time.Now().Before(call.Deadline):
		return nil, fmt.Errorf("%w: %w: %w", http1.ErrTimeout, errDial, err)
	}
	return nil, fmt.Errorf("%w: %w", errDial, err)
}

// await waits for a stream that becomes free, or for the turn to open a connection.
func (t *http2Trip) await(ctx context.Context) (*http2.ClientStream, error) {
	t.gate.waiting.Add(1)
	defer t.gate.waiting.Add(-1)
	for {
		freed := t.gate.await()
		if s := t.reserve(); s != nil {
			return s, nil
		}
		select {
		case t.opening <- struct{}{}:
			s, err := t.open(ctx)
			<-t.opening
			if err == nil {
				// Others may find room on it.
				t.gate.free()
			}
			return s, err
		case <-freed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// open makes a connection. Where the circuit breaker bounds them it waits for its
// turn, and may come by a stream of one that is there instead.
func (t *http2Trip) open(ctx context.Context) (s *http2.ClientStream, err error) {
	if s = t.reserve(); s != nil {
		return s, nil
	}
	found, err := t.gate.pass(ctx, func() bool {
		s = t.reserve()
		return s != nil
	})
	if found || err != nil {
		return s, err
	}
	conn, err := t.shake(ctx)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := http2.NewClientConn(conn, t.config)
	t.conns = append(t.conns, c)
	if s = c.Stream(); s == nil {
		err = errFull
	}
	if s == nil || t.retired {
		// It ends with its last request.
		c.Retire()
	}
	return s, err
}

// shake makes a connection that leaves the gate when it ends.
func (t *http2Trip) shake(ctx context.Context) (net.Conn, error) {
	conn, err := t.dial(ctx, "tcp", t.at.address)
	if err != nil {
		t.gate.leave()
		return nil, err
	}
	conn = t.gate.count(conn)
	if t.tls == nil {
		return conn, nil
	}
	secure := tls.Client(conn, t.tls)
	err = secure.HandshakeContext(ctx)
	if err == nil && secure.ConnectionState().NegotiatedProtocol != "h2" {
		err = errNoHTTP2
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secure, nil
}

// reserve returns a stream of a connection that has one to spare, nil without one.
func (t *http2Trip) reserve() *http2.ClientStream {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conns {
		if s := c.Stream(); s != nil {
			return s
		}
	}
	return nil
}

// forget drops a connection that has ended.
func (t *http2Trip) forget(c *http2.ClientConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns = slices.DeleteFunc(t.conns, func(other *http2.ClientConn) bool { return other == c })
}

// evict implements evicter. The connection leaves the gate when it has ended, soon.
func (t *http2Trip) evict() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.conns, (*http2.ClientConn).RetireIdle)
}

// closeIdle implements roundTripper. Connections that carry requests end with
// their last one.
func (t *http2Trip) closeIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conns {
		c.Retire()
	}
}

// retire implements roundTripper.
func (t *http2Trip) retire() {
	t.mu.Lock()
	t.retired = true
	t.mu.Unlock()
	t.gate.quit(t)
	t.closeIdle()
}

// cut implements roundTripper.
func (t *http2Trip) cut() {
	t.mu.Lock()
	conns := t.conns
	t.conns = nil
	t.mu.Unlock()
	for _, c := range conns {
		c.Cut(errCut)
	}
}

// HTTP2 tells whether the upstream speaks HTTP/2.
func (b *Backend) HTTP2() bool {
	return b.upstream.settings.protocol == configv1.UpstreamProtocol_UPSTREAM_PROTOCOL_HTTP2
}
