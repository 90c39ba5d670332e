package listen

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// HTTP is the name of the socket that speaks clear text when the Gateway does not
// list it.
const HTTP = "http"

// Listeners are a node's sockets, by name. Make them with New; run them once. All
// methods may be called concurrently.
type Listeners struct {
	config   Config
	sockets  map[string]net.Listener
	live     atomic.Pointer[Settings]
	shakes   places
	opening  opening
	quic     quic
	handed   chan struct{} // closed by HandOver
	handing  sync.Once
	counters counters

	mu sync.Mutex
	// Guarded by mu.
	tickets [][32]byte
	told    map[string]string // the problem that was logged last, by name
}

// Stats count since the start.
type Stats struct {
	// Handshakes that were completed, and those that failed, also for want of a
	// place.
	Handshakes, Failed uint64
	// Unserved connections came on a socket that the Gateway does not list; Refused
	// ones when memory was short.
	Unserved, Refused uint64
}

type counters struct {
	handshakes, failed, unserved, refused atomic.Uint64
	open                                  atomic.Int64
}

// New takes over sockets, at least one; Run closes them. Until Apply has been
// called, the one named "http" is served in clear text and no other is.
func New(c Config, sockets map[string]net.Listener) (*Listeners, error) {
	if c.HTTP1 == nil || len(sockets) == 0 {
		return nil, errors.New("listen: HTTP1 and at least one socket are required")
	}
	c.complete()
	l := &Listeners{
		config: c, sockets: maps.Clone(sockets), shakes: places{most: c.Handshakes},
		opening: opening{conns: map[net.Conn]bool{}}, told: map[string]string{}, handed: make(chan struct{}),
	}
	l.quic = quic{listeners: l, changed: make(chan struct{}, 1), running: map[string]*quicSocket{}, inherited: map[string]map[string]*os.File{}}
	return l, l.quic.inherit(c.Packets)
}

// Names returns the names of the sockets, sorted.
func (l *Listeners) Names() []string { return slices.Sorted(maps.Keys(l.sockets)) }

// Address is where clients are served: the socket "http", else the first by name.
func (l *Listeners) Address() net.Addr {
	if ln := l.sockets[HTTP]; ln != nil {
		return ln.Addr()
	}
	return l.sockets[l.Names()[0]].Addr()
}

// Files returns duplicates of the sockets, for a process that takes over. The
// caller closes them.
func (l *Listeners) Files() (map[string]*os.File, error) {
	files := map[string]*os.File{}
	for name, ln := range l.sockets {
		f, ok := ln.(interface{ File() (*os.File, error) })
		err := errors.New("has no descriptor")
		if ok {
			files[name], err = f.File()
		}
		if err != nil {
			delete(files, name)
			for _, opened := range files {
				_ = opened.Close()
			}
			return nil, fmt.Errorf("socket %q: %w", name, err)
		}
	}
	return files, nil
}

// Live returns the settings in use; nil before the first Apply.
func (l *Listeners) Live() *Settings { return l.live.Load() }

// Stats returns what was counted.
func (l *Listeners) Stats() Stats {
	return Stats{l.counters.handshakes.Load(), l.counters.failed.Load(), l.counters.unserved.Load(), l.counters.refused.Load()}
}

// Apply puts settings into use: for connections that are accepted from now on.
// Those that are there go on.
func (l *Listeners) Apply(s *Settings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.setTicketKeys(l.tickets)
	l.live.Store(s)
	l.quic.wake()
	now := time.Now()
	for name, ln := range l.sockets {
		problem := s.problem(name, now)
		if problem == l.told[name] {
			continue
		}
		l.told[name] = problem
		if problem != "" {
			l.config.Log.Warn("a socket is not served", "name", name, "address", ln.Addr().String(), "problem", problem)
		} else {
			l.config.Log.Info("a socket is served again", "name", name, "address", ln.Addr().String())
		}
	}
}

// SetTicketKeys replaces the keys of session tickets, 32 bytes each, newest first.
// None leaves what there is.
func (l *Listeners) SetTicketKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return nil
	}
	tickets := make([][32]byte, len(keys))
	for i, key := range keys {
		if len(key) != len(tickets[i]) {
			return fmt.Errorf("key %d of session tickets has %d bytes, not %d", i, len(key), len(tickets[i]))
		}
		tickets[i] = [32]byte(key)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Equal(tickets, l.tickets) {
		return nil
	}
	l.tickets = tickets
	l.live.Load().setTicketKeys(tickets)
	return nil
}

// Conditions returns how the sockets are at a time, by name.
func (l *Listeners) Conditions(now time.Time) []*controlv1.ListenerCondition {
	s := l.live.Load()
	var out []*controlv1.ListenerCondition
	for _, name := range l.Names() {
		out = append(out, &controlv1.ListenerCondition{
			Name: name, Address: l.sockets[name].Addr().String(), Problem: cmp.Or(s.problem(name, now), l.quic.problem(name)),
		})
	}
	return out
}

// protocols are those of ALPN.
func (l *Listeners) protocols() []string {
	if l.config.HTTP2 == nil {
		return []string{"http/1.1"}
	}
	return []string{"h2", "http/1.1"}
}

func (l *Listeners) fronts() []Front {
	if l.config.HTTP2 == nil {
		return []Front{l.config.HTTP1}
	}
	return []Front{l.config.HTTP1, l.config.HTTP2}
}

// HandOver ends Run because another process accepts on the same sockets: this one
// stops at once to, and lets its connections go as their clients send their next
// requests. Of HTTP/3 it keeps the connections that it has until they are drained.
func (l *Listeners) HandOver() { l.handing.Do(func() { close(l.handed) }) }

// Run serves the sockets, which it closes, until ctx ends or HandOver is called;
// then it drains. It returns when all connections are closed: nil, ErrCut, or a
// socket's error.
func (l *Listeners) Run(ctx context.Context) error {
	r := &run{Listeners: l, stop: make(chan struct{}), failed: make(chan error, len(l.sockets))}
	packets, stopPackets := context.WithCancel(context.WithoutCancel(ctx))
	defer r.packets.Wait()
	defer stopPackets()
	r.packets.Go(func() { l.quic.run(packets) })
	for name, ln := range l.sockets {
		r.accepting.Go(func() {
			err := l.accept(name, ln, r.stop, &r.serving)
			select {
			case <-r.stop: // closed by end, which is no failure
			default:
				r.failed <- fmt.Errorf("serve %v: %w", ln.Addr(), err)
			}
		})
	}
	select {
	case err := <-r.failed:
		r.end()
		l.cut(&r.serving)
		return err
	case <-l.handed:
		r.end()
		l.goodbye()
		l.quic.handOver()
		stopPackets()
		r.wait(ctx, max(l.config.Grace, handOverGrace))
	case <-ctx.Done():
		l.goodbye()
		r.wait(context.WithoutCancel(ctx), l.config.Grace)
		r.end()
		stopPackets()
	}
	return r.drain()
}

func (l *Listeners) goodbye() {
	for _, f := range l.fronts() {
		f.Goodbye()
	}
}

// run is one Run of Listeners.
type run struct {
	*Listeners
	stop                        chan struct{} // closed when accepting ends
	failed                      chan error
	accepting, serving, packets sync.WaitGroup
	served                      chan struct{}
}

// end stops accepting; served is closed once nobody is served any more.
func (r *run) end() {
	close(r.stop)
	for _, ln := range r.sockets {
		_ = ln.Close()
	}
	r.accepting.Wait()
	r.served = make(chan struct{})
	go func() {
		defer close(r.served)
		r.serving.Wait()
	}()
}

// wait waits until it is time to close what is idle.
func (r *run) wait(ctx context.Context, grace time.Duration) {
	if grace <= 0 {
		return
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-r.failed:
	case <-r.served: // nil, and so never, while connections are accepted
	}
}

// drain closes what is idle and waits for the rest.
func (r *run) drain() error {
	r.opening.drain()
	for _, f := range r.fronts() {
		f.Drain()
	}
	late := time.NewTimer(r.config.Drain)
	defer late.Stop()
	select {
	case <-r.served:
		return nil
	case <-late.C:
	}
	open := r.cut(&r.serving)
	<-r.served
	return fmt.Errorf("%w: %d connections", ErrCut, open)
}

// cut ends every connection, waits for that and returns how many there were.
func (l *Listeners) cut(serving *sync.WaitGroup) int {
	open := int(l.counters.open.Load())
	l.opening.cut()
	for _, f := range l.fronts() {
		f.Cut()
	}
	serving.Wait()
	return open
}

// accept opens connections until the socket fails for good or stop is closed.
func (l *Listeners) accept(name string, ln net.Listener, stop <-chan struct{}, serving *sync.WaitGroup) error {
	pause := firstPause
	for {
		c, err := ln.Accept()
		if err == nil {
			pause = firstPause
			if l.config.Refuse() {
				l.counters.refused.Add(1)
				_ = c.Close()
				continue
			}
			l.counters.open.Add(1)
			serving.Go(func() {
				defer l.counters.open.Add(-1)
				if o := l.open(name, c); o.by != nil {
					o.by.Serve(o.conn, o.on, o.first)
				}
			})
			continue
		}
		if !passing(err) {
			return err
		}
		l.config.Log.Warn("accepting pauses", "name", name, "error", err, "pause", pause)
		timer := time.NewTimer(pause)
		select {
		case <-stop:
			timer.Stop()
			return err
		case <-timer.C:
		}
		pause = min(2*pause, lastPause)
	}
}
