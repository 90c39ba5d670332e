// Package stream keeps data-plane nodes at the newest version: a pure Session
// per node decides what the node needs next, and the Hub wakes the sessions,
// encodes each version once and sends the same bytes to all. It owns the order
// in which a node may see versions, the ring of last changes, and what is known
// of each node. It must not know where versions come from, how a node's identity
// is proved, nor what a resource means.
package stream

import (
	"errors"
	"fmt"

	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// DigestSize is the length of a state's digest in bytes.
const DigestSize = 32

// Digest is the XOR of the digests of all resources and credentials.
type Digest = [DigestSize]byte

// ErrProtocol is wrapped by every refusal of something that a node said out of
// turn. The stream ends with it; the node starts again with a Hello.
var ErrProtocol = errors.New("protocol violation")

// View is what a session needs to know of the world to choose the next step.
type View struct {
	// Head is the newest version; zero while nothing has been loaded.
	Head config.Version
	// Revocations is the revision of the newest revocation.
	Revocations int64
	// Oldest is the version since which the ring holds every change. It is of
	// Head's epoch.
	Oldest config.Version
	// DigestAt returns the digest of the state at a version that the ring knows.
	DigestAt func(config.Version) (Digest, bool)
}

// StepKind says what a node is sent next.
type StepKind uint8

// The steps.
const (
	// Idle: nothing to send until the view or the session changes.
	Idle StepKind = iota
	// Full: the whole state. The caller says with Begin which version it sends.
	Full
	// Delta: the changes after From up to To.
	Delta
	// Revocations: only the deny lane, the entries after From up to To.
	Revocations
)

// String names the kind as transcripts do.
func (k StepKind) String() string {
	return [...]string{"idle", "full", "delta", "revocations"}[k]
}

// Step is what a node is sent next.
type Step struct {
	Kind     StepKind
	From, To config.Version
}

// Session is what one stream knows of its node: no goroutine, no clock, no I/O.
// It never lets a node go back: no step leads to a version older than one that
// the node holds or was sent. The zero Session awaits a Hello. Not safe for
// concurrent use.
type Session struct {
	greeted bool
	// held is what the node runs; digest is what it says of it.
	held   config.Version
	digest Digest
	// whole is set when the node cannot vouch for what it holds.
	whole bool
	// inflight is the version that was sent and not yet reported on.
	inflight config.Version
	// rejected is the newest version that the node refused.
	rejected config.Version
	// denied is the version up to which the node has been sent every revocation, or
	// held them when it came.
	denied config.Version
	// full is set while inflight is a full state: until it has arrived, the node's
	// deny lane has a hole that only the full state fills.
	full bool
}

// Held returns the version that the node runs, as it last said.
func (s *Session) Held() config.Version { return s.held }

// InFlight returns the version that was sent and not yet reported on, or zero.
func (s *Session) InFlight() config.Version { return s.inflight }

// Hello opens the session. An error wraps ErrProtocol.
func (s *Session) Hello(h *controlv1.Hello) error {
	if s.greeted {
		return fmt.Errorf("%w: a second Hello", ErrProtocol)
	}
	held, err := versionOf(h.GetVersion())
	if err != nil {
		return err
	}
	s.greeted = true
	s.held, s.denied = held, held
	s.whole = !s.keepDigest(h.GetDigest())
	return nil
}

// Report takes what became of an update, or with a version that was not sent
// just now, how the node is. An error wraps ErrProtocol and leaves the session
// as it was.
func (s *Session) Report(r *controlv1.Report) error {
	if !s.greeted {
		return fmt.Errorf("%w: a Report before Hello", ErrProtocol)
	}
	about, err := versionOf(r.GetVersion())
	if err != nil {
		return err
	}
	running, err := versionOf(r.GetRunning())
	if err != nil {
		return err
	}
	switch {
	case s.inflight.IsZero() || about != s.inflight:
		return s.status(about, running, r)
	case len(r.GetProblems()) > 0:
		if running != s.held {
			return fmt.Errorf("%w: rejected %v but runs %v, held %v", ErrProtocol, about, running, s.held)
		}
		// A delta that did not lead to the announced digest says nothing against the
		// version: the full state is tried.
		if s.full || len(r.GetDigest()) == DigestSize {
			s.rejected = s.inflight
		}
	default:
		if running != s.inflight {
			return fmt.Errorf("%w: applied %v but runs %v", ErrProtocol, about, running)
		}
		s.held, s.rejected = running, config.Version{}
	}
	s.inflight, s.full = config.Version{}, false
	s.whole = !s.keepDigest(r.GetDigest())
	return nil
}

// status takes a Report that answers no update.
func (s *Session) status(about, running config.Version, r *controlv1.Report) error {
	if !about.IsZero() && about != s.held {
		return fmt.Errorf("%w: a Report on %v, which was not sent", ErrProtocol, about)
	}
	if running != s.held {
		return fmt.Errorf("%w: runs %v without a report on it, held %v", ErrProtocol, running, s.held)
	}
	if s.inflight.IsZero() {
		s.whole = !s.keepDigest(r.GetDigest())
	}
	// Without a version the node says that it missed revocations: they are sent
	// again. They may have been on their way; entries do no harm twice.
	denied, err := versionOf(r.GetRevocations())
	if err != nil {
		return err
	}
	if about.IsZero() && !s.full && !denied.IsZero() && denied.Epoch == s.denied.Epoch && denied.Compare(s.denied) < 0 {
		s.denied = denied
	}
	return nil
}

// keepDigest notes the digest of what the node holds and reports whether the
// node vouches for it.
func (s *Session) keepDigest(d []byte) bool {
	s.digest = Digest{}
	if len(d) != DigestSize || s.held.IsZero() {
		return s.held.IsZero()
	}
	copy(s.digest[:], d)
	return true
}

// Next returns what to send now. A Delta or Revocations step counts as sent; a
// Full one only with Begin, so that it may wait for its turn.
func (s *Session) Next(v View) Step {
	if !s.greeted || v.Head.IsZero() || v.Head.Compare(s.held) < 0 {
		return Step{}
	}
	want := s.want(v)
	switch {
	case want == Delta:
		s.inflight = v.Head
		s.denied = v.Head
		return Step{Delta, s.held, v.Head}
	case s.denyBehind(v):
		from := s.denied
		s.denied = v.Head
		return Step{Revocations, from, v.Head}
	case want == Full:
		return Step{Kind: Full, From: s.held}
	}
	return Step{}
}

// want chooses between Full, Delta and Idle.
func (s *Session) want(v View) StepKind {
	if !s.inflight.IsZero() || v.Head.Compare(s.rejected) <= 0 {
		return Idle
	}
	known := !s.whole && !s.held.IsZero() && s.held.Epoch == v.Head.Epoch
	if known && v.DigestAt != nil {
		if d, ok := v.DigestAt(s.held); ok && d != s.digest {
			known = false
		}
	}
	// A delta holds the revocations since what the node holds, not older ones that
	// it missed: those go first.
	hole := s.denied.Compare(s.held) < 0 && v.Revocations > s.denied.Revision
	switch {
	case !known || hole && !s.denyBehind(v):
		return Full
	case s.held == v.Head || hole:
		return Idle
	case v.Oldest.Compare(s.held) <= 0:
		return Delta
	}
	return Full
}

// denyBehind says whether revocations can and should go ahead of the next
// version: the node is busy with one, or refused it, or waits for a full state.
func (s *Session) denyBehind(v View) bool {
	return !s.denied.IsZero() && s.denied.Epoch == v.Head.Epoch &&
		v.Head.Compare(s.denied) > 0 && v.Revocations > s.denied.Revision && v.Oldest.Compare(s.denied) <= 0
}

// Begin says that the full state at `at` is being sent. It returns false, and
// nothing may be sent, when that would take the node back or is not wanted any
// more.
func (s *Session) Begin(at config.Version) bool {
	if !s.greeted || at.IsZero() || !s.inflight.IsZero() || at.Compare(s.held) < 0 || at.Compare(s.rejected) <= 0 {
		return false
	}
	s.inflight, s.full = at, true
	if s.denied.Compare(at) < 0 {
		s.denied = at
	}
	return true
}

// versionOf reads a version off the wire; unset is zero.
func versionOf(p *controlv1.Version) (config.Version, error) {
	v := config.VersionOf(p)
	if v.Revision < 0 || (v.Revision == 0) != (v.Epoch == 0) {
		return config.Version{}, fmt.Errorf("%w: version %d.%d", ErrProtocol, v.Epoch, v.Revision)
	}
	return v, nil
}
