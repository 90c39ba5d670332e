// Package bus carries small messages between the members of a cluster as fast
// as can be and as reliably as may be: revocations, heartbeats, totals of
// limits, questions to a key's owner. It is the only package that speaks NATS,
// and it owns the envelope that authenticates every payload. It must not know
// what a message means, and nothing may depend on a message's arrival: what
// must arrive also travels on the stream between the planes.
//
// Whoever can reach the broker but has no key of the cluster can neither forge,
// alter nor repeat a message. Members share the keys, so they trust each other.
package bus

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"

	"google.golang.org/protobuf/proto"

	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

var (
	// ErrClosed says that the bus has been closed.
	ErrClosed = errors.New("bus closed")
	// ErrDisconnected says that no broker is reachable now; the message is gone.
	ErrDisconnected = errors.New("bus disconnected")
	// ErrOverflow says that the broker takes messages too slowly; the message is
	// gone.
	ErrOverflow = errors.New("bus queue full")
	// ErrNoKey says that the bus has been given no key yet.
	ErrNoKey = errors.New("bus has no key")
	// ErrTooLarge says that a message exceeds MaxPayload.
	ErrTooLarge = errors.New("bus message too large")
	// ErrNoAnswer says that nobody answered in time.
	ErrNoAnswer = errors.New("no answer on the bus")
	// ErrMisuse says that a message's type is not its subject's, or that a Config
	// or key cannot be used.
	ErrMisuse = errors.New("bus misused")
)

// MaxPayload bounds a message's encoded size, in bytes.
const MaxPayload = 512 << 10

// Subject is what a message is about; each has one type of message.
type Subject string

const (
	// Revoked carries *busv1.Revoked.
	Revoked Subject = "revoked"
	// Beat carries *busv1.Beat.
	Beat Subject = "beat"
	// Spent carries *busv1.Spent.
	Spent Subject = "spent"
)

const (
	askPrefix    = "ask."
	answerPrefix = "answer."
)

// AskOf is the subject on which a node answers *busv1.Ask with *busv1.Answer.
func AskOf(node string) Subject { return Subject(askPrefix + token(node)) }

// token makes a name fit for a part of a NATS subject, and keeps names apart.
func token(name string) string { return base64.RawURLEncoding.EncodeToString([]byte(name)) }

// node is the inverse of AskOf.
func (s Subject) node() (string, bool) {
	t, ok := strings.CutPrefix(string(s), askPrefix)
	if !ok {
		return "", false
	}
	b, err := base64.RawURLEncoding.DecodeString(t)
	return string(b), err == nil && len(b) > 0
}

// message makes an empty message of the subject's type; nil for no subject.
func (s Subject) message() proto.Message {
	switch s {
	case Revoked:
		return &busv1.Revoked{}
	case Beat:
		return &busv1.Beat{}
	case Spent:
		return &busv1.Spent{}
	}
	if _, ok := s.node(); ok {
		return &busv1.Ask{}
	}
	return nil
}

// Sender is who sent a message, as far as the cluster's keys vouch for it.
type Sender struct {
	Name string
	// Boot changes with every start of the sender.
	Boot uint64
}

// Stats counts since the bus was opened.
type Stats struct {
	Sent, Received uint64
	// Dropped on arrival: the MAC was wrong or the answer came from another than
	// was asked; the message had been seen or is too old; its key is not ours; it
	// could not be decoded.
	Forged, Replayed, UnknownKey, Malformed uint64
	// Slow counts what was dropped because a handler fell behind.
	Slow uint64
	// Lost counts what could not be sent: no connection, or a full queue.
	Lost uint64
}

// Bus is one member's connection. It never hears its own messages. Every method
// is safe for concurrent use.
//
// Delivery is at most once and nearly in order. Handlers of one subscription run
// one at a time, on a goroutine of their own; one that falls behind loses
// messages and delays nobody else.
type Bus interface {
	// Publish sends m to all other members. It never blocks: errors are ErrClosed,
	// ErrDisconnected, ErrOverflow, ErrNoKey, ErrTooLarge and ErrMisuse, and the
	// message is not sent later.
	Publish(Subject, proto.Message) error
	// Subscribe calls handle, which owns m, for each message. Cancel returns when
	// the last call has; a handler must not call it.
	Subscribe(s Subject, handle func(from Sender, m proto.Message)) (cancel func(), err error)
	// Ask sends req to the node that AskOf named and fills resp. It returns when
	// ctx ends, or after a second. Errors are ErrNoAnswer and those of Publish.
	Ask(ctx context.Context, s Subject, req, resp proto.Message) error
	// Answer calls answer for each question to a subject of AskOf. It answers
	// nothing when answer returns nil. Cancel is as for Subscribe.
	Answer(s Subject, answer func(req proto.Message) proto.Message) (cancel func(), err error)
	// SetKeys replaces the keys, newest first, each of at least 32 bytes. What
	// arrives under a key that is not among them is dropped from now on. Messages
	// are sent under the newest, but while the one used so far stays among them, it
	// is used for ten more seconds, for members that have yet to get the newest.
	SetKeys([]*controlv1.BusKey) error
	// Connected says whether a broker is reachable now.
	Connected() bool
	// Changed receives after Connected has changed. One goroutine may wait for it.
	Changed() <-chan struct{}
	// Stats returns the counts.
	Stats() Stats
	// Close ends the bus and returns when all that it started has ended. No handler
	// may call it.
	Close() error
}

// Config says who opens a bus, and to what.
type Config struct {
	// Name of the member, unique in the cluster. Required.
	Name string
	// Boot distinguishes this start of the member from earlier ones; it should be
	// larger than theirs. 0 for the wall clock's nanoseconds.
	Boot uint64
	// Cluster keeps clusters apart that share a broker: letters, digits, '-' and
	// '_'. "" for "default".
	Cluster string
	// Keys as for SetKeys; none is allowed: then nothing passes before SetKeys.
	Keys []*controlv1.BusKey
	// Pending bounds how many messages wait for a slow handler. 0 for 8192.
	Pending int
	// Log is for changes of the connection; nil for none.
	Log *slog.Logger

	// NATS is where the broker is. Not used by Memory.
	NATS NATSConfig
}
