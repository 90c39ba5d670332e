package follow

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// step sends updates and returns an error unless the report on the last is as
// wanted: the version that runs, and a word of the first problem.
func (k *talk) step(running int64, problem string, vouches bool, ms ...*controlv1.FollowResponse) error {
	if err := k.send(ms...); err != nil {
		return err
	}
	r := k.report()
	got := ""
	if len(r.GetProblems()) > 0 {
		got = r.GetProblems()[0].GetReason()
	}
	switch {
	case r.GetRunning().GetRevision() != running:
		return fmt.Errorf("runs %v, want %d; problem %q", r.GetRunning(), running, got)
	case (problem == "") != (got == "") || !strings.Contains(got, problem):
		return fmt.Errorf("problem %q, want %q", got, problem)
	case (len(r.GetDigest()) == 32) != vouches:
		return fmt.Errorf("digest %x", r.GetDigest())
	}
	return nil
}

func TestFullAndDelta(t *testing.T) {
	w := newAuthor(t)
	a, b, b2 := application("a", "1"), application("b", "1"), application("b", "2")
	key := credential.Credential{SHA256: [32]byte{1}, ID: revocation.CredentialKey([32]byte{1}), Workspace: "default", Application: "a"}
	n := play(t, nil, func(k *talk) error {
		if k.hello.GetVersion() != nil || k.hello.GetDigest() != nil || len(k.hello.GetFeatures()) == 0 {
			return fmt.Errorf("hello: %v", k.hello)
		}
		// A full state in three chunks.
		last := w.seal(t, &controlv1.Update{Version: at(5).Proto(), Chunk: 2, Credentials: credential.Pack([]credential.Credential{key}, nil)},
			[]*configv1.Resource{a, b}, key)
		if err := k.step(5, "", true, w.welcome(),
			message(&controlv1.Update{Version: at(5).Proto(), Upserts: []*configv1.Resource{a}}),
			message(&controlv1.Update{Version: at(5).Proto(), Chunk: 1, Upserts: []*configv1.Resource{b}}),
			message(last)); err != nil {
			return err
		}
		delta := w.seal(t, &controlv1.Update{
			Version: at(6).Proto(), From: at(5).Proto(), Upserts: []*configv1.Resource{b2},
			Deletes:     []*controlv1.ResourceKey{config.KeyOf(a).Proto()},
			Credentials: credential.Pack(nil, [][32]byte{key.SHA256}),
		}, []*configv1.Resource{b2})
		return k.step(6, "", true, message(delta))
	})
	equal(t, "applied", n.versions(), []int64{5, 6})
	if t.Failed() {
		return
	}
	if n.cfg.Credentials.Len() != 0 || n.applied[1].Checked.Len() != 1 || n.applied[1].Affected.All {
		t.Errorf("%d credentials, %d resources, affected %+v", n.cfg.Credentials.Len(), n.applied[1].Checked.Len(), n.applied[1].Affected)
	}
}

func TestWhatIsRefused(t *testing.T) {
	w, stranger := newAuthor(t), newAuthor(t)
	a, b := application("a", "1"), application("b", "1")
	all := []*configv1.Resource{a, b}
	unknown := proto.CloneOf(a)
	unknown.GetApplication().ProtoReflect().SetUnknown([]byte{0xfa, 0x07, 1, 'x'})
	delta := func(from, to config.Version, mutate func(*controlv1.Update)) *controlv1.FollowResponse {
		u := w.seal(t, &controlv1.Update{Version: to.Proto(), From: from.Proto(), Upserts: []*configv1.Resource{b}}, all)
		if mutate != nil {
			mutate(u)
		}
		return message(u)
	}
	play(t, nil, func(k *talk) error {
		if err := k.step(5, "", true, w.welcome(), message(w.full(t, at(5), a))); err != nil {
			return err
		}
		for name, c := range map[string]struct {
			m       *controlv1.FollowResponse
			problem string
			vouches bool
		}{
			"stranger's signature": {message(stranger.full(t, at(9), a, b)), "signed by no key", true},
			"no signature":         {delta(at(5), at(6), func(u *controlv1.Update) { u.Signature = nil }), "signed by no key", true},
			"signature of another version": {delta(at(5), at(6), func(u *controlv1.Update) { u.Version = at(7).Proto() }),
				"signed by no key", true},
			"signature of another digest": {delta(at(5), at(6), func(u *controlv1.Update) { u.Digest[3] ^= 1 }), "signed by no key", true},
			"another content":             {delta(at(5), at(6), func(u *controlv1.Update) { u.Upserts = nil }), "digest", false},
			"older":                       {message(w.full(t, at(4), a, b)), "older", true},
			"delta on another version":    {delta(at(4), at(6), nil), "another version", false},
			"delta to the same version":   {delta(at(5), at(5), nil), "another version", false},
			"delta to another epoch":      {delta(at(5), config.Version{Epoch: 2, Revision: 6}, nil), "another version", false},
			"unknown field":               {message(w.full(t, at(6), unknown)), "does not know", true},
			"invalid name":                {message(w.full(t, at(6), application("No Name", ""))), "", true},
		} {
			if err := k.send(c.m); err != nil {
				return err
			}
			r := k.report()
			if r.GetRunning().GetRevision() != 5 || len(r.GetProblems()) == 0 || !strings.Contains(r.GetProblems()[0].GetReason(), c.problem) ||
				(len(r.GetDigest()) == 32) != c.vouches {
				t.Errorf("%s: %v", name, r)
			}
		}
		// None of it harmed the node.
		return k.step(6, "", true, delta(at(5), at(6), nil))
	})
}

func TestOldStateStaysOutAndNewEpochComesIn(t *testing.T) {
	w := newAuthor(t)
	a := application("a", "1")
	n := play(t, nil,
		func(k *talk) error {
			if err := k.step(9, "", true, w.welcome(), message(w.full(t, at(9), a))); err != nil {
				t.Error(err)
			}
			return errDone
		},
		// Another control plane, which is behind, sends what it takes for the newest.
		func(k *talk) error {
			if k.hello.GetVersion().GetRevision() != 9 || len(k.hello.GetDigest()) != 32 {
				t.Errorf("hello: %v", k.hello)
			}
			if err := k.step(9, "older", true, w.welcome(), message(w.full(t, at(7), a))); err != nil {
				return err
			}
			return k.step(3, "", true, message(w.full(t, config.Version{Epoch: 2, Revision: 3}, a)))
		})
	equal(t, "applied", n.versions(), []int64{9, 3})
}

func TestKilledMidPushAppliesNothing(t *testing.T) {
	w := newAuthor(t)
	a, b := application("a", "1"), application("b", "1")
	n := play(t, nil,
		func(k *talk) error {
			_ = k.send(w.welcome(), message(&controlv1.Update{Version: at(5).Proto(), Upserts: []*configv1.Resource{a}}))
			return errDone
		},
		func(k *talk) error {
			if k.hello.GetVersion() != nil {
				return fmt.Errorf("hello after half an update: %v", k.hello)
			}
			// What the first one sent must not be part of this.
			return k.step(6, "", true, w.welcome(), message(w.full(t, at(6), b)))
		})
	equal(t, "applied", n.versions(), []int64{6})
}

// TestBrokenStreams: chunks that do not fit end the stream, and the node starts
// over.
func TestBrokenStreams(t *testing.T) {
	w := newAuthor(t)
	a := application("a", "1")
	part := func(mutate func(*controlv1.Update)) *controlv1.FollowResponse {
		u := &controlv1.Update{Version: at(5).Proto(), Upserts: []*configv1.Resource{a}}
		mutate(u)
		return message(u)
	}
	whole := func(*controlv1.Update) {}
	for name, ms := range map[string][]*controlv1.FollowResponse{
		"no version":       {part(func(u *controlv1.Update) { u.Version = nil })},
		"negative":         {part(func(u *controlv1.Update) { u.Version.Revision = -5 })},
		"starts at 1":      {part(func(u *controlv1.Update) { u.Chunk = 1 })},
		"chunk left out":   {part(whole), part(func(u *controlv1.Update) { u.Chunk = 2 })},
		"chunk twice":      {part(whole), part(whole)},
		"another version":  {part(whole), part(func(u *controlv1.Update) { u.Chunk = 1; u.Version = at(6).Proto() })},
		"another base":     {part(whole), part(func(u *controlv1.Update) { u.Chunk = 1; u.From = at(4).Proto() })},
		"short digest":     {part(func(u *controlv1.Update) { u.Last, u.Digest = true, []byte{1} })},
		"from nothing":     {part(func(u *controlv1.Update) { u.From = &controlv1.Version{} })},
		"no signing key":   {{Kind: &controlv1.FollowResponse_Welcome{Welcome: &controlv1.Welcome{}}}},
		"another's chunks": {part(whole), message(w.full(t, at(9), a))},
	} {
		t.Run(name, func(t *testing.T) {
			n := play(t, nil,
				func(k *talk) error {
					_ = k.send(append([]*controlv1.FollowResponse{w.welcome()}, ms...)...)
					return k.stay() // it is the node that ends the stream
				},
				func(k *talk) error { return k.step(5, "", true, w.welcome(), message(w.full(t, at(5), a))) })
			equal(t, "applied", n.versions(), []int64{5})
		})
	}
	t.Run("too large", func(t *testing.T) {
		play(t, func(c *Config) { c.MaxUpdate = 1 << 10 },
			func(k *talk) error {
				_ = k.send(w.welcome(), message(w.full(t, at(5), application("a", string(make([]byte, 2<<10))))))
				return k.stay()
			},
			func(*talk) error { return nil })
	})
}

func TestRejectedThenSuperseded(t *testing.T) {
	w := newAuthor(t)
	good, bad, fixed := application("a", "1"), application("a", "bad"), application("a", "2")
	revoked := revocation.Entry{
		Key:    revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_JTI, "", "t1"),
		Before: revocation.Always, Expires: time.Now().Add(time.Hour).Unix(),
	}
	var n *node
	ready := make(chan struct{})
	s := &script{plays: []func(*talk) error{nil}}
	done := make(chan struct{})
	s.plays[0] = func(k *talk) error {
		<-ready
		if err := k.step(5, "", true, w.welcome(), message(w.full(t, at(5), good))); err != nil {
			t.Error(err)
		}
		u := w.seal(t, &controlv1.Update{Version: at(6).Proto(), From: at(5).Proto(), Upserts: []*configv1.Resource{bad},
			Revocations: []*controlv1.Revocation{revoked.Proto()}}, []*configv1.Resource{bad})
		if err := k.step(5, "cannot compile", true, message(u)); err != nil {
			t.Error(err)
		}
		if _, denied := n.cfg.Revocations.Revoked(&revocation.Subject{JTI: "t1"}); !denied {
			t.Error("a revocation did not get in because the config with it was rejected")
		}
		if n.denied() != 6 {
			t.Errorf("revocations held up to %d", n.denied())
		}
		u = w.seal(t, &controlv1.Update{Version: at(7).Proto(), From: at(5).Proto(), Upserts: []*configv1.Resource{fixed}}, []*configv1.Resource{fixed})
		if err := k.step(7, "", true, message(u)); err != nil {
			t.Error(err)
		}
		close(done)
		return k.stay()
	}
	n = newNode(t, nil, s)
	n.refuse = func(next Next) error {
		if next.Version.Revision == 6 {
			return config.Problems{{Key: config.KeyOf(bad), Path: "spec", Reason: "cannot compile"}}
		}
		return nil
	}
	close(ready)
	n.run(t, done)
	equal(t, "applied", n.versions(), []int64{5, 7})
}

func TestPanicInACompilerIsARejection(t *testing.T) {
	w := newAuthor(t)
	n := play(t, func(c *Config) {
		c.Applier.(*recorder).refuse = func(next Next) error {
			if next.Version.Revision == 5 {
				panic("regexp too clever")
			}
			return nil
		}
	}, func(k *talk) error {
		if err := k.step(0, "regexp too clever", false, w.welcome(), message(w.full(t, at(5), application("a", "1")))); err != nil {
			return err
		}
		return k.step(6, "", true, message(w.full(t, at(6), application("a", "1"))))
	})
	equal(t, "applied", n.versions(), []int64{6})
}

func TestDenyLaneAlone(t *testing.T) {
	w := newAuthor(t)
	entry := func(jti string) *controlv1.Revocation {
		k := revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_JTI, "", jti)
		return &controlv1.Revocation{Kind: controlv1.RevocationKind_REVOCATION_KIND_JTI, Key: k[:], ExpiresAt: timestamppb.New(time.Now().Add(time.Hour))}
	}
	lane := func(from, to int64, jti string) *controlv1.FollowResponse {
		return message(&controlv1.Update{Version: at(to).Proto(), From: at(from).Proto(), Last: true, Revocations: []*controlv1.Revocation{entry(jti)}})
	}
	beat := func(head, revocations int64) *controlv1.FollowResponse {
		return &controlv1.FollowResponse{Kind: &controlv1.FollowResponse_Heartbeat{Heartbeat: &controlv1.Heartbeat{
			Head: at(head).Proto(), Revocations: revocations, Progress: head, Digest: make([]byte, 32),
		}}}
	}
	a := application("a", "1")
	n := play(t, nil, func(k *talk) error {
		first := message(&controlv1.Update{Version: at(5).Proto(), Upserts: []*configv1.Resource{a}})
		last := w.full(t, at(5))
		last = w.seal(t, &controlv1.Update{Version: last.Version, Chunk: 1}, []*configv1.Resource{a})
		// Between the chunks of a full state; it proves nothing yet.
		if err := k.step(5, "", true, w.welcome(), first, lane(5, 6, "t6"), message(last)); err != nil {
			return err
		}
		// A hole before it: the entry counts, the claim does not.
		if err := k.send(lane(8, 9, "t9"), beat(9, 9)); err != nil {
			return err
		}
		if r := k.report(); r.GetRunning().GetRevision() != 5 || len(r.GetDigest()) != 32 {
			return fmt.Errorf("answer to a heartbeat with digest: %v", r)
		}
		return nil
	})
	for jti, want := range map[string]bool{"t6": true, "t9": true, "t7": false} {
		if _, got := n.cfg.Revocations.Revoked(&revocation.Subject{JTI: jti}); got != want {
			t.Errorf("%s revoked: %v", jti, got)
		}
	}
	if held := n.denied(); held != 5 {
		t.Errorf("holds all revocations up to %d, want 5", held)
	}
	if n.cfg.Freshness.Ready() {
		t.Error("current although revocations are missing")
	}
}

func TestAsksAndKeyMissing(t *testing.T) {
	var n *node
	started := make(chan struct{})
	done := make(chan struct{})
	s := &script{plays: []func(*talk) error{func(k *talk) error {
		defer close(done)
		<-started
		n.KeyMissing("shop", "local")
		n.KeyMissing("shop", "local")
		for _, id := range []string{"known", "unknown"} {
			_ = k.send(&controlv1.FollowResponse{Kind: &controlv1.FollowResponse_Ask{Ask: &controlv1.Ask{Id: 7, RequestId: id}}})
		}
		missing, decisions := 0, []bool{}
		for missing == 0 || len(decisions) < 2 {
			m, err := k.stream.Recv()
			if err != nil {
				return err
			}
			if m.GetKeyMissing().GetIssuer() == "local" {
				missing++
			}
			if d := m.GetDecision(); d != nil {
				decisions = append(decisions, d.GetFound() && d.GetRecord().GetRequestId() == "known" && d.GetAsk() == 7)
			}
		}
		if missing != 1 || !decisions[0] || decisions[1] {
			t.Errorf("%d key-missing, decisions %v", missing, decisions)
		}
		return nil
	}, idle}}
	n = newNode(t, func(c *Config) {
		c.Decisions = func(id string) (*controlv1.DecisionRecord, bool) {
			return &controlv1.DecisionRecord{RequestId: id}, id == "known"
		}
	}, s)
	close(started)
	n.run(t, done)
}

func TestSilenceFailsOver(t *testing.T) {
	w := newAuthor(t)
	done := make(chan struct{})
	silent := &script{plays: []func(*talk) error{idle}}
	live := &script{plays: []func(*talk) error{func(k *talk) error {
		defer close(done)
		return k.step(5, "", true, w.welcome(), message(w.full(t, at(5), application("a", "1"))))
	}, idle}}
	n := newNode(t, func(c *Config) { c.Silence = 500 * time.Millisecond }, silent, live)
	n.run(t, done)
	equal(t, "applied", n.versions(), []int64{5})
}

func TestControlPlaneThatStaysBehindIsLeft(t *testing.T) {
	w := newAuthor(t)
	behind := func(k *talk) error {
		for {
			if err := k.send(&controlv1.FollowResponse{Kind: &controlv1.FollowResponse_Heartbeat{Heartbeat: &controlv1.Heartbeat{Head: at(4).Proto(), Progress: 4}}}); err != nil {
				return nil
			}
			select {
			case <-time.After(10 * time.Millisecond):
			case <-k.stream.Context().Done():
				return nil
			}
		}
	}
	play(t, func(c *Config) { c.Silence = 300 * time.Millisecond },
		func(k *talk) error {
			if err := k.step(5, "", true, w.welcome(), message(w.full(t, at(5), application("a", "1")))); err != nil {
				t.Error(err)
			}
			return errDone
		}, behind, func(*talk) error { return nil })
}

func TestBackoffHasFullJitter(t *testing.T) {
	least, most := 50*time.Millisecond, 5*time.Second
	for failures := range 70 {
		bound := most
		if failures < 7 {
			bound = least << failures
		}
		var low, high bool
		for range 200 {
			d := backoff(least, most, failures)
			if d < 0 || d > bound {
				t.Fatalf("after %d failures: %v, bound %v", failures, d, bound)
			}
			low, high = low || d < bound/2, high || d > bound/2
		}
		if !low || !high {
			t.Errorf("after %d failures the pause does not spread over 0..%v", failures, bound)
		}
	}
}

func TestConfigIsChecked(t *testing.T) {
	if _, err := New(context.Background(), Config{}); err == nil {
		t.Error("an empty Config passes")
	}
	n := newNode(t, nil)
	n.cfg.SigningKeys = [][]byte{{1}}
	if _, err := New(context.Background(), n.cfg); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("a broken signing key: %v", err)
	}
}

// A control plane hears how the node is when that is news, and one that is
// followed later hears it too.
func TestConditionIsTold(t *testing.T) {
	ill := func(detail string) *controlv1.Condition {
		return &controlv1.Condition{EndpointsOut: 1, Endpoints: []*controlv1.EndpointCondition{{Upstream: "orders", Detail: detail}}}
	}
	var n *node
	started := make(chan struct{})
	done := make(chan struct{})
	hears := func(k *talk) (*controlv1.Condition, error) {
		for {
			m, err := k.stream.Recv()
			if err != nil || m.GetCondition() != nil {
				return m.GetCondition(), err
			}
		}
	}
	s := &script{plays: []func(*talk) error{
		func(k *talk) error {
			<-started
			n.Condition(&controlv1.Condition{})
			n.Condition(ill("a"))
			n.Condition(ill("b"))
			n.Condition(ill("b"))
			var last string
			for last != "b" {
				c, err := hears(k)
				if err != nil {
					return err
				}
				last = c.GetEndpoints()[0].GetDetail()
			}
			return errors.New("over")
		},
		func(k *talk) error {
			defer close(done)
			if c, err := hears(k); err != nil || c.GetEndpointsOut() != 1 {
				t.Errorf("the next control plane hears %v, %v", c, err)
			}
			n.Condition(&controlv1.Condition{})
			if c, err := hears(k); err != nil || c.GetEndpointsOut() != 0 {
				t.Errorf("that it is well again: %v, %v", c, err)
			}
			return nil
		},
		idle,
	}}
	n = newNode(t, nil, s)
	close(started)
	n.run(t, done)
}
