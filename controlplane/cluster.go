package controlplane

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// replicaTTL is how long a crashed replica is still listed.
const replicaTTL = 10 * time.Second

// cluster is what this replica knows of all nodes and replicas. It implements
// admin.Cluster.
type cluster struct {
	store   store.Store
	hub     *stream.Hub
	peers   *stream.Peers
	name    string
	address string
	log     *slog.Logger
	// changed is ready when the room of replicas has changed.
	changed chan struct{}
}

func newCluster(st store.Store, hub *stream.Hub, live *identity.Live, name, address string, log *slog.Logger) *cluster {
	dial := func(p stream.Peer) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+p.Address,
			grpc.WithTransportCredentials(credentials.NewTLS(identity.ClientControl(live))),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}))
	}
	return &cluster{
		store: st, hub: hub, name: name, address: address, log: log, changed: make(chan struct{}, 1),
		peers: stream.NewPeers(stream.PeersConfig{Hub: hub, Dial: dial, Logger: log}),
	}
}

// Nodes implements admin.Cluster.
func (c *cluster) Nodes() []*controlv1.NodeStatus { return c.hub.Nodes() }

// AwaitConvergence implements admin.Cluster.
func (c *cluster) AwaitConvergence(ctx context.Context, version config.Version) *adminv1.Convergence {
	programmed, total, behind := c.hub.Await(ctx, version)
	return &adminv1.Convergence{
		Converged: len(behind) == 0, Programmed: int32(programmed), Total: int32(total), Behind: behind,
	}
}

// Why implements admin.Cluster.
func (c *cluster) Why(ctx context.Context, requestID string) (*controlv1.DecisionRecord, bool, error) {
	record, err := c.peers.Why(ctx, requestID)
	return record, record != nil, err
}

// Replicas implements admin.Cluster.
func (c *cluster) Replicas(ctx context.Context) ([]string, error) {
	items, err := c.store.Items(roomReplicas).List(ctx)
	names := make([]string, 0, len(items))
	for _, item := range items {
		names = append(names, item.Name)
	}
	slices.Sort(names)
	return names, err
}

// wake tells Run that the replicas may be others.
func (c *cluster) wake() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Run keeps this replica listed and follows the others until ctx ends.
func (c *cluster) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error {
		for {
			err := c.store.Items(roomReplicas).Hold(ctx, c.name, []byte(c.address), replicaTTL)
			if ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
				return nil
			}
			c.log.Warn("this replica could not be kept listed; trying again", "error", err)
			pause(ctx, time.Second)
		}
	})
	tasks.Go(func() error { return c.peers.Run(ctx) })
	tasks.Go(func() error {
		for {
			items, err := c.store.Items(roomReplicas).List(ctx)
			if err == nil {
				var peers []stream.Peer
				for _, item := range items {
					if item.Name != c.name {
						peers = append(peers, stream.Peer{Name: item.Name, Address: string(item.Value)})
					}
				}
				c.peers.Set(peers)
			}
			select {
			case <-ctx.Done():
				return nil
			case <-c.changed:
			case <-time.After(replicaTTL):
			}
		}
	})
	return tasks.Wait()
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
