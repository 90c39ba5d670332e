package stream

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// A hub beats while it can prove that its head is the newest, and falls silent a
// second after it no longer can.
func TestNoProofNoHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, err := identity.NewSigningKey()
		if err != nil {
			t.Fatal(err)
		}
		h := NewHub(Config{Sign: func(v config.Version, d Digest) []byte { return key.SignVersion(v.Epoch, v.Revision, d[:]) }})
		start := time.Now()
		if h.beat(start, false) {
			t.Error("a beat with nothing loaded")
		}
		if err := h.Reset(Head{Version: config.Version{Epoch: 1, Revision: 1}}); err != nil {
			t.Fatal(err)
		}
		if h.beat(start, false) {
			t.Error("a beat without any proof")
		}
		h.Progress(1, start)
		n := &node{name: "n", woken: make(chan struct{}, 1)}
		h.nodes[n.name] = n
		if !h.beat(start.Add(ProofAge), false) {
			t.Error("no beat with a fresh proof")
		}
		if age := sent(t, n.beat.Load()).GetAge().AsDuration(); age != ProofAge {
			t.Errorf("a proof of %v is said to be %v old", ProofAge, age)
		}
		if h.beat(start.Add(ProofAge+1), true) {
			t.Error("a beat with an old proof")
		}
		// An older proof that arrives late takes nothing back and adds nothing.
		h.Progress(1, start.Add(2*time.Second))
		h.Progress(1, start.Add(time.Second))
		if !h.beat(start.Add(3*time.Second), false) || h.beat(start.Add(3*time.Second+1), false) {
			t.Error("the newest proof does not count")
		}
		// What the store has committed is no proof that there is nothing newer.
		if err := h.Publish(Change{Version: config.Version{Epoch: 1, Revision: 2}, Previous: config.Version{Epoch: 1, Revision: 1}}); err != nil {
			t.Fatal(err)
		}
		if h.beat(start.Add(4*time.Second), false) {
			t.Error("a commit counted as a proof")
		}
		// Nor does a proof of one epoch hold in the next.
		h.Progress(2, start.Add(5*time.Second))
		if err := h.Reset(Head{Version: config.Version{Epoch: 2, Revision: 1}}); err != nil {
			t.Fatal(err)
		}
		if h.beat(start.Add(5*time.Second), false) {
			t.Error("a proof of another epoch counted")
		}
	})
}

// sent returns a heartbeat as a node reads it.
func sent(t *testing.T, b *beatFrame) *controlv1.Heartbeat {
	t.Helper()
	raw, err := proto.Marshal(b.message)
	m := &controlv1.FollowResponse{}
	if err == nil {
		err = proto.Unmarshal(raw, m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m.GetHeartbeat()
}
