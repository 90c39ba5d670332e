package controlplane

import (
	"context"
	"iter"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func memoryStore(t *testing.T) *store.Memory {
	st := store.NewMemory()
	t.Cleanup(func() { _ = st.Close() })
	return st
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// replica is a control plane that serves.
type replica struct {
	*Plane
	control, rest string
	stop          func()
	client        adminv1.AdminServiceClient
	operator      string
}

// newReplica starts a control plane on the store. The first one on a store makes
// the first operator; operator is its credential otherwise.
func newReplica(t testing.TB, st store.Store, name, operator string) *replica {
	t.Helper()
	control, adminAt := listen(t), listen(t)
	plane, err := New(t.Context(), Config{Name: name, Store: st, Control: control, Admin: adminAt, Release: "test"})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{Plane: plane, control: control.Addr().String(), rest: adminAt.Addr().String(), operator: operator}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- plane.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("replica %s: %v", name, err)
		}
	})
	t.Cleanup(r.stop)
	if operator == "" {
		if r.operator, err = plane.FirstOperator(t.Context()); err != nil || r.operator == "" {
			t.Fatalf("first operator %q, %v", r.operator, err)
		}
	}
	tls, err := identity.ClientAdmin(plane.Authorities())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+r.rest, grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r.client = adminv1.NewAdminServiceClient(conn)
	return r
}

func (r *replica) as(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+r.operator)
}

func (r *replica) apply(t testing.TB, change *adminv1.Change) config.Version {
	t.Helper()
	resp, err := r.client.Apply(r.as(t.Context()), &adminv1.ApplyRequest{Change: change}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	return config.VersionOf(resp.Version)
}

func application(name, description string) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: "default", Name: name},
		Spec:     &configv1.Resource_Application{Application: &configv1.Application{Description: description}},
	}
}

func upsert(resources ...*configv1.Resource) *adminv1.Change {
	return &adminv1.Change{Upserts: resources}
}

func (r *replica) holds(name, description string) bool {
	checked, _ := r.mirror.Current()
	found, ok := checked.Get(config.Key{Kind: "Application", Workspace: "default", Name: name})
	return ok && found.GetApplication().Description == description
}

// join gets a node's identity over the wire.
func join(ctx context.Context, address, secret, name string) (*identity.Live, error) {
	token, err := identity.ParseJoinToken(secret)
	if err != nil {
		return nil, err
	}
	key, csr, err := identity.NewRequest(identity.Identity{Role: identity.Dataplane, Name: name})
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(identity.ClientJoin(token))))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := controlv1.NewJoinServiceClient(conn).Join(ctx, &controlv1.JoinRequest{Token: secret, Csr: csr})
	if err != nil {
		return nil, err
	}
	return identity.NewLive(identity.State{Key: key, Issued: identity.Issued{Certificates: resp.Certificates, Authorities: resp.Authorities}})
}

func dial(t testing.TB, address string, live *identity.Live) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(identity.ClientControl(live))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// node is the least a node can be: it reports every version as applied, answers
// for one request, and counts heartbeats.
type node struct {
	live  *identity.Live
	beats chan *controlv1.Heartbeat
}

func newNode(t testing.TB, r *replica, name string) *node {
	t.Helper()
	secret, err := r.JoinToken(t.Context(), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	live, err := join(t.Context(), r.control, secret, name)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{live: live, beats: make(chan *controlv1.Heartbeat, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := controlv1.NewControlServiceClient(dial(t, r.control, live)).Follow(ctx)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); n.follow(stream) }()
	t.Cleanup(func() { cancel(); <-done })
	return n
}

func (n *node) follow(stream controlv1.ControlService_FollowClient) {
	_ = stream.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Hello{Hello: &controlv1.Hello{Boot: 1}}})
	name := n.live.Identity().Name
	for {
		m, err := stream.Recv()
		if err != nil {
			return
		}
		if u := m.GetUpdate(); u.GetLast() && len(u.GetDigest()) > 0 {
			_ = stream.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Report{Report: &controlv1.Report{Version: u.Version, Running: u.Version, Digest: u.Digest}}})
		}
		if ask := m.GetAsk(); ask != nil {
			_ = stream.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Decision{Decision: &controlv1.Decision{
				Ask: ask.Id, Found: ask.RequestId == "of-"+name, Record: &controlv1.DecisionRecord{RequestId: ask.RequestId, Node: name},
			}}})
		}
		if beat := m.GetHeartbeat(); beat != nil {
			select {
			case n.beats <- beat:
			default:
			}
		}
	}
}

// faulty is a store that can be cut off in several ways.
type faulty struct {
	store.Store
	mu sync.Mutex
	// mute: commits are seen, proofs are not, as on a member without quorum.
	mute bool
	// fail: reads fail with it; watches end with it at their next event.
	fail  error
	loads int
}

func (f *faulty) set(edit func(*faulty)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit(f)
}

func (f *faulty) Load(ctx context.Context) (*store.State, error) {
	f.mu.Lock()
	f.loads++
	fail := f.fail
	f.mu.Unlock()
	if fail != nil {
		return nil, fail
	}
	return f.Store.Load(ctx)
}

func (f *faulty) Watch(ctx context.Context, after config.Version) iter.Seq2[store.Event, error] {
	return func(yield func(store.Event, error) bool) {
		for event, err := range f.Store.Watch(ctx, after) {
			f.mu.Lock()
			mute, fail := f.mute, f.fail
			f.mu.Unlock()
			if fail != nil {
				yield(store.Event{}, fail)
				return
			}
			if mute && event.Progress > 0 {
				continue
			}
			if !yield(event, err) {
				return
			}
		}
	}
}

// eventually waits until ok holds, for conditions that nothing announces.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within 20 s: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
