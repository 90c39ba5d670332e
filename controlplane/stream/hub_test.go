package stream

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// source is a control plane's state, simple enough to be right at a glance.
type source struct {
	mu        sync.Mutex
	head      Head
	resources map[config.Key]*configv1.Resource
	fulls     int
}

func (s *source) full(context.Context) (State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fulls++
	all := make([]*configv1.Resource, 0, len(s.resources))
	for _, r := range s.resources {
		all = append(all, r)
	}
	return State{Head: s.head, Resources: slices.Values(all)}, nil
}

func at(revision int64) config.Version { return config.Version{Epoch: 1, Revision: revision} }

// change makes the change that puts resources; the source then has them.
func (s *source) change(revision int64, rs ...*configv1.Resource) Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := Change{Version: config.Version{Epoch: max(1, s.head.Version.Epoch), Revision: revision}, Previous: s.head.Version, Upserts: rs}
	if s.resources == nil {
		s.resources = map[config.Key]*configv1.Resource{}
	}
	for _, r := range rs {
		s.resources[config.KeyOf(r)] = r
	}
	for _, r := range s.resources {
		d := config.Digest(r)
		for i := range d {
			c.Digest[i] ^= d[i]
		}
	}
	c.RevocationsRevision = s.head.Revocations
	s.head = Head{c.Version, c.Digest, c.RevocationsRevision}
	return c
}

func (s *source) revoke(revision int64) Change {
	c := s.change(revision)
	c.Revocations = []*controlv1.Revocation{{Kind: controlv1.RevocationKind_REVOCATION_KIND_JTI, Key: make([]byte, 16), Revision: revision}}
	c.RevocationsRevision = revision
	s.mu.Lock()
	s.head.Revocations = revision
	s.mu.Unlock()
	return c
}

func application(name, description string) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "default", Name: name},
		Spec:     &configv1.Resource_Application{Application: &configv1.Application{Description: description}},
	}
}

// plane is a running hub with a server.
type plane struct {
	*Hub
	source source
	lis    *bufconn.Listener
	server *grpc.Server
}

// proving stands for a store that is reached: it proves all the time that the
// head is the newest.
func proving(ctx context.Context, h *Hub) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		h.Progress(0, time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func newPlane(t testing.TB, change func(*Config)) *plane {
	t.Helper()
	p := &plane{lis: bufconn.Listen(1 << 16)}
	key, err := identity.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Replica: "cp-1",
		Node: func(ctx context.Context) (string, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			if name := md.Get("node"); len(name) == 1 {
				return name[0], nil
			}
			return "", errors.New("no node certificate")
		},
		Peer: func(context.Context) error { return nil },
		Full: p.source.full,
		Sign: func(v config.Version, d Digest) []byte { return key.SignVersion(v.Epoch, v.Revision, d[:]) },
	}
	if change != nil {
		change(&cfg)
	}
	p.Hub = NewHub(cfg)
	if err := p.SetWelcome(&controlv1.Welcome{SigningKeys: [][]byte{public}}); err != nil {
		t.Fatal(err)
	}
	p.server = grpc.NewServer()
	controlv1.RegisterControlServiceServer(p.server, p.Hub)
	controlv1.RegisterPeerServiceServer(p.server, p.Hub)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = p.server.Serve(p.lis) })
	running.Go(func() { _ = p.Run(ctx) })
	running.Go(func() { proving(ctx, p.Hub) })
	t.Cleanup(func() {
		cancel()
		p.server.Stop()
		running.Wait()
	})
	return p
}

func (p *plane) dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///plane",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.lis.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (p *plane) publish(t testing.TB, c Change) {
	t.Helper()
	if err := p.Publish(c); err != nil {
		t.Fatal(err)
	}
}

// start gives the hub its first version.
func (p *plane) start(t testing.TB, revision int64, rs ...*configv1.Resource) {
	t.Helper()
	c := p.source.change(revision, rs...)
	if err := p.Reset(c.head()); err != nil {
		t.Fatal(err)
	}
}

// patience is how long a test waits for what is to come. A machine that others use
// too has taken half a minute over a state of 100,000 resources.
const patience = 2 * time.Minute

// client is a node as a test drives it by hand.
type client struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[controlv1.FollowRequest, controlv1.FollowResponse]
	cancel context.CancelFunc
}

func (p *plane) node(t testing.TB, name string, hello *controlv1.Hello) *client {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "node", name), patience)
	t.Cleanup(cancel)
	stream, err := controlv1.NewControlServiceClient(p.dial(t)).Follow(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t, stream, cancel}
	if hello != nil {
		c.send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Hello{Hello: hello}})
	}
	return c
}

func (c *client) send(m *controlv1.FollowRequest) {
	c.t.Helper()
	if err := c.stream.Send(m); err != nil {
		c.t.Fatal(err)
	}
}

// await returns the next message that want accepts; it passes over others.
func (c *client) await(want func(*controlv1.FollowResponse) bool) *controlv1.FollowResponse {
	c.t.Helper()
	for {
		m, err := c.stream.Recv()
		if err != nil {
			c.t.Fatalf("stream ended: %v", err)
		}
		if want(m) {
			return m
		}
	}
}

// ended returns the status that the stream ends with.
func (c *client) ended() codes.Code {
	for {
		if _, err := c.stream.Recv(); err != nil {
			return status.Code(err)
		}
	}
}

func isUpdate(m *controlv1.FollowResponse) bool    { return m.GetUpdate() != nil }
func isHeartbeat(m *controlv1.FollowResponse) bool { return m.GetHeartbeat() != nil }

// whole returns the next update, its chunks joined.
func (c *client) whole() *controlv1.Update {
	c.t.Helper()
	var u *controlv1.Update
	for {
		m := c.await(isUpdate).GetUpdate()
		if u == nil {
			u = m
		} else {
			proto.Merge(u, m)
		}
		if m.GetLast() {
			return u
		}
	}
}

func (c *client) applied(u *controlv1.Update) {
	c.t.Helper()
	c.report(&controlv1.Report{Version: u.GetVersion(), Running: u.GetVersion(), Digest: u.GetDigest()})
}

func (c *client) report(r *controlv1.Report) {
	c.t.Helper()
	c.send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Report{Report: r}})
}

func (p *plane) await(t testing.TB, v config.Version, nodes int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		changed := p.Changed()
		programmed, total, behind := p.Convergence(v)
		if programmed == nodes && total == nodes {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("%d of %d nodes run %v, wanted %d; behind: %v", programmed, total, v, nodes, behind)
		}
	}
}

func TestFullThenDeltas(t *testing.T) {
	p := newPlane(t, nil)
	p.start(t, 5, application("a", "1"))
	c := p.node(t, "n1", &controlv1.Hello{Boot: 7, Release: "1.0", Address: "here"})
	if w := c.await(func(*controlv1.FollowResponse) bool { return true }); len(w.GetWelcome().GetSigningKeys()) != 1 {
		t.Fatalf("first message: %v", w)
	}
	u := c.whole()
	if u.GetFrom() != nil || len(u.GetUpserts()) != 1 || u.GetVersion().GetRevision() != 5 {
		t.Fatalf("full: %v", u)
	}
	c.applied(u)
	p.await(t, at(5), 1)
	// Two changes to one resource while the node is busy come as one delta.
	p.publish(t, p.source.change(6, application("b", "1")))
	u = c.whole()
	p.publish(t, p.source.change(7, application("b", "2")))
	p.publish(t, p.source.change(9, application("c", "1"), application("b", "3")))
	c.applied(u)
	u = c.whole()
	if u.GetFrom().GetRevision() != 6 || u.GetVersion().GetRevision() != 9 || len(u.GetUpserts()) != 2 ||
		u.GetUpserts()[0].GetApplication().GetDescription() != "3" {
		t.Fatalf("delta: %v", u)
	}
	d := p.Head().Digest
	if !slices.Equal(u.GetDigest(), d[:]) || len(u.GetSignature()) != ed25519.SignatureSize {
		t.Fatalf("delta carries digest %x and %d bytes of signature", u.GetDigest(), len(u.GetSignature()))
	}
	c.applied(u)
	p.await(t, at(9), 1)
	s := p.Nodes()[0]
	if s.GetName() != "n1" || s.GetBoot() != 7 || s.GetRelease() != "1.0" || s.GetAddress() != "here" || s.GetReplica() != "cp-1" {
		t.Errorf("status: %v", s)
	}
}

func TestDeletesAndResurrectionsMerge(t *testing.T) {
	var r ring
	r.maxCount, r.maxBytes = 100, 1<<20
	r.reset(Head{Version: at(1)})
	a, b := application("a", "1"), application("b", "1")
	r.add(&Change{Version: at(2), Upserts: []*configv1.Resource{a, b}})
	r.add(&Change{Version: at(3), Deletes: []config.Key{config.KeyOf(a), config.KeyOf(b)}})
	r.add(&Change{Version: at(4), Upserts: []*configv1.Resource{b}})
	m := r.since(at(1))
	if len(m.upserts) != 1 || m.upserts[0] != b || len(m.deletes) != 1 || m.deletes[0] != config.KeyOf(a) {
		t.Errorf("merged: %+v", m)
	}
}

func TestRingIsBounded(t *testing.T) {
	r := ring{maxCount: 3, maxBytes: 1 << 20}
	r.reset(Head{Version: at(1)})
	for i := int64(2); i <= 10; i++ {
		r.add(&Change{Version: at(i), Digest: digestOf(at(i))})
	}
	if len(r.changes) != 3 || r.base.Version != at(7) || r.covers(at(6)) || !r.covers(at(7)) {
		t.Errorf("after 10 changes: %d kept from %v", len(r.changes), r.base.Version)
	}
	for i := int64(7); i <= 10; i++ {
		if d, ok := r.digestAt(at(i)); !ok || d != digestOf(at(i)) {
			t.Errorf("digest at %d: %x", i, d)
		}
	}
	big := application("big", string(make([]byte, 1<<20)))
	r.add(&Change{Version: at(11), Upserts: []*configv1.Resource{big}})
	if len(r.changes) != 0 || r.bytes != 0 || r.base.Version != at(11) {
		t.Errorf("a change larger than the ring: %d kept, %d bytes, from %v", len(r.changes), r.bytes, r.base.Version)
	}
}

func TestChunked100k(t *testing.T) {
	if testing.Short() {
		t.Skip("100,000 resources take a second")
	}
	p := newPlane(t, nil)
	all := make(map[config.Key]*configv1.Resource, 100_000)
	for i := range 100_000 {
		r := application(fmt.Sprintf("app-%06d", i), "one of many")
		all[config.Key{Name: r.Metadata.Name}] = r
	}
	// Nobody here looks at the digest.
	p.source.head, p.source.resources = Head{Version: at(5)}, all
	if err := p.Reset(p.source.head); err != nil {
		t.Fatal(err)
	}
	c := p.node(t, "n1", &controlv1.Hello{})
	total, chunks := 0, 0
	for last := false; !last; {
		u := c.await(isUpdate).GetUpdate()
		if int(u.GetChunk()) != chunks {
			t.Fatalf("chunk %d where %d was due", u.GetChunk(), chunks)
		}
		if size := proto.Size(u); size > 1<<20+1<<10 {
			t.Fatalf("chunk of %d bytes", size)
		}
		chunks++
		total += len(u.GetUpserts())
		last = u.GetLast()
	}
	if total != len(all) || chunks < 3 {
		t.Errorf("%d resources in %d chunks", total, chunks)
	}
}

func TestSlowNodeDelaysNobody(t *testing.T) {
	p := newPlane(t, nil)
	p.start(t, 1, application("big", string(make([]byte, 1<<20))))
	// This one says Hello and never reads again.
	p.node(t, "slow", &controlv1.Hello{})
	c := p.node(t, "quick", &controlv1.Hello{})
	c.applied(c.whole())
	for i := int64(2); i < 50; i++ {
		p.publish(t, p.source.change(i, application("big", string(make([]byte, 1<<18)))))
		u := c.whole()
		if u.GetVersion().GetRevision() != i {
			t.Fatalf("got %v, wanted %d", u.GetVersion(), i)
		}
		c.applied(u)
	}
}

func TestFullStatesAreCapped(t *testing.T) {
	p := newPlane(t, func(c *Config) { c.MaxFull = 2; c.ChunkBytes = 1 << 10 })
	var big []*configv1.Resource
	for i := range 400 {
		big = append(big, application(fmt.Sprint("a", i), string(make([]byte, 1<<10))))
	}
	p.start(t, 1, big...)
	var clients []*client
	for i := range 5 {
		clients = append(clients, p.node(t, fmt.Sprint("n", i), &controlv1.Hello{}))
	}
	begun := func() {
		p.slots.mu.Lock()
		defer p.slots.mu.Unlock()
		if len(p.slots.given) > 2 {
			t.Errorf("%d full states at once", len(p.slots.given))
		}
	}
	// Those that wait still get heartbeats.
	done := make([]bool, len(clients))
	for i, c := range clients {
		c.await(func(m *controlv1.FollowResponse) bool {
			done[i] = done[i] || m.GetUpdate().GetLast()
			return isHeartbeat(m)
		})
	}
	begun()
	// Each that reads makes room for the next, in whatever order they came.
	var running sync.WaitGroup
	for i, c := range clients {
		running.Go(func() {
			for !done[i] {
				m, err := c.stream.Recv()
				if err != nil {
					t.Error(err)
					return
				}
				done[i] = m.GetUpdate().GetLast()
			}
		})
	}
	running.Wait()
	begun()
	p.source.mu.Lock()
	defer p.source.mu.Unlock()
	if p.source.fulls != 1 {
		t.Errorf("the full state was encoded %d times", p.source.fulls)
	}
}

func TestRejectedIsReportedAndSuperseded(t *testing.T) {
	p := newPlane(t, nil)
	p.start(t, 1, application("a", "1"))
	c := p.node(t, "n1", &controlv1.Hello{})
	first := c.whole()
	c.applied(first)
	p.publish(t, p.source.change(2, application("a", "bad")))
	u := c.whole()
	c.report(&controlv1.Report{Version: u.GetVersion(), Running: first.GetVersion(), Digest: first.GetDigest(),
		Problems: []*controlv1.Problem{{Resource: "Application default/a", Reason: "bad"}}})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	programmed, total, behind := p.Await(ctx, at(2))
	if ctx.Err() != nil || programmed != 0 || total != 1 || behind[0].GetProblems()[0].GetReason() != "bad" || behind[0].GetRejected().GetRevision() != 2 {
		t.Fatalf("after the rejection: %d of %d, %v", programmed, total, behind)
	}
	p.publish(t, p.source.change(3, application("a", "good")))
	u = c.whole()
	if u.GetFrom().GetRevision() != 1 {
		t.Fatalf("delta on %v, the node runs 1", u.GetFrom())
	}
	c.applied(u)
	p.await(t, at(3), 1)
	if s := p.Nodes()[0]; s.GetRejected() != nil || s.GetProblems() != nil {
		t.Errorf("still rejected: %v", s)
	}
}

func TestRevocationsGoAhead(t *testing.T) {
	p := newPlane(t, nil)
	p.start(t, 1, application("a", "1"))
	c := p.node(t, "n1", &controlv1.Hello{})
	u := c.whole()
	// The node is still busy with the full state.
	p.publish(t, p.source.revoke(2))
	r := c.await(isUpdate).GetUpdate()
	if !r.GetLast() || r.GetDigest() != nil || len(r.GetRevocations()) != 1 || r.GetVersion().GetRevision() != 2 || r.GetFrom().GetRevision() != 1 {
		t.Fatalf("deny lane: %v", r)
	}
	h := c.await(func(m *controlv1.FollowResponse) bool { return m.GetHeartbeat().GetRevocations() == 2 }).GetHeartbeat()
	if h.GetHead().GetRevision() != 2 || h.GetProgress() < 2 {
		t.Errorf("heartbeat: %v", h)
	}
	c.applied(u)
	if u = c.whole(); u.GetVersion().GetRevision() != 2 || len(u.GetRevocations()) != 1 {
		t.Errorf("delta: %v", u)
	}
}

func TestHeartbeatDigestHeals(t *testing.T) {
	p := newPlane(t, func(c *Config) { c.Heartbeat, c.DigestEvery = 5*time.Millisecond, 10*time.Millisecond })
	p.start(t, 1, application("a", "1"))
	c := p.node(t, "n1", &controlv1.Hello{})
	u := c.whole()
	c.applied(u)
	h := c.await(func(m *controlv1.FollowResponse) bool { return len(m.GetHeartbeat().GetDigest()) > 0 }).GetHeartbeat()
	if !slices.Equal(h.GetDigest(), u.GetDigest()) {
		t.Fatalf("heartbeat digest %x", h.GetDigest())
	}
	c.report(&controlv1.Report{Version: u.GetVersion(), Running: u.GetVersion(), Digest: make([]byte, 32)})
	if u = c.whole(); u.GetFrom() != nil {
		t.Errorf("a node with another digest got %v", u)
	}
}

func TestGapAndEpochs(t *testing.T) {
	p := newPlane(t, nil)
	p.start(t, 5, application("a", "1"))
	c := p.node(t, "n1", &controlv1.Hello{})
	c.applied(c.whole())
	// A change that does not follow the head: the node gets everything.
	gap := p.source.change(9, application("b", "1"))
	gap.Previous = at(7)
	p.publish(t, gap)
	u := c.whole()
	if u.GetFrom() != nil || len(u.GetUpserts()) != 2 {
		t.Fatalf("after a gap: %v", u)
	}
	c.applied(u)
	if err := p.Publish(Change{Version: at(9)}); !errors.Is(err, ErrStale) {
		t.Errorf("published again: %v", err)
	}
	if err := p.Reset(Head{Version: at(8)}); !errors.Is(err, ErrStale) {
		t.Errorf("reset to an older version: %v", err)
	}
	// A restore: the epoch is newer, the revision is not.
	p.source.mu.Lock()
	p.source.head.Version = config.Version{Epoch: 2, Revision: 3}
	head := p.source.head
	p.source.mu.Unlock()
	if err := p.Reset(head); err != nil {
		t.Fatal(err)
	}
	if u = c.whole(); u.GetFrom() != nil || u.GetVersion().GetEpoch() != 2 || u.GetVersion().GetRevision() != 3 {
		t.Errorf("after a restore: %v", u)
	}
	h := c.await(func(m *controlv1.FollowResponse) bool { return m.GetHeartbeat().GetHead().GetEpoch() == 2 }).GetHeartbeat()
	if h.GetProgress() != 3 {
		t.Errorf("progress %d in the new epoch", h.GetProgress())
	}
}

func TestRefusals(t *testing.T) {
	p := newPlane(t, func(c *Config) { c.Requires = []string{"deny-lane"}; c.HelloTimeout = 100 * time.Millisecond })
	p.start(t, 5)
	ok := func() *controlv1.Hello { return &controlv1.Hello{Features: []string{"deny-lane"}} }
	stranger, err := controlv1.NewControlServiceClient(p.dial(t)).Follow(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stranger.Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("no certificate: %v", err)
	}
	if code := p.node(t, "a", nil).ended(); code != codes.DeadlineExceeded {
		t.Errorf("no Hello: %v", code)
	}
	if code := p.node(t, "a", &controlv1.Hello{}).ended(); code != codes.FailedPrecondition {
		t.Errorf("no feature: %v", code)
	}
	if code := p.node(t, "a", &controlv1.Hello{Features: ok().Features, Version: &controlv1.Version{Revision: 5}}).ended(); code != codes.InvalidArgument {
		t.Errorf("half a version: %v", code)
	}
	c := p.node(t, "a", ok())
	c.send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Hello{Hello: ok()}})
	if code := c.ended(); code != codes.InvalidArgument {
		t.Errorf("a second Hello: %v", code)
	}
	first := p.node(t, "twin", ok())
	first.whole()
	p.node(t, "twin", ok()).whole()
	if code := first.ended(); code != codes.Aborted {
		t.Errorf("the older stream of a node: %v", code)
	}
	c = p.node(t, "liar", ok())
	u := c.whole()
	c.report(&controlv1.Report{Version: u.GetVersion(), Running: &controlv1.Version{Epoch: 1, Revision: 4}})
	if code := c.ended(); code != codes.InvalidArgument {
		t.Errorf("applied 5 and runs 4: %v", code)
	}
}

func TestStuckNodeIsEnded(t *testing.T) {
	p := newPlane(t, func(c *Config) {
		c.SendTimeout = 50 * time.Millisecond
		c.MaxFull = 1
		c.Grace = 100 * time.Millisecond
	})
	p.start(t, 1, application("big", string(make([]byte, 1<<20))))
	p.node(t, "stuck", &controlv1.Hello{})
	// The stuck node had the only slot.
	c := p.node(t, "next", &controlv1.Hello{})
	c.applied(c.whole())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if programmed, total, behind := p.Await(ctx, at(1)); programmed != 1 || total != 1 {
		t.Errorf("%d of %d, behind %v", programmed, total, behind)
	}
}

func TestWelcomeAgain(t *testing.T) {
	p := newPlane(t, nil)
	c := p.node(t, "n1", &controlv1.Hello{})
	c.await(func(m *controlv1.FollowResponse) bool { return m.GetWelcome() != nil })
	if err := p.SetWelcome(&controlv1.Welcome{BusUrls: []string{"nats://x"}}); err != nil {
		t.Fatal(err)
	}
	c.await(func(m *controlv1.FollowResponse) bool { return len(m.GetWelcome().GetBusUrls()) == 1 })
}

func TestGoneNodeIsListedThenForgotten(t *testing.T) {
	p := newPlane(t, func(c *Config) { c.Forget = 300 * time.Millisecond; c.Heartbeat = 10 * time.Millisecond })
	p.start(t, 1)
	c := p.node(t, "n1", &controlv1.Hello{})
	c.applied(c.whole())
	p.await(t, at(1), 1)
	c.cancel()
	p.await(t, at(1), 0)
	if n := p.Nodes(); len(n) != 1 || n[0].GetConnected() || n[0].GetVersion().GetRevision() != 1 {
		t.Errorf("just gone: %v", n)
	}
	for changed := p.Changed(); len(p.Nodes()) > 0; changed = p.Changed() {
		select {
		case <-changed:
		case <-time.After(patience):
			t.Fatal("never forgotten")
		}
	}
}
