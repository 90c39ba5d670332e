package bus

import (
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Memory is a broker in the process's memory: the twin of NATS for tests and
// simulations, with faults on demand. It passes the same conformance suite. Safe
// for concurrent use.
type Memory struct {
	mu      sync.Mutex
	members map[*memoryConn]struct{}
	links   func(from, to string) Link
	taps    []func(Raw)
	random  *rand.Rand
}

// Link says what happens to messages from one member to another. The zero Link
// is perfect.
type Link struct {
	// Cut loses every message and tells nobody.
	Cut bool
	// Loss and Duplicate are probabilities from 0 to 1.
	Loss, Duplicate float64
	// Delay is how long a message takes at least, Jitter how much longer at most;
	// with jitter, messages overtake each other.
	Delay, Jitter time.Duration
}

// NewMemory makes a broker with perfect links.
func NewMemory() *Memory {
	return &Memory{members: map[*memoryConn]struct{}{}, random: rand.New(rand.NewPCG(1, 2))}
}

// Open connects a member. Config.NATS is not used.
func (m *Memory) Open(c Config) (Bus, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	conn := &memoryConn{
		broker: m, name: c.Name, pending: c.Pending,
		change:    make(chan struct{}, 1),
		listeners: map[*memoryListener]struct{}{},
	}
	conn.up.Store(true)
	member, err := newMember(c, conn)
	if err != nil {
		_ = conn.close()
		return nil, err
	}
	m.mu.Lock()
	m.members[conn] = struct{}{}
	m.mu.Unlock()
	return member, nil
}

// SetLinks replaces the rule that gives each pair of members, by name, its link;
// nil for perfect ones. The rule must not use the broker.
func (m *Memory) SetLinks(links func(from, to string) Link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.links = links
}

// Seed makes the faults repeatable.
func (m *Memory) Seed(seed uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.random = rand.New(rand.NewPCG(seed, 0))
}

// SetConnected cuts members of a name off, which they notice, or lets them in
// again.
func (m *Memory) SetConnected(name string, connected bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for c := range m.members {
		if c.name == name && c.up.Swap(connected) != connected {
			c.wake()
		}
	}
}

// Tap calls see, one call at a time, with every message from now on, before any
// fault. See must not use the broker and must not change the data.
func (m *Memory) Tap(see func(Raw)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.taps = append(m.taps, see)
}

// Inject delivers a message to all members, as an attacker at the broker could.
func (m *Memory) Inject(raw Raw) { m.carry(nil, raw) }

// carry takes a message to every member but the one it came from.
func (m *Memory) carry(from *memoryConn, raw Raw) {
	raw.Data = append([]byte(nil), raw.Data...)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, see := range m.taps {
		see(raw)
	}
	for to := range m.members {
		if to == from {
			continue
		}
		var link Link
		if from != nil && m.links != nil {
			link = m.links(from.name, to.name)
		}
		if link.Cut || m.chance(link.Loss) {
			continue
		}
		m.deliver(to, raw, link)
		if m.chance(link.Duplicate) {
			m.deliver(to, raw, link)
		}
	}
}

func (m *Memory) chance(p float64) bool { return p > 0 && m.random.Float64() < p }

func (m *Memory) deliver(to *memoryConn, raw Raw, link Link) {
	delay := link.Delay
	if link.Jitter > 0 {
		delay += time.Duration(m.random.Int64N(int64(link.Jitter) + 1))
	}
	if delay <= 0 {
		to.deliver(raw)
		return
	}
	time.AfterFunc(delay, func() { to.deliver(raw) })
}

// memoryConn is a member's connection.
type memoryConn struct {
	broker  *Memory
	name    string
	pending int
	up      atomic.Bool
	change  chan struct{}
	dropped atomic.Uint64

	mu        sync.Mutex
	ended     bool
	listeners map[*memoryListener]struct{}
}

type memoryListener struct {
	subject string
	queue   chan Raw
	quit    chan struct{}
	done    chan struct{}
	once    sync.Once
}

func (c *memoryConn) wake() {
	select {
	case c.change <- struct{}{}:
	default:
	}
}

func (c *memoryConn) send(raw Raw) error {
	if !c.up.Load() {
		return ErrDisconnected
	}
	c.broker.carry(c, raw)
	return nil
}

func (c *memoryConn) deliver(raw Raw) {
	if !c.up.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for l := range c.listeners {
		if !matches(l.subject, raw.Subject) {
			continue
		}
		select {
		case l.queue <- raw:
		default:
			c.dropped.Add(1)
		}
	}
}

// matches compares as NATS does, as far as listen needs it.
func matches(pattern, subject string) bool {
	stem, wild := strings.CutSuffix(pattern, "*")
	if !wild {
		return pattern == subject
	}
	rest, ok := strings.CutPrefix(subject, stem)
	return ok && rest != "" && !strings.Contains(rest, ".")
}

func (c *memoryConn) listen(subject string, handle func(Raw)) (func(), error) {
	l := &memoryListener{
		subject: subject,
		queue:   make(chan Raw, c.pending),
		quit:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, ErrClosed
	}
	c.listeners[l] = struct{}{}
	go l.run(handle)
	return func() {
		c.mu.Lock()
		delete(c.listeners, l)
		c.mu.Unlock()
		l.stop()
	}, nil
}

func (l *memoryListener) run(handle func(Raw)) {
	defer close(l.done)
	for {
		select {
		case <-l.quit:
			return
		case raw := <-l.queue:
			select {
			case <-l.quit:
				return
			default:
				handle(raw)
			}
		}
	}
}

func (l *memoryListener) stop() {
	l.once.Do(func() { close(l.quit) })
	<-l.done
}

func (c *memoryConn) connected() bool          { return c.up.Load() }
func (c *memoryConn) changed() <-chan struct{} { return c.change }
func (c *memoryConn) slow() uint64             { return c.dropped.Load() }
func (c *memoryConn) lost() uint64             { return 0 }

func (c *memoryConn) close() error {
	c.broker.mu.Lock()
	delete(c.broker.members, c)
	c.broker.mu.Unlock()
	c.up.Store(false)
	c.wake()
	c.mu.Lock()
	c.ended = true
	ending := c.listeners
	c.listeners = map[*memoryListener]struct{}{}
	c.mu.Unlock()
	for l := range ending {
		l.stop()
	}
	return nil
}
