// Package cluster runs a whole cluster in one process: a control plane on an
// embedded store and bus, and any number of nodes, over the same wires and the
// same mutual TLS as a cluster of machines. `standalone`, the tests and the load
// tests all use it.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"portcullis.dev/portcullis/controlplane"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/dataplane"
	"portcullis.dev/portcullis/dataplane/listen"
	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/secret"
	"portcullis.dev/portcullis/pkg/telemetry"
)

// Config of a cluster in one process.
type Config struct {
	// Dir holds the store, the keys and the nodes' data. Required.
	Dir string
	// Nodes is how many; default 1.
	Nodes int
	// Listen is the first node's address; default 127.0.0.1:0. Each further node
	// takes the next free port, or any when the first one's is 0.
	Listen string
	// Sockets are addresses by the sockets' names, "http" too unless Listen says it;
	// further nodes as for Listen. With some, Listen has no default.
	Sockets map[string]string
	// AdminListen is the admin API's address; default 127.0.0.1:0.
	AdminListen string
	// MetricsListen is the first node's address for metrics and probes, further
	// nodes as for Listen; empty: none.
	MetricsListen string
	// Zone is where the nodes stand; may be empty.
	Zone string
	// Telemetry is where traces and metrics go.
	Telemetry telemetry.Config
	// AccessLog gets every node's access log; nil: none is written.
	AccessLog io.Writer
	// AllowLoopbackJWKS accepts http JWKS URLs on loopback.
	AllowLoopbackJWKS bool
	// ACME tunes how certificates are obtained.
	ACME controlplane.ACME
	// BusListen is where the bus is served to other processes, without TLS and so
	// on loopback only; empty: to this process only.
	BusListen string
	// Store says how the store is opened; Dir, when there are no Endpoints, and
	// Sealer are set here.
	Store store.Config
	// Adjust may change the configuration of node i, counted from 0, before each of
	// its starts: tests and load tests put proxies in between. May be nil.
	Adjust func(i int, cfg *dataplane.Config)
	// Drain bounds how long a stopping node waits for requests in flight; default
	// 30 s.
	Drain time.Duration
	// Release is the binary's version.
	Release string
	// Log and Audit; nil discards.
	Log, Audit *slog.Logger
}

// Cluster is a running cluster. Its methods may be called concurrently, but one
// node's Stop and Start by one goroutine at a time.
type Cluster struct {
	cfg    Config
	store  *store.Etcd
	server *bus.Server
	plane  *controlplane.Plane
	// planeAddress is where the control plane serves nodes; it keeps its port when
	// the plane is stopped and started again.
	planeAddress, adminAddress string
	stopPlane                  func() error
	nodes                      []*member
	credential                 string
	failed                     chan error
}

// Start starts a cluster and returns when every node serves the newest revision,
// or when ctx ends. Stop ends it.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if cfg.Nodes <= 0 {
		cfg.Nodes = 1
	}
	if cfg.Listen == "" && len(cfg.Sockets) == 0 {
		cfg.Listen = "127.0.0.1:0"
	}
	cfg.Sockets = maps.Clone(cfg.Sockets)
	if cfg.Sockets == nil {
		cfg.Sockets = map[string]string{}
	}
	if cfg.Listen != "" {
		cfg.Sockets[listen.HTTP] = cfg.Listen
	}
	if cfg.AdminListen == "" {
		cfg.AdminListen = "127.0.0.1:0"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{cfg: cfg, failed: make(chan error, 1), planeAddress: "127.0.0.1:0", adminAddress: cfg.AdminListen}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return err
	}
	keys, err := secret.File{Path: filepath.Join(c.cfg.Dir, "seal.key"), Create: true}.Keys()
	if err != nil {
		return err
	}
	sealer, err := secret.New(keys...)
	if err != nil {
		return err
	}
	kept := c.cfg.Store
	kept.Sealer = sealer
	if len(kept.Endpoints) == 0 {
		kept.Dir = filepath.Join(c.cfg.Dir, "etcd")
	}
	if c.store, err = store.Open(ctx, kept); err != nil {
		return err
	}
	if c.server, err = bus.StartEmbedded(bus.ServerConfig{Listen: c.cfg.BusListen, Plaintext: c.cfg.BusListen != ""}); err != nil {
		return err
	}
	if err := c.StartControl(ctx); err != nil {
		return err
	}
	for i := range c.cfg.Nodes {
		if err := c.addNode(ctx, i); err != nil {
			return fmt.Errorf("node %d: %w", i+1, err)
		}
	}
	return c.Converge(ctx)
}

// StartControl starts the control plane; it is for tests that have stopped it.
func (c *Cluster) StartControl(ctx context.Context) error {
	listen := func(address string) (net.Listener, error) {
		if c.plane != nil {
			return listenAgain(ctx, address)
		}
		return net.Listen("tcp", address)
	}
	control, err := listen(c.planeAddress)
	if err != nil {
		return err
	}
	admin, err := listen(c.adminAddress)
	if err != nil {
		return errors.Join(err, control.Close())
	}
	c.planeAddress, c.adminAddress = control.Addr().String(), admin.Addr().String()
	connect := func(ctx context.Context, _ *identity.Live, boot uint64) (bus.Bus, []string, error) {
		b, err := bus.Connect(ctx, bus.Config{Name: "control-1", Boot: boot, NATS: bus.NATSConfig{Server: c.server}, Log: c.cfg.Log})
		return b, nil, err
	}
	plane, err := controlplane.New(ctx, controlplane.Config{
		Name: "control-1", Store: c.store, Control: control, Admin: admin, Bus: connect,
		AllowLoopbackJWKS: c.cfg.AllowLoopbackJWKS, ACME: c.cfg.ACME, Release: c.cfg.Release, Log: c.cfg.Log, Audit: c.cfg.Audit,
	})
	if err != nil {
		return errors.Join(err, control.Close(), admin.Close())
	}
	c.plane, c.stopPlane = plane, c.background(plane.Run)
	if c.credential == "" {
		if c.credential, err = plane.FirstOperator(ctx); err != nil {
			return err
		}
	}
	return plane.Await(ctx, config.Version{})
}

// StopControl stops the control plane and leaves store, bus and nodes.
func (c *Cluster) StopControl() error {
	if c.stopPlane == nil {
		return nil
	}
	stop := c.stopPlane
	c.stopPlane = nil
	return stop()
}

// background runs f until stop is called, which returns what f did. What fails
// before that is told to Failed.
func (c *Cluster) background(f func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		err := f(ctx)
		if err != nil && ctx.Err() == nil {
			select {
			case c.failed <- err:
			default:
			}
		}
		done <- err
	}()
	return sync.OnceValue(func() error {
		cancel()
		return <-done
	})
}

// Converge returns when every node that is running runs the newest revision and
// is ready.
func (c *Cluster) Converge(ctx context.Context) error {
	for {
		changed := c.plane.NodesChanged()
		running, current := 0, 0
		newest := c.plane.Version()
		for _, m := range c.nodes {
			m.mu.Lock()
			if m.stop != nil {
				running++
				if m.node.Ready() == nil && m.node.Version().Compare(newest) >= 0 {
					current++
				}
			}
			m.mu.Unlock()
		}
		if current == running {
			return nil
		}
		// A node's readiness is its own; the control plane hears of versions only.
		timer := time.NewTimer(5 * time.Millisecond)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%d of %d nodes are current: %w", current, running, ctx.Err())
		}
		timer.Stop()
	}
}

// Stop stops everything, the nodes first, and returns when all has ended.
func (c *Cluster) Stop() error {
	var errs []error
	var draining sync.WaitGroup
	failures := make([]error, len(c.nodes))
	for i := range c.nodes {
		draining.Go(func() { failures[i] = c.StopNode(i) })
	}
	draining.Wait()
	errs = append(errs, failures...)
	errs = append(errs, c.StopControl())
	if c.server != nil {
		errs = append(errs, c.server.Close())
	}
	if c.store != nil {
		errs = append(errs, c.store.Close())
	}
	return errors.Join(errs...)
}

// Failed receives the error of a part that has ended by itself.
func (c *Cluster) Failed() <-chan error { return c.failed }

// AdminAddress is where the admin API is.
func (c *Cluster) AdminAddress() string { return c.adminAddress }

// ControlAddress is where nodes find the control plane.
func (c *Cluster) ControlAddress() string { return c.planeAddress }

// BusURL is where the bus is served to other processes; "" when it is not.
func (c *Cluster) BusURL() string { return c.server.URL() }

// StopBus ends the bus for good: the cluster goes on without it.
func (c *Cluster) StopBus() error { return c.server.Close() }

// Store is the cluster's store.
func (c *Cluster) Store() *store.Etcd { return c.store }

// Authorities is the PEM of the cluster's CA certificates.
func (c *Cluster) Authorities() []byte { return c.plane.Authorities() }

// Credential is the first operator's; "" when the cluster had one already.
func (c *Cluster) Credential() string { return c.credential }

// Plane returns the control plane.
func (c *Cluster) Plane() *controlplane.Plane { return c.plane }
