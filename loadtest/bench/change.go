package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/dataplane/follow"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/identity"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	changeRoutes = 100_000
	changeRounds = 5
	// changesEach is how many changes one round makes, so that it has its share of
	// the collector's work.
	changesEach = 40
)

// measureOneOf100k changes one route of 100,000 at a time. It sends each change
// as a control plane does and takes it in as a node does, over gRPC in memory.
func measureOneOf100k(ctx context.Context) (readings []reading, err error) {
	f, err := newFollowing(ctx, manyRoutes(changeRoutes), credential.NewSet())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	var rounds []time.Duration
	for round := range changeRounds {
		each, err := f.round(ctx, round)
		if err != nil {
			return nil, err
		}
		rounds = append(rounds, each)
	}
	return []reading{took(median(rounds),
		"mean of %d changes, median of %d rounds; the whole process: encoding, gRPC, check, compile, swap, report, collector", changesEach, changeRounds)}, nil
}

// manyRoutes returns n routes with policies, and what they refer to.
func manyRoutes(n int) []*configv1.Resource {
	resource := func(name string) *configv1.Resource {
		return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: config.DefaultWorkspace, Name: name}}
	}
	issuer := resource("bench")
	issuer.Spec = &configv1.Resource_Issuer{Issuer: &configv1.Issuer{Issuer: issuerURL, JwksUri: issuerURL + "/keys"}}
	all := []*configv1.Resource{issuer}
	for i := range 100 {
		up := resource(fmt.Sprint("up", i))
		up.Spec = &configv1.Resource_Upstream{Upstream: &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: "http://127.0.0.1:9"}}}}
		all = append(all, up)
	}
	for i := range n {
		all = append(all, oneRoute(i, 0))
	}
	return all
}

func oneRoute(i int, priority int32) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: config.DefaultWorkspace, Name: fmt.Sprint("route-", i)},
		Spec: &configv1.Resource_Route{Route: &configv1.Route{
			Priority: priority, Hostnames: []string{fmt.Sprintf("h%d.example.com", i%1000)},
			Matches: []*configv1.Match{{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: fmt.Sprintf("/svc/%d", i)}}, Methods: []string{"GET", "POST"}}},
			Policies: []*configv1.Policy{
				{Kind: &configv1.Policy_Jwt{Jwt: &configv1.JWT{Issuers: []string{"bench"}, Audiences: []string{audience}}}},
				{Kind: &configv1.Policy_Authorize{Authorize: &configv1.Authorize{Rules: []*configv1.AuthorizeRule{{When: "request.method == 'GET'", Scopes: []string{"read"}}}}}},
				{Kind: &configv1.Policy_RateLimit{RateLimit: &configv1.RateLimit{Key: "auth.client", Limits: []*configv1.Limit{{Name: "a", Requests: 20, Window: durationpb.New(time.Second)}}}}},
			},
			Backends: []*configv1.Backend{{Upstream: fmt.Sprint("up", i%100)}},
		}},
	}
}

// following is a control plane's hub and a node's follower and gateway, joined in
// memory.
type following struct {
	credentials *credential.Set
	rig         *rig
	hub         *stream.Hub
	checked     config.Checked
	version     config.Version
	stop        func()
}

func newFollowing(ctx context.Context, resources []*configv1.Resource, credentials *credential.Set) (*following, error) {
	checked, err := config.Check(resources)
	if err != nil {
		return nil, err
	}
	key, err := identity.NewSigningKey()
	if err != nil {
		return nil, err
	}
	public, err := key.Public()
	if err != nil {
		return nil, err
	}
	f := &following{credentials: credentials, checked: checked, version: config.Version{Epoch: 1, Revision: 1}}
	f.hub = stream.NewHub(stream.Config{
		Replica: "bench", Node: func(context.Context) (string, error) { return "bench", nil },
		Full: func(context.Context) (stream.State, error) {
			return stream.State{Head: f.head(), Resources: f.checked.All(), Credentials: f.credentials.Chunks, Revocations: noRevocations}, nil
		},
		Sign: func(v config.Version, d stream.Digest) []byte { return key.SignVersion(v.Epoch, v.Revision, d[:]) },
	})
	err = errors.Join(f.hub.SetWelcome(&controlv1.Welcome{SigningKeys: [][]byte{public}}), f.hub.Reset(f.head()))
	if err == nil {
		err = f.start(ctx)
	}
	if err != nil {
		return nil, err
	}
	return f, wrap("the node's first state", f.await(ctx))
}

func (f *following) head() stream.Head {
	return stream.Head{Version: f.version, Digest: f.digest()}
}

func (f *following) digest() stream.Digest {
	digest := f.checked.Digest()
	for i, b := range f.credentials.Digest() {
		digest[i] ^= b
	}
	return digest
}

// start serves the hub and runs the node.
func (f *following) start(ctx context.Context) (err error) {
	if f.rig, err = newRig(ctx); err != nil {
		return err
	}
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	controlv1.RegisterControlServiceServer(server, f.hub)
	follower, err := follow.New(ctx, follow.Config{
		Addresses: []string{"bench"}, Applier: f.rig.gateway,
		Dial: func(string) (*grpc.ClientConn, error) {
			return grpc.NewClient("passthrough:///bench", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
		},
		Credentials: f.rig.deps.Credentials, Revocations: f.rig.deps.Revocations, Freshness: f.rig.deps.Freshness,
	})
	if err != nil {
		return errors.Join(err, f.rig.close())
	}
	life, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	running.Go(func() { _ = f.hub.Run(life) })
	running.Go(func() { _ = follower.Run(life) })
	f.stop = func() { cancel(); server.Stop(); running.Wait() }
	return nil
}

func (f *following) close() error {
	f.stop()
	return f.rig.close()
}

// await returns when the node has swapped the head in and said so.
func (f *following) await(ctx context.Context) error {
	for {
		changed := f.hub.Changed()
		if programmed, total, _ := f.hub.Convergence(f.version); programmed == 1 && total == 1 {
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the node does not run %v: %v: %w", f.version, f.hub.Nodes(), ctx.Err())
		}
	}
	if live := f.rig.gateway.Live(); live.Version != f.version {
		return fmt.Errorf("the gateway runs %v, not %v", live.Version, f.version)
	}
	return nil
}

// round makes changes one after the other and returns the processor time of one,
// from its message to its swap. What the control plane does before it publishes
// is not in it.
func (f *following) round(ctx context.Context, round int) (time.Duration, error) {
	var sum time.Duration
	for i := range changesEach {
		change, err := f.commit(oneRoute((round*changesEach+i)*499, int32(round+1)))
		if err != nil {
			return 0, err
		}
		before, err := cpuTime()
		if err != nil {
			return 0, err
		}
		if err := errors.Join(f.hub.Publish(change), f.await(ctx)); err != nil {
			return 0, err
		}
		after, err := cpuTime()
		if err != nil {
			return 0, err
		}
		sum += after - before
	}
	return sum / changesEach, nil
}

func (f *following) commit(resource *configv1.Resource) (stream.Change, error) {
	change := stream.Change{Previous: f.version, Upserts: []*configv1.Resource{resource}}
	next, _, err := f.checked.Apply(config.Delta{Upserts: change.Upserts})
	if err != nil {
		return change, err
	}
	f.checked = next
	f.version.Revision++
	change.Version, change.Digest = f.version, f.digest()
	return change, nil
}
