package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// askLimit bounds how long a question waits, whatever its context says.
const askLimit = time.Second

// Raw is a message as the broker carries it.
type Raw struct {
	Subject string
	Data    []byte
}

// transport carries bytes: NATS or Memory. Everything else is in member, so the
// twins cannot differ in it.
type transport interface {
	// send hands the message over; it does not block and does not keep data.
	send(Raw) error
	// listen calls handle, one call at a time, for each message on the subject; a
	// last part of "*" matches any. Stop returns when the last call has.
	listen(subject string, handle func(Raw)) (stop func(), err error)
	connected() bool
	changed() <-chan struct{}
	// slow counts messages dropped before a slow handler, lost those that were
	// taken by send and then could not be sent.
	slow() uint64
	lost() uint64
	// close returns when no handler runs any more.
	close() error
}

// member is a Bus on a transport.
type member struct {
	transport
	name   string
	boot   uint64
	prefix string // of every subject
	keys   keyring

	sequence atomic.Uint64
	stats    struct {
		sent, received, forged, replayed, unknownKey, malformed, lost atomic.Uint64
	}

	done chan struct{}
	once sync.Once

	mu    sync.Mutex
	asked map[uint64]question // by sequence
}

type question struct {
	node   string
	answer chan []byte // capacity 1
}

// check fills in what the Config leaves out.
func (c *Config) check() error {
	if c.Name == "" || len(c.Name) > maxName {
		return fmt.Errorf("%w: Config.Name is needed, of at most %d bytes", ErrMisuse, maxName)
	}
	if c.Cluster == "" {
		c.Cluster = "default"
	}
	if !regexp.MustCompile(`^[A-Za-z0-9_-]{1,63}$`).MatchString(c.Cluster) {
		return fmt.Errorf("%w: Config.Cluster %q has characters other than letters, digits, '-' and '_'", ErrMisuse, c.Cluster)
	}
	if c.Boot == 0 {
		c.Boot = uint64(time.Now().UnixNano())
	}
	if c.Pending <= 0 {
		c.Pending = 8192
	}
	return nil
}

// newMember makes a member of a checked Config and starts to listen for answers.
func newMember(c Config, t transport) (*member, error) {
	m := &member{
		transport: t,
		name:      c.Name,
		boot:      c.Boot,
		prefix:    "portcullis." + c.Cluster + ".",
		done:      make(chan struct{}),
		asked:     map[uint64]question{},
	}
	if err := m.keys.set(c.Keys, time.Now()); err != nil {
		return nil, err
	}
	if _, err := t.listen(m.answerSubject(c.Name, c.Boot)+"*", m.answered); err != nil {
		return nil, err
	}
	return m, nil
}

// answerSubject is where answers to a member's questions go, up to the sequence
// number of the question. It is made of what the question's MAC covers, so
// nobody can turn an answer elsewhere, or give an old one to a new question.
func (m *member) answerSubject(name string, boot uint64) string {
	return m.prefix + answerPrefix + token(name) + "." + strconv.FormatUint(boot, 36) + "."
}

func (m *member) SetKeys(keys []*controlv1.BusKey) error { return m.keys.set(keys, time.Now()) }
func (m *member) Connected() bool                        { return !m.closed() && m.connected() }
func (m *member) Changed() <-chan struct{}               { return m.changed() }

func (m *member) closed() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

func (m *member) Close() (err error) {
	m.once.Do(func() {
		close(m.done)
		err = m.transport.close()
	})
	return err
}

func (m *member) Stats() Stats {
	return Stats{
		Sent:       m.stats.sent.Load(),
		Received:   m.stats.received.Load(),
		Forged:     m.stats.forged.Load(),
		Replayed:   m.stats.replayed.Load(),
		UnknownKey: m.stats.unknownKey.Load(),
		Malformed:  m.stats.malformed.Load(),
		Slow:       m.slow(),
		Lost:       m.stats.lost.Load() + m.lost(),
	}
}

func (m *member) Publish(s Subject, msg proto.Message) error {
	if err := expect(s.message(), msg); err != nil {
		return fmt.Errorf("publish on %q: %w", s, err)
	}
	return m.send(m.prefix+string(s), msg, m.sequence.Add(1))
}

// expect says whether msg has the type of want.
func expect(want, msg proto.Message) error {
	if want == nil || msg == nil || want.ProtoReflect().Descriptor() != msg.ProtoReflect().Descriptor() {
		return fmt.Errorf("%w: a message of type %T, want %T", ErrMisuse, msg, want)
	}
	return nil
}

func (m *member) send(subject string, msg proto.Message, sequence uint64) error {
	if m.closed() {
		return ErrClosed
	}
	payload, err := proto.Marshal(msg)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMisuse, err)
	}
	if len(payload) > MaxPayload {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(payload), MaxPayload)
	}
	data, err := m.keys.seal(subject, &busv1.Envelope{
		Sender: m.name, Boot: m.boot, Sequence: sequence, Payload: payload,
	}, time.Now())
	if err != nil {
		return err
	}
	if err := m.transport.send(Raw{subject, data}); err != nil {
		m.stats.lost.Add(1)
		return err
	}
	m.stats.sent.Add(1)
	return nil
}

func (m *member) Subscribe(s Subject, handle func(Sender, proto.Message)) (cancel func(), err error) {
	return m.receive(s, func(e *busv1.Envelope, msg proto.Message) {
		handle(Sender{Name: e.Sender, Boot: e.Boot}, msg)
	})
}

func (m *member) Answer(s Subject, answer func(proto.Message) proto.Message) (cancel func(), err error) {
	if node, ok := s.node(); !ok || node != m.name {
		return nil, fmt.Errorf("%w: %s answers on %q, which is not its own", ErrMisuse, m.name, s)
	}
	return m.receive(s, func(e *busv1.Envelope, req proto.Message) {
		resp := answer(req)
		if expect(&busv1.Answer{}, resp) != nil {
			return
		}
		subject := m.answerSubject(e.Sender, e.Boot) + strconv.FormatUint(e.Sequence, 36)
		// Whoever asked gives up by itself; the loss is counted.
		_ = m.send(subject, resp, m.sequence.Add(1))
	})
}

// receive calls handle for what is authentic, new and of the right type.
func (m *member) receive(s Subject, handle func(*busv1.Envelope, proto.Message)) (func(), error) {
	if s.message() == nil {
		return nil, fmt.Errorf("%w: no subject %q", ErrMisuse, s)
	}
	if m.closed() {
		return nil, ErrClosed
	}
	// A window per subscription: the MAC covers the subject, so nothing passes from
	// one to another.
	var seen replays
	return m.listen(m.prefix+string(s), func(raw Raw) {
		e, ok := m.open(raw)
		if !ok {
			return
		}
		if !seen.fresh(e.Sender, e.Boot, e.Sequence, time.Now()) {
			m.stats.replayed.Add(1)
			return
		}
		msg := s.message()
		if proto.Unmarshal(e.Payload, msg) != nil {
			m.stats.malformed.Add(1)
			return
		}
		m.stats.received.Add(1)
		handle(e, msg)
	})
}

// open authenticates a message and counts it when it is not authentic.
func (m *member) open(raw Raw) (*busv1.Envelope, bool) {
	e, err := m.keys.open(raw.Subject, raw.Data)
	switch {
	case err == nil:
		return e, true
	case errors.Is(err, errForged):
		m.stats.forged.Add(1)
	case errors.Is(err, errUnknownKey):
		m.stats.unknownKey.Add(1)
	default:
		m.stats.malformed.Add(1)
	}
	return nil, false
}

func (m *member) Ask(ctx context.Context, s Subject, req, resp proto.Message) error {
	node, ok := s.node()
	if !ok {
		return fmt.Errorf("%w: nobody answers on %q", ErrMisuse, s)
	}
	if err := errors.Join(expect(&busv1.Ask{}, req), expect(&busv1.Answer{}, resp)); err != nil {
		return fmt.Errorf("ask %s: %w", node, err)
	}
	sequence := m.sequence.Add(1)
	q := question{node, make(chan []byte, 1)}
	m.mu.Lock()
	m.asked[sequence] = q
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.asked, sequence)
		m.mu.Unlock()
	}()
	if err := m.send(m.prefix+string(s), req, sequence); err != nil {
		return fmt.Errorf("ask %s: %w", node, err)
	}
	timer := time.NewTimer(askLimit)
	defer timer.Stop()
	select {
	case payload := <-q.answer:
		if err := proto.Unmarshal(payload, resp); err != nil {
			m.stats.malformed.Add(1)
			return fmt.Errorf("ask %s: %w: %w", node, ErrNoAnswer, err)
		}
		m.stats.received.Add(1)
		return nil
	case <-ctx.Done():
		return fmt.Errorf("ask %s: %w: %w", node, ErrNoAnswer, ctx.Err())
	case <-timer.C:
		return fmt.Errorf("ask %s: %w within %v", node, ErrNoAnswer, askLimit)
	case <-m.done:
		return ErrClosed
	}
}

// answered takes an answer to whoever waits for it.
func (m *member) answered(raw Raw) {
	sequence, err := strconv.ParseUint(raw.Subject[strings.LastIndexByte(raw.Subject, '.')+1:], 36, 64)
	if err != nil {
		m.stats.malformed.Add(1)
		return
	}
	e, ok := m.open(raw)
	if !ok {
		return
	}
	m.mu.Lock()
	q, waiting := m.asked[sequence]
	m.mu.Unlock()
	if !waiting {
		return // too late, or a repetition
	}
	if e.Sender != q.node {
		m.stats.forged.Add(1)
		return
	}
	select {
	case q.answer <- e.Payload:
	default: // a repetition
	}
}
