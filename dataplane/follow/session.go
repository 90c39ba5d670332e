package follow

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// maxMessage bounds one message of the stream: a chunk is far smaller, one
// resource alone may be larger.
const maxMessage = 64 << 20

var (
	errSilent = errors.New("control plane has gone silent")
	errBehind = errors.New("control plane is behind this node")
)

type stream = grpc.BidiStreamingClient[controlv1.FollowRequest, controlv1.FollowResponse]

// session is one stream. Its reader owns the fields.
type session struct {
	f      *Follower
	stream stream
	// updates takes a whole update to the goroutine that applies. The control
	// plane sends one at a time.
	updates chan *assembly
	current assembly
	// behindSince is when the control plane was first seen behind this node.
	behindSince time.Time
	// unread says that a part of the deny lane that is coming in was not read.
	unread bool
	// applied says that an update came in. The goroutine that applies owns it.
	applied bool
}

// settled is how long a stream must last to count as one that worked, when it
// brought nothing.
const settled = 10 * time.Second

// session follows one control plane until something ends it, and reports whether
// that worked until then: whoever ends each stream, or sends what this node
// cannot read, is not come back to at once. What it started has ended when it
// returns: an update that is being applied is finished, so that the next Hello
// says what the node holds.
func (f *Follower) session(ctx context.Context, address string) (worked bool, err error) {
	conn, err := f.cfg.Dial(address)
	if err != nil {
		return false, fmt.Errorf("dial %s: %w", address, err)
	}
	defer conn.Close()
	sctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(f.cfg.Silence, func() { cancel(errSilent) })
	defer silence.Stop()
	st, err := controlv1.NewControlServiceClient(conn).Follow(sctx, grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return false, cause(sctx, err)
	}
	if err := st.Send(f.hello()); err != nil {
		_, err = st.Recv() // the status that the stream ended with
		return false, cause(sctx, err)
	}
	s := &session{f: f, stream: st, updates: make(chan *assembly, 1)}
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.send(sctx); err != nil {
			cancel(err)
		}
	})
	running.Go(func() { s.apply(ctx) })
	var heard time.Time // the first message
	for err == nil {
		var m *controlv1.FollowResponse
		if m, err = st.Recv(); err == nil {
			silence.Reset(f.cfg.Silence)
			if heard.IsZero() {
				heard = time.Now()
				f.connected(address)
			}
			err = s.receive(m, time.Now())
		}
	}
	err = cause(sctx, err)
	cancel(err)
	close(s.updates)
	running.Wait()
	f.connected("")
	lasted := !heard.IsZero() && time.Since(heard) >= settled && !errors.Is(err, errBroken)
	return s.applied || lasted, err
}

// cause prefers why we ended the stream to how that looked from within.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

func (f *Follower) connected(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Connected, f.status.Address = address != "", address
}

// hello says what the node is and holds, and forgets what was meant for the
// session before.
func (f *Follower) hello() *controlv1.FollowRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outbox.reset()
	f.again = 0
	return &controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Hello{Hello: &controlv1.Hello{
		Release: f.cfg.Release, Boot: f.cfg.Boot, Address: f.cfg.Address, Features: features,
		Version: f.door.held.version.Proto(), Digest: f.door.digest(),
	}}}
}

// send sends what is in the outbox until ctx ends.
func (s *session) send(ctx context.Context) error {
	f := s.f
	f.outbox.wake() // for what was asked while there was no stream
	for {
		select {
		case <-f.outbox.woken:
		case <-ctx.Done():
			return nil
		}
		f.mu.Lock()
		messages := f.outbox.take()
		if f.outbox.lacks {
			f.outbox.lacks = false
			messages = append(messages, f.missed())
		}
		f.mu.Unlock()
		for _, m := range messages {
			if err := s.stream.Send(m); err != nil {
				return fmt.Errorf("send to the control plane: %w", err)
			}
		}
	}
}

// receive takes one message; an error ends the stream.
func (s *session) receive(m *controlv1.FollowResponse, now time.Time) error {
	switch k := m.GetKind().(type) {
	case *controlv1.FollowResponse_Update:
		return s.update(k.Update, now)
	case *controlv1.FollowResponse_Heartbeat:
		return s.heartbeat(k.Heartbeat, now)
	case *controlv1.FollowResponse_Ask:
		s.f.answer(k.Ask)
	case *controlv1.FollowResponse_Welcome:
		return s.f.welcomed(k.Welcome)
	}
	// A kind that this release does not know is none that it needs: the control
	// plane refuses nodes that lack a feature that it relies on.
	return nil
}

// update takes a chunk. What it denies is denied at once, whatever becomes of
// the rest.
func (s *session) update(u *controlv1.Update, now time.Time) error {
	f := s.f
	unread := f.deny(u.GetRevocations())
	if laneOnly(u) {
		s.lane(config.VersionOf(u.GetFrom()), config.VersionOf(u.GetVersion()), unread, now)
		return nil
	}
	done, err := s.current.add(u, f.cfg.MaxUpdate)
	if err != nil {
		return err
	}
	if unread != nil {
		s.current.unread = unread
	}
	if !done {
		return nil
	}
	a := s.current
	s.current = assembly{}
	if a.unread == nil {
		f.holds(a.from, a.version, now)
	}
	select {
	case s.updates <- &a:
		return nil
	default:
		return fmt.Errorf("%w: sent while another one waits", errBroken)
	}
}

// lane takes a part of the deny lane from..version; those before the last claim
// nothing. The update that follows it has the same entries, and reports the ones
// that cannot be read.
func (s *session) lane(from, version config.Version, unread error, now time.Time) {
	if unread != nil {
		s.f.cfg.Logger.Error("revocations are not held", "err", unread)
		s.unread = true
	}
	if version == from {
		return
	}
	if !s.unread {
		s.f.holds(from, version, now)
	}
	s.unread = false
}

// deny adds revocations. One that cannot be read must not be dropped silently:
// the error says so, and the node does not hold what it came with.
func (f *Follower) deny(list []*controlv1.Revocation) error {
	entries := make([]revocation.Entry, 0, len(list))
	var unread error
	for _, r := range list {
		e, err := revocation.EntryOf(r)
		if err != nil {
			unread = fmt.Errorf("a revocation that this node's release cannot read: %w", err)
			continue
		}
		entries = append(entries, e)
	}
	f.cfg.Revocations.Add(entries...)
	return unread
}

// holds notes that every revocation after from up to version is there, which
// says something when those up to from are: from is zero in a full update.
func (f *Follower) holds(from, version config.Version, now time.Time) {
	switch {
	case from.IsZero():
		f.cfg.Freshness.Holds(version.Epoch, version.Revision, now)
	case from.Epoch == version.Epoch:
		// With a gap it notes nothing; the stream goes on to close it.
		f.cfg.Freshness.Follows(version.Epoch, from.Revision, version.Revision, now)
	}
}

func (s *session) heartbeat(h *controlv1.Heartbeat, now time.Time) error {
	f := s.f
	head := config.VersionOf(h.GetHead())
	f.cfg.Freshness.Heard(revocation.Beat{
		Epoch: head.Epoch, Head: h.GetRevocations(), Progress: h.GetProgress(), Age: h.GetAge().AsDuration(),
	}, now)
	f.mu.Lock()
	defer f.mu.Unlock()
	if head.Compare(f.door.floor) >= 0 {
		s.behindSince = time.Time{}
	} else if s.behindSince.IsZero() {
		s.behindSince = now
	} else if now.Sub(s.behindSince) > f.cfg.Silence {
		return fmt.Errorf("%w: it is at %v, this node has run %v", errBehind, head, f.door.floor)
	}
	held := f.door.held.version
	if len(h.GetDigest()) > 0 && !held.IsZero() {
		f.outbox.report(&controlv1.Report{Running: held.Proto(), Digest: f.door.digest()})
	}
	return nil
}

func (f *Follower) answer(a *controlv1.Ask) {
	d := &controlv1.Decision{Ask: a.GetId()}
	if f.cfg.Decisions != nil {
		d.Record, d.Found = f.cfg.Decisions(a.GetRequestId())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outbox.decision(d)
}

// welcomed takes the keys that sign versions. The stream is authenticated, and
// whoever it comes from is trusted to say who signs.
func (f *Follower) welcomed(w *controlv1.Welcome) error {
	keys, err := identity.ParseVerifyKeys(append(w.GetSigningKeys(), f.cfg.SigningKeys...))
	if err != nil {
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	f.mu.Lock()
	f.door.keys = keys
	f.welcome = w
	f.mu.Unlock()
	f.wakeSave()
	if f.cfg.Welcome != nil {
		f.cfg.Welcome(w)
	}
	return nil
}

// apply takes updates in, one after the other, until the stream has ended. One
// that it has begun it finishes.
func (s *session) apply(ctx context.Context) {
	for a := range s.updates {
		if err := s.f.takeIn(ctx, a); err != nil {
			s.f.cfg.Logger.Error("version refused", "version", a.version, "err", err)
			continue
		}
		s.applied = true
		s.f.wakeSave()
	}
}

// takeIn checks an update, makes it live and reports.
func (f *Follower) takeIn(ctx context.Context, a *assembly) error {
	began := time.Now()
	f.mu.Lock()
	d := f.door // check reads while others read too; only this goroutine writes
	f.mu.Unlock()
	in, err := d.check(a)
	// Between what makes the config live and what makes its credentials live there
	// is nothing to wait for.
	f.committing.Lock()
	defer f.committing.Unlock()
	if err == nil {
		err = d.start(ctx, in)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		if err := f.door.commit(in); err != nil {
			f.cfg.Logger.Error("credentials could not be applied", "version", a.version, "err", err)
		}
	}
	r := &controlv1.Report{
		Version: a.version.Proto(), Running: f.door.held.version.Proto(), Digest: f.door.digest(),
		ApplyTime: durationpb.New(time.Since(began)),
	}
	if err != nil {
		r.Problems = problemsOf(err)
		// What a delta did not fit is not what the control plane takes it for: the
		// full state is asked for by vouching for nothing.
		if errors.Is(err, ErrDigest) || errors.Is(err, ErrBase) {
			r.Digest = nil
		}
	}
	f.outbox.report(r)
	return err
}

func (f *Follower) wakeSave() {
	select {
	case f.dirty <- struct{}{}:
	default:
	}
}
