package follow

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/revocation"
	"portcullis.dev/portcullis/pkg/secret"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func at(revision int64) config.Version { return config.Version{Epoch: 1, Revision: revision} }

func application(name, description string) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "default", Name: name},
		Spec:     &configv1.Resource_Application{Application: &configv1.Application{Description: description}},
	}
}

// author signs versions as a control plane does.
type author struct {
	key    identity.SigningKey
	public []byte
}

func newAuthor(t testing.TB) *author {
	t.Helper()
	key, err := identity.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	return &author{key, public}
}

// seal puts on an update the digest of what it leads to, and the signature.
func (a *author) seal(t testing.TB, u *controlv1.Update, all []*configv1.Resource, keys ...credential.Credential) *controlv1.Update {
	t.Helper()
	var digest [32]byte
	for _, r := range all {
		digest = xor(digest, config.Digest(r))
	}
	for _, k := range keys {
		digest = xor(digest, k.Digest())
	}
	u.Last, u.Digest = true, digest[:]
	u.Signature = a.key.SignVersion(u.GetVersion().GetEpoch(), u.GetVersion().GetRevision(), u.Digest)
	return u
}

func (a *author) full(t testing.TB, v config.Version, all ...*configv1.Resource) *controlv1.Update {
	return a.seal(t, &controlv1.Update{Version: v.Proto(), Upserts: all}, all)
}

func (a *author) welcome() *controlv1.FollowResponse {
	return &controlv1.FollowResponse{Kind: &controlv1.FollowResponse_Welcome{Welcome: &controlv1.Welcome{SigningKeys: [][]byte{a.public}}}}
}

func message(u *controlv1.Update) *controlv1.FollowResponse {
	return &controlv1.FollowResponse{Kind: &controlv1.FollowResponse_Update{Update: u}}
}

// recorder is an Applier that keeps what it was given.
type recorder struct {
	mu      sync.Mutex
	applied []Next
	refuse  func(Next) error
}

func (r *recorder) Apply(_ context.Context, n Next) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse != nil {
		if err := r.refuse(n); err != nil {
			return err
		}
	}
	r.applied = append(r.applied, n)
	return nil
}

func (r *recorder) versions() []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []int64
	for _, n := range r.applied {
		out = append(out, n.Version.Revision)
	}
	return out
}

// script is a control plane that does what a test says: one func for each
// stream in turn, the last one for all that follow.
type script struct {
	controlv1.UnimplementedControlServiceServer
	mu    sync.Mutex
	plays []func(*talk) error
}

// talk is one stream as a script sees it.
type talk struct {
	stream grpc.BidiStreamingServer[controlv1.FollowRequest, controlv1.FollowResponse]
	hello  *controlv1.Hello
}

var errDone = errors.New("script is done")

func (s *script) Follow(stream grpc.BidiStreamingServer[controlv1.FollowRequest, controlv1.FollowResponse]) error {
	s.mu.Lock()
	play := s.plays[0]
	if len(s.plays) > 1 {
		s.plays = s.plays[1:]
	}
	s.mu.Unlock()
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	return play(&talk{stream: stream, hello: m.GetHello()})
}

func (k *talk) send(ms ...*controlv1.FollowResponse) error {
	for _, m := range ms {
		if err := k.stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// report returns the next report, nil when the stream ends.
func (k *talk) report() *controlv1.Report {
	for {
		m, err := k.stream.Recv()
		if err != nil {
			return nil
		}
		if m.GetReport() != nil {
			return m.GetReport()
		}
	}
}

// stay waits until the node goes.
func (k *talk) stay() error {
	<-k.stream.Context().Done()
	return nil
}

// idle is a control plane that is up and says nothing of use.
func idle(k *talk) error { return k.stay() }

// listen serves a control plane and returns how to dial it.
func listen(t testing.TB, s controlv1.ControlServiceServer) func() (*grpc.ClientConn, error) {
	t.Helper()
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	controlv1.RegisterControlServiceServer(server, s)
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(lis) })
	t.Cleanup(func() { server.Stop(); running.Wait() })
	return func() (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///plane",
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }),
			grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
}

// node is a follower under test.
type node struct {
	*Follower
	*recorder
	cfg Config
}

func newNode(t testing.TB, change func(*Config), planes ...controlv1.ControlServiceServer) *node {
	t.Helper()
	dials := map[string]func() (*grpc.ClientConn, error){}
	n := &node{recorder: &recorder{}}
	n.cfg = Config{
		Applier: n.recorder, Credentials: credential.NewSet(), Revocations: revocation.NewSet(), Freshness: revocation.NewFreshness(),
		Dial:       func(address string) (*grpc.ClientConn, error) { return dials[address]() },
		MinBackoff: time.Millisecond, MaxBackoff: 10 * time.Millisecond, Silence: 20 * time.Second, SaveEvery: time.Millisecond,
	}
	for i, p := range planes {
		address := string(rune('a' + i))
		dials[address] = listen(t, p)
		n.cfg.Addresses = append(n.cfg.Addresses, address)
	}
	if n.cfg.Addresses == nil {
		n.cfg.Addresses = []string{"nowhere"}
	}
	if change != nil {
		change(&n.cfg)
	}
	f, err := New(t.Context(), n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.Follower = f
	return n
}

// run runs the follower until done is closed, or the test fails.
func (n *node) run(t testing.TB, done <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = n.Follower.Run(ctx) })
	defer running.Wait()
	defer cancel()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatal("the script did not end")
	}
}

// play runs a follower against one control plane that does the plays.
func play(t *testing.T, change func(*Config), plays ...func(*talk) error) *node {
	t.Helper()
	done := make(chan struct{})
	last := plays[len(plays)-1]
	plays[len(plays)-1] = func(k *talk) error {
		if err := last(k); err != nil {
			t.Errorf("script: %v", err)
		}
		close(done)
		return k.stay()
	}
	n := newNode(t, change, &script{plays: plays})
	n.run(t, done)
	return n
}

func newSealer(t testing.TB) Sealer {
	t.Helper()
	s, err := secret.New(secret.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openStore(t testing.TB, dir string, sealer Sealer) *Store {
	t.Helper()
	s, err := OpenStore(dir, sealer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func equal(t testing.TB, what string, got, want []int64) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// admit checks an update and has it made live, as takeIn does.
func (d *door) admit(t testing.TB, a *assembly) (admitted, error) {
	t.Helper()
	in, err := d.check(a)
	if err == nil {
		err = d.start(t.Context(), in)
	}
	return in, err
}

// denied returns the revision up to which the node holds every revocation.
func (n *node) denied() int64 {
	_, revision := n.cfg.Freshness.Held()
	return revision
}
