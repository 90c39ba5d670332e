package bus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	queueMessages = 8192
	queueBytes    = 16 << 20
	// Bytes that may wait for one slow handler.
	pendingBytes = 16 << 20
)

// NATSConfig says where the NATS servers are and how to be let in.
type NATSConfig struct {
	// Server is an embedded server of this process; then the rest is not used.
	Server *Server
	// URLs of any of the cluster's servers: tls://host:port or nats://host:port.
	URLs []string
	// TLS is required, unless Plaintext.
	TLS *tls.Config
	// Plaintext allows a connection without TLS.
	Plaintext bool
	// Credentials is the path of a NATS credentials file; "" for none.
	Credentials string
	// Username and Password; "" for none.
	Username, Password string
}

// Connect opens a bus on NATS. It returns without a server being reachable, and
// the bus connects, and connects again, for as long as it is open. ctx bounds
// only the first attempt. Errors are ErrMisuse and those of ctx.
func Connect(ctx context.Context, c Config) (Bus, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	t, err := dial(ctx, c)
	if err != nil {
		return nil, err
	}
	m, err := newMember(c, t)
	if err != nil {
		_ = t.close()
		return nil, err
	}
	return m, nil
}

// natsConn is a transport. What is sent passes through a queue, since the NATS
// client's own Publish may wait for a stalled server.
type natsConn struct {
	conn    *nats.Conn
	pending int
	log     *slog.Logger
	change  chan struct{}
	ended   chan struct{} // closed when the client has closed

	// Owned by the client's callbacks, which run one at a time: what was last said
	// about being unable to connect.
	refused string

	queue     chan Raw
	queued    atomic.Int64 // bytes
	failed    atomic.Uint64
	quit      chan struct{}
	writer    sync.WaitGroup
	listening sync.WaitGroup

	mu     sync.Mutex
	closed bool
	live   map[*nats.Subscription]struct{}
	// What subscriptions that have ended had dropped.
	dropped uint64
}

func dial(ctx context.Context, c Config) (*natsConn, error) {
	t := &natsConn{
		pending: c.Pending,
		log:     c.Log,
		change:  make(chan struct{}, 1),
		ended:   make(chan struct{}),
		queue:   make(chan Raw, queueMessages),
		quit:    make(chan struct{}),
		live:    map[*nats.Subscription]struct{}{},
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	urls, options, err := c.NATS.options()
	if err != nil {
		return nil, err
	}
	options = append(options, t.options(c.Name)...)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	type result struct {
		conn *nats.Conn
		err  error
	}
	dialed := make(chan result, 1)
	go func() {
		conn, err := nats.Connect(urls, options...)
		dialed <- result{conn, err}
	}()
	select {
	case r := <-dialed:
		if r.err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMisuse, r.err)
		}
		t.conn = r.conn
	case <-ctx.Done():
		go func() {
			if r := <-dialed; r.conn != nil {
				r.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
	t.writer.Go(t.write)
	return t, nil
}

// options are those of the way to the server.
func (c NATSConfig) options() (urls string, options []nats.Option, err error) {
	if c.Server != nil {
		if c.Server.username != "" {
			options = append(options, nats.UserInfo(c.Server.username, c.Server.password))
		}
		return "", append(options, nats.InProcessServer(c.Server)), nil
	}
	if len(c.URLs) == 0 {
		return "", nil, fmt.Errorf("%w: neither NATS.URLs nor NATS.Server", ErrMisuse)
	}
	for _, u := range c.URLs {
		if p, err := url.Parse(u); err != nil || p.Host == "" || p.Scheme != "nats" && p.Scheme != "tls" {
			return "", nil, fmt.Errorf("%w: NATS.URLs has %q, want tls://host:port or nats://host:port", ErrMisuse, u)
		}
	}
	switch {
	case c.TLS != nil:
		options = append(options, nats.Secure(c.TLS))
	case !c.Plaintext:
		return "", nil, fmt.Errorf("%w: NATS.TLS is needed for %s", ErrMisuse, strings.Join(c.URLs, ","))
	}
	if c.Credentials != "" {
		// The client reads it at each attempt, and would say nothing at the first.
		if f, err := os.Open(c.Credentials); err != nil {
			return "", nil, fmt.Errorf("%w: NATS.Credentials: %w", ErrMisuse, err)
		} else if err := f.Close(); err != nil {
			return "", nil, fmt.Errorf("%w: NATS.Credentials: %w", ErrMisuse, err)
		}
		options = append(options, nats.UserCredentials(c.Credentials))
	}
	if c.Username != "" {
		options = append(options, nats.UserInfo(c.Username, c.Password))
	}
	return strings.Join(c.URLs, ","), options, nil
}

// options are those of the connection itself: it never gives up, keeps nothing
// for later, and notices a dead server in seconds.
func (t *natsConn) options(name string) []nats.Option {
	return []nats.Option{
		nats.Name("portcullis " + name),
		nats.NoEcho(),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.IgnoreAuthErrorAbort(), // credentials may be put right while we try
		nats.CustomReconnectDelay(backoff),
		nats.ReconnectBufSize(-1),
		nats.Timeout(2 * time.Second),
		nats.FlusherTimeout(2 * time.Second),
		nats.PingInterval(2 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.ConnectHandler(func(*nats.Conn) { t.changedTo("connected", nil) }),
		nats.ReconnectHandler(func(*nats.Conn) { t.changedTo("connected again", nil) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil && err.Error() != t.refused {
				t.refused = err.Error()
				t.log.Warn("bus cannot connect", "error", err)
			}
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { t.changedTo("disconnected", err) }),
		nats.ClosedHandler(func(*nats.Conn) {
			t.wake()
			close(t.ended)
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			// Slow handlers are counted; saying so once a message would add to the load.
			if !errors.Is(err, nats.ErrSlowConsumer) {
				t.log.Warn("bus error", "error", err)
			}
		}),
	}
}

// backoff is full jitter under a limit that doubles up to two seconds.
func backoff(attempts int) time.Duration {
	limit := min(50*time.Millisecond<<min(attempts, 10), 2*time.Second)
	return 5*time.Millisecond + rand.N(limit)
}

func (t *natsConn) changedTo(state string, err error) {
	t.refused = ""
	if err != nil {
		t.log.Warn("bus "+state, "error", err)
	} else {
		t.log.Info("bus " + state)
	}
	t.wake()
}

func (t *natsConn) wake() {
	select {
	case t.change <- struct{}{}:
	default:
	}
}

func (t *natsConn) send(raw Raw) error {
	if !t.conn.IsConnected() {
		return ErrDisconnected
	}
	size := int64(len(raw.Data))
	if t.queued.Add(size) > queueBytes {
		t.queued.Add(-size)
		return ErrOverflow
	}
	select {
	case t.queue <- raw:
		return nil
	default:
		t.queued.Add(-size)
		return ErrOverflow
	}
}

// write hands the queue to the client.
func (t *natsConn) write() {
	for {
		select {
		case <-t.quit:
			return
		case raw := <-t.queue:
			if err := t.conn.Publish(raw.Subject, raw.Data); err != nil {
				t.failed.Add(1)
			}
			t.queued.Add(-int64(len(raw.Data)))
		}
	}
}

func (t *natsConn) listen(subject string, handle func(Raw)) (func(), error) {
	sub, done, err := t.subscribe(subject, handle)
	if err != nil {
		return nil, err
	}
	if t.conn.IsConnected() {
		// So that what others publish after this returns is heard. Without a
		// connection the subscription is made when there is one.
		_ = t.conn.FlushTimeout(2 * time.Second)
	}
	return func() {
		t.retire(sub)
		<-done
	}, nil
}

func (t *natsConn) subscribe(subject string, handle func(Raw)) (*nats.Subscription, <-chan struct{}, error) {
	// Under the lock, so that close cannot end the subscription before its closed
	// handler is set.
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, nil, ErrClosed
	}
	sub, err := t.conn.Subscribe(subject, func(m *nats.Msg) { handle(Raw{m.Subject, m.Data}) })
	if err != nil {
		return nil, nil, fmt.Errorf("listen on %s: %w", subject, err)
	}
	done := make(chan struct{})
	t.listening.Add(1)
	sub.SetClosedHandler(func(string) {
		t.listening.Done()
		close(done)
	})
	// Only an ended subscription refuses limits, and this one has just begun.
	_ = sub.SetPendingLimits(t.pending, pendingBytes)
	t.live[sub] = struct{}{}
	return sub, done, nil
}

// retire ends a subscription and keeps its count.
func (t *natsConn) retire(sub *nats.Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.live[sub]; ok {
		delete(t.live, sub)
		if n, err := sub.Dropped(); err == nil {
			t.dropped += uint64(n)
		}
		// It fails only when the connection has ended, and the subscription with it.
		_ = sub.Unsubscribe()
	}
}

func (t *natsConn) slow() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.dropped
	for sub := range t.live {
		if d, err := sub.Dropped(); err == nil {
			n += uint64(d)
		}
	}
	return n
}

func (t *natsConn) connected() bool          { return t.conn.IsConnected() }
func (t *natsConn) changed() <-chan struct{} { return t.change }
func (t *natsConn) lost() uint64             { return t.failed.Load() }

func (t *natsConn) close() error {
	t.mu.Lock()
	t.closed = true
	subs := make([]*nats.Subscription, 0, len(t.live))
	for sub := range t.live {
		subs = append(subs, sub)
	}
	t.mu.Unlock()
	for _, sub := range subs {
		t.retire(sub)
	}
	close(t.quit)
	t.conn.Close()
	t.writer.Wait()
	t.listening.Wait()
	<-t.ended
	return nil
}
