//lint:file-ignore SA1019 net/http's ClientConn, which is to follow, does not tell of a failed request whether it was processed

package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	// What an upstream may send ahead of the client.
	http2StreamWindow = 512 << 10
	http2ConnWindow   = 4 << 20
	// A connection that is silent while requests wait is asked whether it lives.
	http2Silence = 15 * time.Second
	http2Ping    = 15 * time.Second
	// maxRefusals bounds how often a request is sent that connections refuse.
	maxRefusals = 3
)

// http2Trip is the roundTripper for HTTP/2 (RFC 9113): few connections, each with
// many requests; another one when all have as many as the upstream takes.
type http2Trip struct {
	dial          func(ctx context.Context, network, address string) (net.Conn, error)
	at            location
	tls           *tls.Config // nil for clear text, where the protocol is known beforehand
	connect, keep time.Duration
	transport     *http2.Transport

	// opening is held by who opens a connection, so that a burst of requests opens
	// one, not one each.
	opening chan struct{}

	mu sync.Mutex
	// Guarded by mu.
	conns   []*http2.ClientConn
	retired bool
}

func newHTTP2(dial func(context.Context, string, string) (net.Conn, error), at location, s *settings) *http2Trip {
	t := &http2Trip{dial: dial, at: at, connect: s.connect, keep: s.idle, opening: make(chan struct{}, 1)}
	if at.scheme == "https" {
		t.tls = s.tls.Clone()
		t.tls.NextProtos = []string{"h2"}
		if t.tls.ServerName == "" {
			t.tls.ServerName = at.name
		}
	}
	under := &http.Transport{
		DisableCompression: true, // the client's Accept-Encoding decides, not ours
		IdleConnTimeout:    s.idle,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream: http2StreamWindow, MaxReceiveBufferPerConnection: http2ConnWindow,
			SendPingTimeout: http2Silence, PingTimeout: http2Ping,
		},
	}
	// It fails only for a transport that speaks HTTP/2 already.
	t.transport, _ = http2.ConfigureTransports(under)
	t.transport.MaxHeaderListSize = 256 << 10
	t.transport.AllowHTTP = true
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
	for refusals := 0; ; refusals++ {
		c, err := t.take(call)
		if err != nil {
			return nil, nil, err
		}
		trip := newTrip(call, t.at.scheme, t.at.host)
		resp, err := trip.do(c)
		if err == nil {
			return resp, trip.done, nil
		}
		if !errors.Is(err, http1.ErrUnsent) || trip.body.read() && !call.Whole || refusals == maxRefusals {
			return nil, nil, err
		}
	}
}

// take returns a connection on which a stream is reserved.
func (t *http2Trip) take(call *http1.Call) (*http2.ClientConn, error) {
	if c := t.reserve(); c != nil {
		return c, nil
	}
	at := call.Now.Add(t.connect)
	if call.Deadline.Before(at) {
		at = call.Deadline
	}
	ctx, cancel := context.WithDeadlineCause(call.Context, at, errConnecting)
	defer cancel()
	c, err := t.open(ctx)
	switch {
	case err == nil:
		return c, nil
	case call.Context.Err() != nil:
		return nil, fmt.Errorf("ask upstream: %w", context.Cause(call.Context))
	case !time.Now().Before(call.Deadline):
		return nil, fmt.Errorf("%w: %w: %w", http1.ErrTimeout, errDial, err)
	}
	return nil, fmt.Errorf("%w: %w", errDial, err)
}

var (
	errConnecting = errors.New("connecting took too long")
	errNoHTTP2    = errors.New("the upstream does not speak HTTP/2")
	errFull       = errors.New("a fresh connection takes no request")
)

func (t *http2Trip) open(ctx context.Context) (*http2.ClientConn, error) {
	select {
	case t.opening <- struct{}{}:
		defer func() { <-t.opening }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if c := t.reserve(); c != nil {
		return c, nil
	}
	conn, err := t.shake(ctx)
	if err != nil {
		return nil, err
	}
	c, err := t.transport.NewClientConn(conn)
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	if !c.ReserveNewRequest() {
		_ = c.Close()
		return nil, errFull
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.retired {
		// It ends with its last request.
		c.SetDoNotReuse()
	}
	t.conns = append(t.conns, c)
	return c, nil
}

func (t *http2Trip) shake(ctx context.Context) (net.Conn, error) {
	conn, err := t.dial(ctx, "tcp", t.at.address)
	if err != nil || t.tls == nil {
		return conn, err
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

// reserve returns a connection with a stream to spare, nil without one, and
// forgets those that have ended.
func (t *http2Trip) reserve() *http2.ClientConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found *http2.ClientConn
	kept := t.conns[:0]
	for _, c := range t.conns {
		if found == nil && c.ReserveNewRequest() {
			found = c
		} else if c != found && !c.CanTakeNewRequest() && c.State().Closed {
			continue
		}
		kept = append(kept, c)
	}
	clear(t.conns[len(kept):])
	t.conns = kept
	return found
}

// closeIdle implements roundTripper.
func (t *http2Trip) closeIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conns {
		if state := c.State(); state.StreamsActive+state.StreamsReserved+state.StreamsPending == 0 {
			_ = c.Close()
		} else {
			// The library closes it behind its last request.
			c.SetDoNotReuse()
		}
	}
}

// retire implements roundTripper.
func (t *http2Trip) retire() {
	t.mu.Lock()
	t.retired = true
	t.mu.Unlock()
	t.closeIdle()
}

// cut implements roundTripper.
func (t *http2Trip) cut() {
	t.mu.Lock()
	conns := t.conns
	t.conns = nil
	t.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// HTTP2 tells whether the upstream speaks HTTP/2.
func (b *Backend) HTTP2() bool {
	return b.upstream.settings.protocol == configv1.UpstreamProtocol_UPSTREAM_PROTOCOL_HTTP2
}

// trip is one request on one of the connections.
type trip struct {
	call   http1.Call
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   *outgoing
	out    *http.Request
	in     *http.Response
	idle   *time.Timer
}

func newTrip(call *http1.Call, scheme, host string) *trip {
	r := call.Request
	t := &trip{call: *call, body: &outgoing{}}
	t.ctx, t.cancel = context.WithCancelCause(call.Context)
	own := newOwned(r)
	t.out = (&http.Request{
		Method: own.text(r.Method), URL: outgoingURL(scheme, host, r, own), Host: own.text(r.Authority), Header: outgoingHeader(r, own),
		Proto: "HTTP/2.0", ProtoMajor: 2,
	}).WithContext(t.ctx)
	switch {
	case call.Whole && len(call.Body) > 0:
		// An upstream may answer before it has read it; the buffer is another's then.
		t.body.whole, t.body.isWhole = bytes.Clone(call.Body), true
		t.out.Body, t.out.ContentLength = t.body, int64(len(call.Body))
	case !call.Whole && r.Body.Reader != nil && r.Body.Length != 0:
		t.body.reader = r.Body.Reader
		t.out.Body, t.out.ContentLength = t.body, r.Body.Length
	}
	return t
}

// do sends the request and waits for the head of the answer.
func (t *trip) do(c *http2.ClientConn) (*exchange.Response, error) {
	timer := time.AfterFunc(t.call.Deadline.Sub(t.call.Now), func() { t.cancel(http1.ErrTimeout) })
	in, err := c.RoundTrip(t.out)
	if !timer.Stop() && err == nil {
		_ = in.Body.Close()
		err = http1.ErrTimeout
	}
	if err != nil {
		err = t.why(err)
		t.done(nil)
		return nil, err
	}
	t.in = in
	header := incomingHeader(in.Header)
	if err := header.DropHopByHop(); err != nil {
		t.done(nil)
		return nil, fmt.Errorf("%w: %v", http1.ErrAnswer, err)
	}
	resp := &exchange.Response{Status: in.StatusCode, Header: header, Interrupt: func(cause error) { t.cancel(cause) }}
	resp.Body.Length = in.ContentLength
	if in.Body == http.NoBody {
		return resp, nil
	}
	resp.Body.Reader = t
	resp.Body.Trailer = func() exchange.Header {
		trailer := incomingHeader(in.Trailer)
		trailer.DelFunc(func(f exchange.Field) bool { return exchange.HopByHop(f.Name) })
		return trailer
	}
	if t.call.Idle > 0 {
		t.idle = time.AfterFunc(t.call.Idle, func() { t.cancel(http1.ErrTimeout) })
	}
	return resp, nil
}

// Read implements io.Reader on the answer's body.
func (t *trip) Read(p []byte) (int, error) {
	if t.idle != nil {
		t.idle.Reset(t.call.Idle)
		defer t.idle.Stop()
	}
	n, err := t.in.Body.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("read upstream's answer: %w", t.why(err))
	}
	return n, err
}

// Close implements io.Closer on the answer's body.
func (t *trip) Close() error { return t.in.Body.Close() }

// done ends the request: nobody reads its body afterwards.
func (t *trip) done(*exchange.Exchange) {
	if t.idle != nil {
		t.idle.Stop()
	}
	t.cancel(context.Canceled)
	if t.in != nil {
		_ = t.in.Body.Close()
	}
	t.body.finish()
}

// What the library says of a request that was not processed; it has no names for
// these outside.
const (
	saysUnusable = "http2: client conn not usable"
	saysGoAway   = "http2: Transport received Server's graceful shutdown GOAWAY"
	saysClosed   = "http2: client connection force closed via ClientConn.Close"
)

// why says what a failure is, in the words of http1.ClientConn.Do.
func (t *trip) why(err error) error {
	if cause := context.Cause(t.ctx); cause != nil {
		if errors.Is(cause, http1.ErrTimeout) {
			return cause
		}
		return fmt.Errorf("ask upstream: %w", cause)
	}
	if broken := t.body.failure(); broken != nil {
		return fmt.Errorf("read request body: %w", broken)
	}
	var stream http2.StreamError
	switch {
	case errors.As(err, &stream) && stream.Code == http2.ErrCodeRefusedStream, err.Error() == saysUnusable, err.Error() == saysGoAway:
		return fmt.Errorf("%w: %w", http1.ErrUnsent, err)
	case err.Error() == saysClosed:
		return errCut
	case t.in == nil && !errors.As(err, &stream):
		return fmt.Errorf("%w: %w", http1.ErrNoAnswer, err)
	}
	return fmt.Errorf("%w: %w", http1.ErrAnswer, err)
}
