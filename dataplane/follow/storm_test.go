package follow

import (
	"errors"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// A revocation of a kind that a later release has must not make the node come
// back for it for ever: the readable ones count, what they came with is refused,
// and nothing says that all are held.
func TestRevocationOfALaterReleaseIsARejection(t *testing.T) {
	w := newAuthor(t)
	a := []*configv1.Resource{application("a", "1")}
	key := revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_JTI, "", "t6")
	known := &controlv1.Revocation{Kind: controlv1.RevocationKind_REVOCATION_KIND_JTI, Key: key[:]}
	later := &controlv1.Revocation{Kind: 7, Key: make([]byte, 16)}
	update := func(version int64, mutate func(*controlv1.Update)) *controlv1.FollowResponse {
		u := &controlv1.Update{Version: at(version).Proto(), From: at(5).Proto()}
		mutate(u)
		return message(u)
	}
	n := play(t, nil, func(k *talk) error {
		if err := k.step(5, "", true, w.welcome(), message(w.full(t, at(5), a...))); err != nil {
			return err
		}
		// In the deny lane alone, in a part before the one that closes it.
		if err := k.send(
			update(5, func(u *controlv1.Update) { u.Last, u.Revocations = true, []*controlv1.Revocation{later, known} }),
			update(6, func(u *controlv1.Update) { u.Last = true })); err != nil {
			return err
		}
		if err := k.step(5, "cannot read", true, update(6, func(u *controlv1.Update) {
			u.Revocations = []*controlv1.Revocation{later}
			w.seal(t, u, a)
		})); err != nil {
			return err
		}
		// The same stream goes on once it has expired.
		return k.step(7, "", true, update(7, func(u *controlv1.Update) { w.seal(t, u, a) }))
	})
	equal(t, "applied", n.versions(), []int64{5, 7})
	if _, denied := n.cfg.Revocations.Revoked(&revocation.Subject{JTI: "t6"}); !denied {
		t.Error("the entry beside one that cannot be read is lost")
	}
	if n.denied() != 7 {
		t.Errorf("holds all revocations up to %d", n.denied())
	}
}

// What the lane claims is not held when a part of it was not read.
func TestUnreadLaneHoldsNothing(t *testing.T) {
	n := newNode(t, nil)
	n.cfg.Freshness.Holds(1, 5, time.Now())
	s := &session{f: n.Follower}
	s.lane(at(5), at(5), errors.New("unread"), time.Now())
	s.lane(at(5), at(6), nil, time.Now())
	if n.denied() != 5 {
		t.Errorf("holds up to %d", n.denied())
	}
	s.lane(at(5), at(6), nil, time.Now())
	if n.denied() != 6 {
		t.Errorf("holds up to %d once it was read", n.denied())
	}
}

// Only a stream that brought something, or lasted, makes the next attempt come
// soon.
func TestStreamsThatEndAtOnceAreBackedOffFrom(t *testing.T) {
	w := newAuthor(t)
	for name, c := range map[string]struct {
		play   func(*talk) error
		worked bool
	}{
		"ended after a word":  {func(k *talk) error { return k.send(w.welcome()) }, false},
		"taken by a namesake": {func(k *talk) error { _ = k.send(w.welcome()); return errors.New("another stream") }, false},
		"an update too large": {func(k *talk) error {
			_ = k.send(message(w.full(t, at(5), application("a", strings.Repeat("x", 1<<11)))))
			return k.stay()
		}, false},
		"refused": {func(k *talk) error { return k.step(0, "signed by no key", false, message(w.full(t, at(5)))) }, false},
		"an update and an end": {func(k *talk) error {
			return k.step(5, "", true, w.welcome(), message(w.full(t, at(5), application("a", "1"))))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, func(c *Config) { c.MaxUpdate = 1 << 10 }, &script{plays: []func(*talk) error{c.play}})
			worked, err := n.session(t.Context(), n.cfg.Addresses[0])
			if worked != c.worked || err == nil {
				t.Errorf("worked: %v, %v", worked, err)
			}
		})
	}
}

// A gap that lasts is asked about now and then, with one question at a time.
func TestMissedAsksOnce(t *testing.T) {
	n := newNode(t, nil)
	n.status.Connected = true
	n.door.held.version = at(5)
	n.cfg.Freshness.Holds(1, 5, time.Now())
	asks := func() int {
		n.Follower.mu.Lock()
		defer n.Follower.mu.Unlock()
		asked := n.outbox.lacks
		n.outbox.lacks = false
		if asked {
			return 1
		}
		return 0
	}
	for range 1000 {
		n.Missed()
	}
	if len(n.outbox.reports) != 0 {
		t.Errorf("%d reports queued", len(n.outbox.reports))
	}
	if asks() != 1 {
		t.Error("not asked")
	}
	n.Missed()
	if asks() != 0 {
		t.Error("asked again at once")
	}
	n.Follower.asked.at = n.Follower.asked.at.Add(-minAgain)
	if n.Missed(); asks() != 1 || n.again != 2*minAgain {
		t.Errorf("not asked again; the next in %v", n.again)
	}
	n.cfg.Freshness.Holds(1, 6, time.Now())
	if n.Missed(); asks() != 1 || n.again != minAgain {
		t.Errorf("not asked about what is new; the next in %v", n.again)
	}
	if r := n.missed().GetReport(); r.GetVersion() != nil || r.GetRevocations().GetRevision() != 6 || r.GetRunning().GetRevision() != 5 {
		t.Errorf("question: %v", r)
	}
	// What is held of another epoch says nothing of this one.
	n.cfg.Freshness.Holds(2, 900, time.Now())
	if r := n.missed().GetReport(); r.GetRevocations().GetRevision() != 1 {
		t.Errorf("question: %v", r)
	}
}

// gate is a sealer that stops until it is told to go on.
type gate struct {
	Sealer
	at, open chan struct{}
}

func (g *gate) Seal(plain, aad []byte) ([]byte, error) {
	select {
	case g.at <- struct{}{}:
		<-g.open
	case <-g.open:
	}
	return g.Sealer.Seal(plain, aad)
}

// A disk that hangs keeps no update from going live, config and credentials.
func TestUpdatesDoNotWaitForTheDisk(t *testing.T) {
	w := newAuthor(t)
	g := &gate{newSealer(t), make(chan struct{}), make(chan struct{})}
	n := newNode(t, func(c *Config) {
		c.Store = openStore(t, t.TempDir(), g)
		c.SigningKeys = [][]byte{w.public}
	})
	take := func(v int64, keys ...credential.Credential) {
		t.Helper()
		all := []*configv1.Resource{application("a", "1")}
		u := w.seal(t, &controlv1.Update{Version: at(v).Proto(), Upserts: all, Credentials: credential.Pack(keys, nil)}, all, keys...)
		var a assembly
		if done, err := a.add(u, 1<<20); !done || err != nil {
			t.Fatal(err)
		}
		if err := n.takeIn(t.Context(), &a); err != nil {
			t.Fatal(err)
		}
	}
	key := func(i byte) credential.Credential {
		return credential.Credential{SHA256: [32]byte{i}, ID: revocation.CredentialKey([32]byte{i}), Workspace: "default", Application: "a"}
	}
	take(5, key(1))
	saved := make(chan config.Version)
	go func() {
		v, err := n.saveOnce(config.Version{})
		if err != nil {
			t.Error(err)
		}
		saved <- v
	}()
	<-g.at
	live := make(chan struct{})
	go func() { defer close(live); take(6, key(2)) }()
	select {
	case <-live:
	case <-time.After(20 * time.Second):
		t.Error("an update waits for the disk")
	}
	close(g.open)
	if v := <-saved; v != at(5) {
		t.Errorf("saved %v", v)
	}
	// What was saved is one version, not two.
	st, err := n.cfg.Store.load(at(5), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	d := door{credentials: credential.NewSet(), keys: n.door.keys}
	if _, err := d.check(&st.state); err != nil {
		t.Error(err)
	}
}
