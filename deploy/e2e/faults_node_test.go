package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/dataplane"
	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/identity"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// newerPlane is a control plane of a later release: it sends what this release
// does not know. It is the hub of ours without the checks before it.
type newerPlane struct {
	*stream.Hub
	signing identity.SigningKey

	mu        sync.Mutex
	resources map[config.Key]*configv1.Resource
	head      stream.Head
}

func newNewerPlane(t *testing.T, ca *identity.CA, listener net.Listener) *newerPlane {
	t.Helper()
	signing, err := identity.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	p := &newerPlane{signing: signing, resources: map[config.Key]*configv1.Resource{}}
	p.Hub = stream.NewHub(stream.Config{
		Replica: "newer", Full: p.full,
		Node: func(ctx context.Context) (string, error) {
			peer, err := identity.PeerFromContext(ctx)
			return peer.Name, err
		},
		Sign: func(v config.Version, d stream.Digest) []byte { return signing.SignVersion(v.Epoch, v.Revision, d[:]) },
	})
	public, err := signing.Public()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.SetWelcome(&controlv1.Welcome{SigningKeys: [][]byte{public}}); err != nil {
		t.Fatal(err)
	}
	live, err := identity.NewLive(member(t, ca, identity.Identity{Role: identity.Controlplane, Name: "newer"}))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerControl(live))))
	controlv1.RegisterControlServiceServer(server, p.Hub)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	running.Go(func() { _ = p.Run(ctx) })
	running.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				p.Progress(p.Head().Version.Revision, now)
			}
		}
	})
	t.Cleanup(func() { server.Stop(); cancel(); running.Wait() })
	return p
}

// member makes an identity of the cluster.
func member(t *testing.T, ca *identity.CA, id identity.Identity) identity.State {
	t.Helper()
	key, csr, err := identity.NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(csr, id, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return identity.State{Key: key, Issued: issued}
}

func (p *newerPlane) full(context.Context) (stream.State, error) {
	p.mu.Lock()
	return stream.State{
		Head: p.head, Credentials: credential.NewSet().Chunks, Revocations: func(func(*controlv1.Revocation) bool) {}, Release: p.mu.Unlock,
		Resources: func(yield func(*configv1.Resource) bool) {
			for _, r := range p.resources {
				if !yield(r) {
					return
				}
			}
		},
	}, nil
}

// publish sends resources as the next version, whatever they are.
func (p *newerPlane) publish(t *testing.T, resources ...*configv1.Resource) config.Version {
	t.Helper()
	p.mu.Lock()
	before := p.head.Version
	p.head.Version = config.Version{Epoch: 1, Revision: before.Revision + 1}
	for _, r := range resources {
		key := config.KeyOf(r)
		for _, one := range []*configv1.Resource{p.resources[key], r} {
			if one == nil {
				continue
			}
			for i, b := range config.Digest(one) {
				p.head.Digest[i] ^= b
			}
		}
		p.resources[key] = r
	}
	head := p.head
	p.mu.Unlock()
	if before.IsZero() {
		if err := p.Reset(head); err != nil {
			t.Fatal(err)
		}
		return head.Version
	}
	if err := p.Publish(stream.Change{Version: head.Version, Previous: before, Upserts: resources, Digest: head.Digest}); err != nil {
		t.Fatal(err)
	}
	return head.Version
}

// A version that a node cannot run, since it says what only a later release
// understands: the node keeps the one before, says so and why, and takes the next
// good one.
func TestRejectedRevision(t *testing.T) {
	ca, err := identity.NewCA(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plane := newNewerPlane(t, ca, control)
	up := newRecorder(t)
	resources := func(yaml string) []*configv1.Resource {
		checked, err := config.Check(documents(t, yaml).Upserts)
		if err != nil {
			t.Fatal(err)
		}
		var normal []*configv1.Resource
		for r := range checked.All() {
			normal = append(normal, r)
		}
		return normal
	}
	upstream := fmt.Sprintf("\napiVersion: portcullis.dev/v1\nkind: Upstream\nmetadata: {name: up}\nspec: {endpoints: [{url: %q}]}\n", up.URL)
	first := plane.publish(t, resources(upstream+"---"+public)...)

	dir := t.TempDir()
	state := member(t, ca, identity.Identity{Role: identity.Dataplane, Name: "node-1"})
	if err := state.Save(filepath.Join(dir, "identity")); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	node, err := dataplane.New(t.Context(), dataplane.Config{Name: "node-1", DataDir: dir, Control: []string{control.Addr().String()}, Listener: listener, Drain: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- node.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func() int {
		resp, err := client.Get("http://" + node.Address() + "/public")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	programmed := func(v config.Version) (int, []*controlv1.NodeStatus) {
		t.Helper()
		for {
			changed := plane.Changed()
			if nodes := plane.Nodes(); len(nodes) == 1 && (config.VersionOf(nodes[0].Version) == v || config.VersionOf(nodes[0].Rejected) == v) {
				n, _, behind := plane.Convergence(v)
				return n, behind
			}
			select {
			case <-changed:
			case <-within(t).Done():
				t.Fatalf("no word about %v: %v", v, plane.Nodes())
			}
		}
	}
	if n, _ := programmed(first); n != 1 || get() != 200 {
		t.Fatalf("the first version is not run: %v", plane.Nodes())
	}
	// A policy that only a later release knows, on a route that is served.
	later := proto.CloneOf(resources(upstream + "---" + public)[0])
	for _, r := range resources(upstream + "---" + public) {
		if r.GetRoute() != nil {
			later = proto.CloneOf(r)
		}
	}
	unknown := &configv1.Policy{}
	unknown.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 4000, protowire.BytesType), []byte("mfa")))
	later.GetRoute().Policies = append(later.GetRoute().Policies, unknown)
	bad := plane.publish(t, later)
	n, behind := programmed(bad)
	if n != 0 || len(behind) != 1 {
		t.Fatalf("a version that cannot be understood is said to run on %d nodes", n)
	}
	s := behind[0]
	if config.VersionOf(s.Rejected) != bad || config.VersionOf(s.Version) != first || len(s.Problems) == 0 ||
		!strings.Contains(s.Problems[0].Path, "policies") || s.Problems[0].Reason == "" {
		t.Errorf("what is told of the node: %v", s)
	}
	if node.Version() != first || get() != 200 {
		t.Errorf("the node runs %v and answers %d, want %v as before", node.Version(), get(), first)
	}
	again := plane.publish(t, resources(upstream+"---"+strings.ReplaceAll(public, "/public", "/moved"))...)
	if n, behind := programmed(again); n != 1 || get() != 404 {
		t.Errorf("the next good version is not run: %v", behind)
	}
}

// A rolling restart under load. The client is a balancer as they are: it sends to
// nodes that say that they are ready, and again only when a connection was
// refused, before anything was sent.
func TestRollingRestart(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 3, MetricsListen: "127.0.0.1:0", Adjust: func(_ int, cfg *dataplane.Config) {
		cfg.Grace = 150 * time.Millisecond
	}})
	h.apply(public)
	addresses, probes := h.Addresses(), h.MetricsAddresses()
	transport := &http.Transport{MaxIdleConnsPerHost: 8}
	client := &http.Client{Transport: transport, Timeout: patience}
	t.Cleanup(transport.CloseIdleConnections)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var up [3]atomic.Bool
	for i := range up {
		running.Go(func() {
			for ctx.Err() == nil {
				resp, err := client.Get("http://" + probes[i] + "/readyz")
				up[i].Store(err == nil && resp.StatusCode == 200)
				if err == nil {
					_ = resp.Body.Close()
				}
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Millisecond):
				}
			}
		})
	}
	var sent atomic.Int64
	send := func(round int) error {
		for attempt := range 1000 {
			i := (round + attempt) % 3
			if !up[i].Load() {
				time.Sleep(time.Millisecond)
				continue
			}
			// A body that cannot be sent twice: net/http's own retry is out.
			resp, err := client.Post("http://"+addresses[i]+"/public", "text/plain", io.LimitReader(strings.NewReader("hello"), 5))
			if errors.Is(err, syscall.ECONNREFUSED) {
				continue
			}
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if err == nil && resp.StatusCode != 200 {
				err = fmt.Errorf("node %d: %s", i, resp.Status)
			}
			sent.Add(1)
			return err
		}
		return errors.New("no node was ready")
	}
	failed := make(chan error, 64)
	for worker := range 4 {
		running.Go(func() {
			for round := worker; ctx.Err() == nil; round++ {
				if err := send(round); err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			}
		})
	}
	for i := range 3 {
		before := sent.Load()
		h.must("stopping", h.StopNode(i))
		h.must("starting", h.StartNode(within(t), i))
		h.runs(i, h.Plane().Version())
		h.until("the balancer takes it back", func() error {
			if !up[i].Load() || sent.Load() < before+50 {
				return fmt.Errorf("%d requests since", sent.Load()-before)
			}
			return nil
		})
	}
	cancel()
	running.Wait()
	close(failed)
	for err := range failed {
		t.Errorf("of %d requests one failed: %v", sent.Load(), err)
	}
}
