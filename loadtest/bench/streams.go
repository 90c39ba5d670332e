package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	simulatedStreams = 1000
	publications     = 100
)

func noCredentials(int) iter.Seq[*controlv1.CredentialRecords] {
	return func(func(*controlv1.CredentialRecords) bool) {}
}

func noRevocations(func(*controlv1.Revocation) bool) {}

// measureStreams publishes one change after the other to 1,000 streams, each on
// a connection of its own with mutual TLS over loopback, both ends in this
// process, and takes the time until the last stream has it.
func measureStreams(ctx context.Context) (readings []reading, err error) {
	if err := mayOpen(2*simulatedStreams + 100); err != nil {
		return nil, err
	}
	f, err := newFanout()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.connect(ctx, simulatedStreams); err != nil {
		return nil, wrap("connecting 1,000 streams", err)
	}
	var all []time.Duration
	before, err := cpuTime()
	if err != nil {
		return nil, err
	}
	for i := range publications {
		change := stream.Change{Previous: f.head.Version}
		resource := oneRoute(i, 0)
		change.Upserts = append(change.Upserts, resource)
		f.head.Version.Revision++
		f.head.Digest[0]++
		change.Version, change.Digest = f.head.Version, f.head.Digest
		began := time.Now()
		if err := f.hub.Publish(change); err != nil {
			return nil, err
		}
		if err := f.arrivals(ctx, simulatedStreams); err != nil {
			return nil, err
		}
		all = append(all, time.Since(began))
		// The reports of this one must not count as work of the next.
		if programmed, total, _ := f.hub.Await(ctx, f.head.Version); programmed != total || total != simulatedStreams {
			return nil, fmt.Errorf("%d of %d streams reported", programmed, total)
		}
	}
	after, err := cpuTime()
	slices.Sort(all)
	return []reading{took(quantile(all, 0.99), "p50 %s, worst %s of %d publications; mutual TLS over loopback, both ends and %s of processor time each in this process",
		printSeconds(quantile(all, 0.5).Seconds()), printSeconds(all[len(all)-1].Seconds()), publications,
		printSeconds((after-before).Seconds()/publications))}, err
}

// mayOpen raises the limit of open files when it has to.
func mayOpen(files uint64) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	if limit.Cur >= files {
		return nil
	}
	if limit.Max < files {
		return fmt.Errorf("needs %d open files, the limit is %d", files, limit.Max)
	}
	limit.Cur = limit.Max
	return wrap("raising the limit of open files", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
}

// fanout is a hub with its server, and streams that take in whatever comes.
type fanout struct {
	hub     *stream.Hub
	head    stream.Head
	address string
	node    *identity.Live
	server  *grpc.Server
	arrived chan config.Version
	conns   []*grpc.ClientConn
	running sync.WaitGroup
	life    context.Context
	end     context.CancelFunc
}

func newFanout() (*fanout, error) {
	f := &fanout{head: stream.Head{Version: config.Version{Epoch: 1, Revision: 1}}, arrived: make(chan config.Version, simulatedStreams)}
	signer, err := identity.NewSigningKey()
	if err != nil {
		return nil, err
	}
	f.hub = stream.NewHub(stream.Config{
		Replica: "bench", Sign: func(v config.Version, d stream.Digest) []byte { return signer.SignVersion(v.Epoch, v.Revision, d[:]) },
		// All streams have one certificate; they say themselves which one they are.
		Node: func(ctx context.Context) (string, error) {
			if _, err := identity.PeerFromContext(ctx); err != nil {
				return "", err
			}
			in, _ := metadata.FromIncomingContext(ctx)
			return fmt.Sprint(in.Get("bench-node")), nil
		},
		Full: func(context.Context) (stream.State, error) {
			return stream.State{Head: f.head, Resources: slices.Values(manyRoutes(1)), Credentials: noCredentials, Revocations: noRevocations}, nil
		},
	})
	control, node, err := identities()
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.hub.SetWelcome(&controlv1.Welcome{}), f.hub.Reset(f.head)); err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f.address, f.node = listener.Addr().String(), node
	f.server = grpc.NewServer(grpc.Creds(credentials.NewTLS(identity.ServerControl(control))))
	controlv1.RegisterControlServiceServer(f.server, f.hub)
	f.life, f.end = context.WithCancel(context.Background())
	f.running.Go(func() { _ = f.server.Serve(listener) })
	f.running.Go(func() { _ = f.hub.Run(f.life) })
	return f, nil
}

// identities makes a CA and certificates for a control plane and a node.
func identities() (control, node *identity.Live, err error) {
	ca, err := identity.NewCA(time.Now())
	if err != nil {
		return nil, nil, err
	}
	live := func(id identity.Identity, hosts ...string) *identity.Live {
		key, csr, failed := identity.NewRequest(id, hosts...)
		if failed != nil {
			err = errors.Join(err, failed)
			return nil
		}
		issued, failed := ca.Issue(csr, id, 0, time.Now())
		if failed != nil {
			err = errors.Join(err, failed)
			return nil
		}
		made, failed := identity.NewLive(identity.State{Key: key, Issued: issued})
		err = errors.Join(err, failed)
		return made
	}
	control = live(identity.Identity{Role: identity.Controlplane, Name: "bench"}, "127.0.0.1")
	node = live(identity.Identity{Role: identity.Dataplane, Name: "bench"})
	return control, node, err
}

func (f *fanout) connect(ctx context.Context, streams int) error {
	secure := credentials.NewTLS(identity.ClientControl(f.node))
	for i := range streams {
		conn, err := grpc.NewClient("passthrough:///"+f.address, grpc.WithTransportCredentials(secure))
		if err != nil {
			return err
		}
		f.conns = append(f.conns, conn)
		s, err := controlv1.NewControlServiceClient(conn).Follow(metadata.AppendToOutgoingContext(f.life, "bench-node", fmt.Sprint(i)))
		if err != nil {
			return err
		}
		if err := s.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Hello{Hello: &controlv1.Hello{}}}); err != nil {
			return err
		}
		f.running.Go(func() { f.follow(s) })
	}
	if err := f.arrivals(ctx, streams); err != nil {
		return err
	}
	if programmed, total, _ := f.hub.Await(ctx, f.head.Version); programmed != streams || total != streams {
		return fmt.Errorf("%d of %d streams reported", programmed, streams)
	}
	return nil
}

// follow says of whatever comes that it runs.
func (f *fanout) follow(s grpc.BidiStreamingClient[controlv1.FollowRequest, controlv1.FollowResponse]) {
	for {
		m, err := s.Recv()
		if err != nil {
			return
		}
		u := m.GetUpdate()
		if !u.GetLast() {
			continue
		}
		f.arrived <- config.VersionOf(u.GetVersion())
		if s.Send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Report{Report: &controlv1.Report{
			Version: u.GetVersion(), Running: u.GetVersion(), Digest: u.GetDigest(),
		}}}) != nil {
			return
		}
	}
}

// arrivals waits until that many streams have the head.
func (f *fanout) arrivals(ctx context.Context, streams int) error {
	for range streams {
		select {
		case v := <-f.arrived:
			if v != f.head.Version {
				return fmt.Errorf("version %v came, %v was published", v, f.head.Version)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (f *fanout) close() error {
	f.end()
	var err error
	for _, conn := range f.conns {
		err = errors.Join(err, conn.Close())
	}
	f.server.Stop()
	f.running.Wait()
	return err
}
