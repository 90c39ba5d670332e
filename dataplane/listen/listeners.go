package listen

import (
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
	config  Config
	sockets map[string]net.Listener
	live    atomic.Pointer[Settings]
	// shakes holds a place for each handshake that is under way.
	shakes   chan struct{}
	opening  opening
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
	// Unserved connections came on a socket that the Gateway does not list.
	Unserved uint64
}

type counters struct {
	handshakes, failed, unserved atomic.Uint64
	open                         atomic.Int64
}

// New takes over sockets, at least one; Run closes them. Until Apply has been
// called, the one named "http" is served in clear text and no other is.
func New(c Config, sockets map[string]net.Listener) (*Listeners, error) {
	if c.HTTP1 == nil || len(sockets) == 0 {
		return nil, errors.New("listen: HTTP1 and at least one socket are required")
	}
	c.complete()
	return &Listeners{
		config: c, sockets: maps.Clone(sockets), shakes: make(chan struct{}, c.Handshakes),
		opening: opening{conns: map[net.Conn]bool{}}, told: map[string]string{},
	}, nil
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
	return Stats{l.counters.handshakes.Load(), l.counters.failed.Load(), l.counters.unserved.Load()}
}

// Apply puts settings into use: for connections that are accepted from now on.
// Those that are there go on.
func (l *Listeners) Apply(s *Settings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.setTicketKeys(l.tickets)
	l.live.Store(s)
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
			Name: name, Address: l.sockets[name].Addr().String(), Problem: s.problem(name, now),
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

// Run serves the sockets, which it closes, until ctx ends; then it drains. It
// returns when all connections are closed: nil, ErrCut, or a socket's error.
func (l *Listeners) Run(ctx context.Context) error {
	stop := make(chan struct{})
	failed := make(chan error, len(l.sockets))
	var accepting, serving sync.WaitGroup
	for name, ln := range l.sockets {
		accepting.Go(func() {
			if err := l.accept(name, ln, stop, &serving); err != nil {
				failed <- fmt.Errorf("serve %v: %w", ln.Addr(), err)
			}
		})
	}
	end := func() {
		close(stop)
		for _, ln := range l.sockets {
			_ = ln.Close()
		}
		accepting.Wait()
	}
	select {
	case err := <-failed:
		end()
		l.cut(&serving)
		return err
	case <-ctx.Done():
	}
	for _, f := range l.fronts() {
		f.Goodbye()
	}
	if l.config.Grace > 0 {
		grace := time.NewTimer(l.config.Grace)
		defer grace.Stop()
		select {
		case <-failed:
		case <-grace.C:
		}
	}
	end()
	l.opening.drain()
	for _, f := range l.fronts() {
		f.Drain()
	}
	late := time.NewTimer(l.config.Drain)
	defer late.Stop()
	served := make(chan struct{})
	go func() {
		defer close(served)
		serving.Wait()
	}()
	select {
	case <-served:
		return nil
	case <-late.C:
	}
	open := l.cut(&serving)
	<-served
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
			l.counters.open.Add(1)
			serving.Go(func() {
				defer l.counters.open.Add(-1)
				l.open(name, c)
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
