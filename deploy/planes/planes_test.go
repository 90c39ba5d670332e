// Package planes_test joins the two ends of the stream, which may not import
// each other: the control plane's hub and the data plane's follower, over real
// gRPC.
package planes_test

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/timestamppb"
	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/dataplane/follow"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func application(name, description string) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "default", Name: name},
		Spec:     &configv1.Resource_Application{Application: &configv1.Application{Description: description}},
	}
}

// chunkBytes is small, so that a few resources are several chunks.
const chunkBytes = 4 << 10

// truth is what the control planes share.
type truth struct {
	key identity.SigningKey

	mu          sync.Mutex
	version     config.Version
	checked     config.Checked
	credentials *credential.Set
	revocations []*controlv1.Revocation
	newest      int64
}

func newTruth(t testing.TB) *truth {
	t.Helper()
	key, err := identity.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	checked, err := config.Check(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &truth{key: key, version: config.Version{Epoch: 1, Revision: 1}, checked: checked, credentials: credential.NewSet()}
}

func (w *truth) head() stream.Head {
	digest := w.checked.Digest()
	for i, b := range w.credentials.Digest() {
		digest[i] ^= b
	}
	return stream.Head{Version: w.version, Digest: digest, Revocations: w.newest}
}

func (w *truth) state(context.Context) (stream.State, error) {
	w.mu.Lock()
	return stream.State{
		Head: w.head(), Resources: w.checked.All(), Credentials: w.credentials.Chunks,
		Revocations: func(yield func(*controlv1.Revocation) bool) {
			for _, r := range w.revocations {
				if !yield(r) {
					return
				}
			}
		},
		Release: w.mu.Unlock,
	}, nil
}

// commit makes a change.
func (w *truth) commit(t testing.TB, c stream.Change) stream.Change {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	c.Previous = w.version
	w.version.Revision++
	c.Version = w.version
	var err error
	if w.checked, _, err = w.checked.Apply(config.Delta{Upserts: c.Upserts, Deletes: c.Deletes}); err != nil {
		t.Fatal(err)
	}
	for _, k := range c.Credentials {
		w.credentials.Put(k)
	}
	for _, k := range c.CredentialDeletes {
		w.credentials.Delete(k)
	}
	for _, r := range c.Revocations {
		r.Revision = w.version.Revision
		w.newest = w.version.Revision
	}
	w.revocations = append(w.revocations, c.Revocations...)
	h := w.head()
	c.Digest, c.RevocationsRevision = h.Digest, h.Revocations
	return c
}

// replica is one control plane; it can be killed.
type replica struct {
	*stream.Hub
	lis  *bufconn.Listener
	dial func(context.Context) (net.Conn, error)
	kill func()
}

func newReplica(t testing.TB, w *truth, name string, full func(context.Context) (stream.State, error)) *replica {
	t.Helper()
	r := &replica{lis: bufconn.Listen(1 << 16)}
	r.dial = r.lis.DialContext
	r.Hub = stream.NewHub(stream.Config{
		Replica: name, Full: full, ChunkBytes: chunkBytes, Heartbeat: 20 * time.Millisecond, DigestEvery: 50 * time.Millisecond,
		Node: func(context.Context) (string, error) { return "n1", nil },
		Sign: func(v config.Version, d stream.Digest) []byte { return w.key.SignVersion(v.Epoch, v.Revision, d[:]) },
	})
	public, err := w.key.Public()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetWelcome(&controlv1.Welcome{SigningKeys: [][]byte{public}}); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	head := w.head()
	w.mu.Unlock()
	if err := r.Reset(head); err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	controlv1.RegisterControlServiceServer(server, r.Hub)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(r.lis) })
	running.Go(func() { _ = r.Run(ctx) })
	running.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			r.Progress(0, time.Now()) // the store is reached all the time
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	r.kill = sync.OnceFunc(func() { server.Stop(); cancel(); running.Wait() })
	t.Cleanup(r.kill)
	return r
}

func (r *replica) publish(t testing.TB, c stream.Change) {
	t.Helper()
	if err := r.Publish(c); err != nil {
		t.Fatal(err)
	}
}

// await waits until the replica's one node runs v.
func (r *replica) await(t testing.TB, v config.Version) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for {
		changed := r.Changed()
		if programmed, total, _ := r.Convergence(v); programmed == 1 && total == 1 {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("the node does not run %v: %v", v, r.Nodes())
		}
	}
}

// gateway is the Applier: it keeps what runs, and that it never goes back.
type gateway struct {
	mu      sync.Mutex
	now     follow.Next
	refuse  string
	back    []config.Version
	applied int
}

func (g *gateway) Apply(_ context.Context, n follow.Next) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r, ok := n.Checked.Get(config.Key{Kind: config.KindApplication, Workspace: "default", Name: "bad"}); ok && g.refuse != "" {
		return &config.Problem{Key: config.KeyOf(r), Reason: g.refuse}
	}
	if n.Version.Compare(g.now.Version) < 0 {
		g.back = append(g.back, n.Version)
	}
	g.now = n
	g.applied++
	return nil
}

type node struct {
	*follow.Follower
	gateway     *gateway
	credentials *credential.Set
	revocations *revocation.Set
	fresh       *revocation.Freshness
}

func newNode(t testing.TB, replicas ...*replica) *node {
	t.Helper()
	n := &node{gateway: &gateway{}, credentials: credential.NewSet(), revocations: revocation.NewSet(), fresh: revocation.NewFreshness()}
	addresses := make([]string, len(replicas))
	for i := range replicas {
		addresses[i] = fmt.Sprint(i)
	}
	f, err := follow.New(t.Context(), follow.Config{
		Addresses: addresses,
		Dial: func(address string) (*grpc.ClientConn, error) {
			var i int
			fmt.Sscan(address, &i)
			return grpc.NewClient("passthrough:///"+address,
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return replicas[i].dial(ctx) }),
				grpc.WithTransportCredentials(insecure.NewCredentials()))
		},
		Applier: n.gateway, Credentials: n.credentials, Revocations: n.revocations, Freshness: n.fresh,
		MinBackoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond, Silence: 10 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	n.Follower = f
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = f.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if len(n.gateway.back) > 0 {
			t.Errorf("the node was moved back to %v", n.gateway.back)
		}
	})
	return n
}

func (n *node) digest() [32]byte {
	n.gateway.mu.Lock()
	defer n.gateway.mu.Unlock()
	d := n.gateway.now.Checked.Digest()
	for i, b := range n.credentials.Digest() {
		d[i] ^= b
	}
	return d
}

func revoked(jti string) *controlv1.Revocation {
	k := revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_JTI, "", jti)
	return &controlv1.Revocation{Kind: controlv1.RevocationKind_REVOCATION_KIND_JTI, Key: k[:], ExpiresAt: timestamppb.New(time.Now().Add(time.Hour))}
}

func TestEverythingTravels(t *testing.T) {
	w := newTruth(t)
	w.commit(t, stream.Change{Upserts: []*configv1.Resource{application("a", "1"), application("b", "1")}, Revocations: []*controlv1.Revocation{revoked("t0")}})
	r := newReplica(t, w, "cp-1", w.state)
	n := newNode(t, r)
	r.await(t, w.version)
	key := credential.Credential{SHA256: [32]byte{1}, ID: revocation.CredentialKey([32]byte{1}), Workspace: "default", Application: "a"}
	for _, c := range []stream.Change{
		{Upserts: []*configv1.Resource{application("a", "2")}},
		{Deletes: []config.Key{config.KeyOf(application("b", ""))}},
		{Credentials: []credential.Credential{key}},
		{Revocations: []*controlv1.Revocation{revoked("t1")}},
	} {
		r.publish(t, w.commit(t, c))
	}
	r.await(t, w.version)
	if n.digest() != r.Head().Digest || n.credentials.Len() != 1 {
		t.Error("the node runs something else than was published")
	}
	for _, jti := range []string{"t0", "t1"} {
		if _, denied := n.revocations.Revoked(&revocation.Subject{JTI: jti}); !denied {
			t.Errorf("%s is not revoked", jti)
		}
	}
	if _, held := n.fresh.Held(); held != w.version.Revision {
		t.Errorf("holds revocations up to %d of %d", held, w.version.Revision)
	}
	// What goes wrong in memory is found and healed.
	n.credentials.Delete(key.SHA256)
	deadline := time.After(30 * time.Second)
	for n.credentials.Len() != 1 {
		select {
		case <-r.Changed():
		case <-deadline:
			t.Fatal("a credential that got lost did not come back")
		}
	}
	r.publish(t, w.commit(t, stream.Change{CredentialDeletes: [][32]byte{key.SHA256}}))
	r.await(t, w.version)
	if n.credentials.Len() != 0 {
		t.Error("a deleted credential is still there")
	}
}

func TestFailover(t *testing.T) {
	w := newTruth(t)
	a, b := newReplica(t, w, "cp-1", w.state), newReplica(t, w, "cp-2", w.state)
	n := newNode(t, a, b)
	for i := range 3 {
		c := w.commit(t, stream.Change{Upserts: []*configv1.Resource{application("a", fmt.Sprint(i))}})
		a.publish(t, c)
		b.publish(t, c)
	}
	for n.Status().Version != w.version {
		select {
		case <-a.Changed():
		case <-b.Changed():
		case <-time.After(20 * time.Second):
			t.Fatal("no replica has the node")
		}
	}
	dead, alive := a, b
	if n.Status().Address == "1" {
		dead, alive = b, a
	}
	dead.kill()
	alive.publish(t, w.commit(t, stream.Change{Upserts: []*configv1.Resource{application("a", "after")}}))
	alive.await(t, w.version)
	if n.digest() != alive.Head().Digest {
		t.Error("digest differs after the failover")
	}
}

// cutting is a connection that breaks after some bytes.
type cutting struct {
	net.Conn
	left *atomic.Int64
}

func (c cutting) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.left.Add(-int64(n)) < 0 {
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

func TestKilledMidPush(t *testing.T) {
	w := newTruth(t)
	var many []*configv1.Resource
	for i := range 500 {
		many = append(many, application(fmt.Sprint("a", i), "one of many"))
	}
	w.commit(t, stream.Change{Upserts: many})
	r := newReplica(t, w, "cp-1", w.state)
	// Each connection breaks somewhat later than the one before, in the end not
	// before the push is complete.
	var attempts, limit atomic.Int64
	limit.Store(1 << 10)
	r.dial = func(ctx context.Context) (net.Conn, error) {
		conn, err := r.lis.DialContext(ctx)
		if err != nil {
			return nil, err
		}
		attempts.Add(1)
		left := &atomic.Int64{}
		left.Store(limit.Add(4 << 10))
		return cutting{conn, left}, nil
	}
	n := newNode(t, r)
	r.await(t, w.version)
	n.gateway.mu.Lock()
	defer n.gateway.mu.Unlock()
	if attempts.Load() < 3 || n.gateway.applied != 1 || n.gateway.now.Checked.Len() != w.checked.Len() {
		t.Errorf("%d attempts, applied %d times, %d resources", attempts.Load(), n.gateway.applied, n.gateway.now.Checked.Len())
	}
}

func TestRejectedAndSuperseded(t *testing.T) {
	w := newTruth(t)
	r := newReplica(t, w, "cp-1", w.state)
	n := newNode(t, r)
	n.gateway.mu.Lock()
	n.gateway.refuse = "regexp too large"
	n.gateway.mu.Unlock()
	r.await(t, w.version)
	r.publish(t, w.commit(t, stream.Change{Upserts: []*configv1.Resource{application("bad", "")}}))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, _, behind := r.Await(ctx, w.version)
	if len(behind) != 1 || len(behind[0].GetProblems()) != 1 || behind[0].GetProblems()[0].GetReason() != "regexp too large" {
		t.Fatalf("behind: %v", behind)
	}
	// The deny lane does not wait for a good config.
	r.publish(t, w.commit(t, stream.Change{Revocations: []*controlv1.Revocation{revoked("t1")}}))
	r.Await(ctx, w.version)
	if _, denied := n.revocations.Revoked(&revocation.Subject{JTI: "t1"}); !denied {
		t.Error("not revoked while a config is rejected")
	}
	r.publish(t, w.commit(t, stream.Change{Deletes: []config.Key{config.KeyOf(application("bad", ""))}}))
	r.await(t, w.version)
}

func TestRestoredStore(t *testing.T) {
	w := newTruth(t)
	for i := range 5 {
		w.commit(t, stream.Change{Upserts: []*configv1.Resource{application("a", fmt.Sprint(i))}})
	}
	r := newReplica(t, w, "cp-1", w.state)
	n := newNode(t, r)
	r.await(t, w.version)
	w.mu.Lock()
	w.version = config.Version{Epoch: 2, Revision: 2}
	head := w.head()
	w.mu.Unlock()
	if err := r.Reset(head); err != nil {
		t.Fatal(err)
	}
	r.await(t, w.version)
	r.publish(t, w.commit(t, stream.Change{Upserts: []*configv1.Resource{application("a", "new")}}))
	r.await(t, w.version)
	if n.Status().Version != (config.Version{Epoch: 2, Revision: 3}) {
		t.Errorf("runs %v", n.Status().Version)
	}
}

func TestForeignSignatureIsRefused(t *testing.T) {
	w, stranger := newTruth(t), newTruth(t)
	r := newReplica(t, w, "cp-1", w.state)
	public, err := stranger.key.Public()
	if err != nil {
		t.Fatal(err)
	}
	// The control plane's keys are not those that sign.
	if err := r.SetWelcome(&controlv1.Welcome{SigningKeys: [][]byte{public}}); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, r)
	for {
		changed := r.Changed()
		if nodes := r.Nodes(); len(nodes) == 1 && nodes[0].GetRejected() != nil {
			break
		}
		<-changed
	}
	if v := n.Status().Version; !v.IsZero() {
		t.Errorf("runs %v, which a stranger signed", v)
	}
}

func TestManyResourcesInChunks(t *testing.T) { many(t, 10_000) }

// Benchmark100kResources is a node's first full state: encoded, sent, checked,
// applied, reported.
func Benchmark100kResources(b *testing.B) {
	for b.Loop() {
		many(b, 100_000)
	}
}

func many(t testing.TB, count int) {
	w := newTruth(t)
	all := make([]*configv1.Resource, count)
	for i := range all {
		all[i] = application(fmt.Sprintf("a%06d", i), "one of many")
	}
	w.commit(t, stream.Change{Upserts: all})
	r := newReplica(t, w, "cp-1", w.state)
	began := time.Now()
	n := newNode(t, r)
	r.await(t, w.version)
	if b, ok := t.(*testing.B); ok {
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/full")
	}
	if n.gateway.now.Checked.Len() != w.checked.Len() || n.digest() != r.Head().Digest {
		t.Errorf("%d of %d resources", n.gateway.now.Checked.Len(), w.checked.Len())
	}
}
