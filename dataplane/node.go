// Package dataplane is the plane that serves: it wires follow, gateway, limits,
// bus and front end into one node. A node keeps nothing that it cannot get again
// but its identity and a sealed copy of what it last ran.
package dataplane

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/follow"
	"portcullis.dev/portcullis/dataplane/gateway"
	"portcullis.dev/portcullis/dataplane/http1"
	"portcullis.dev/portcullis/dataplane/limit"
	"portcullis.dev/portcullis/dataplane/listen"
	"portcullis.dev/portcullis/dataplane/overload"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/dataplane/upstream"
	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/config/expr"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/revocation"
	"portcullis.dev/portcullis/pkg/secret"
	"portcullis.dev/portcullis/pkg/telemetry"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Config of one node. It is read by New only.
type Config struct {
	// Name of the node, unique in the cluster; lower-case letters, digits and '-'.
	Name string
	// DataDir holds the node's identity and its last-known-good copies.
	DataDir string
	// Zone is where the node stands, for upstreams that are balanced by zone; may be
	// empty.
	Zone string
	// Control are the control planes' addresses; any of them will do.
	Control []string
	// JoinToken lets the node into the cluster; only needed the first time.
	JoinToken string
	// Listener serves clients as the socket named "http", Listeners as those of their
	// names; one at least. Run closes them.
	Listener  net.Listener
	Listeners map[string]net.Listener
	// Packets is what Node.Packets returned in the process that this one succeeds;
	// nil for none. New takes it over.
	Packets map[string]*os.File
	// Limits is what Node.LimitsForSuccessor returned there; nil for none. New takes
	// it over.
	Limits *os.File
	// Metrics serves /metrics, /readyz and /livez; may be nil.
	Metrics net.Listener
	// Bus overrides where the control plane says that the bus is.
	Bus bus.NATSConfig
	// Telemetry is where traces and metrics go; its Service and Instance are set
	// here.
	Telemetry telemetry.Config
	// AccessLog gets JSON lines; nil: none are written.
	AccessLog io.Writer
	// Drain bounds the wait for requests in flight when the node stops; default
	// 30 s. Grace is how long it goes on accepting before that.
	Drain, Grace time.Duration
	// Release is the binary's version.
	Release string
	// Log; nil discards.
	Log *slog.Logger
}

// Node is one data-plane node.
type Node struct {
	cfg         Config
	boot        uint64
	live        *identity.Live
	telemetry   *telemetry.Telemetry
	credentials *credential.Set
	revocations *revocation.Set
	freshness   *revocation.Freshness
	limiter     *limit.Limiter
	kin         *kin
	pool        *upstream.Pool
	gateway     *gateway.Gateway
	decisions   *gateway.Decisions
	follower    *follow.Follower
	wire        *wire
	access      *telemetry.AccessLog
	front       *http1.Server
	listeners   *listen.Listeners
	settings    atomic.Pointer[frontSettings]
	stale       atomic.Uint64
	draining    atomic.Bool
	overload    overload.Manager
	// closeMetrics ends serveMetrics early.
	closeMetrics func()
}

// frontSettings are what the front end takes of a Gateway resource.
type frontSettings struct {
	of *configv1.Gateway
	admission.Settings
}

// New enters the cluster, if the node is not part of it yet, and starts what the
// node last ran from disk. It opens no listener.
func New(ctx context.Context, cfg Config) (*Node, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Control) == 0 {
		return nil, errors.New("a node needs the address of at least one control plane")
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, err
	}
	boot, err := nextBoot(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("numbering this start: %w", err)
	}
	n := &Node{
		cfg: cfg, boot: boot, credentials: credential.NewSet(), revocations: revocation.NewSet(), freshness: revocation.NewFreshness(),
	}
	n.overload.Log = cfg.Log
	n.closeMetrics = sync.OnceFunc(func() {
		if cfg.Metrics != nil {
			_ = cfg.Metrics.Close()
		}
	})
	if n.live, err = enter(ctx, &cfg, cfg.identityDir()); err != nil {
		return nil, err
	}
	told := cfg.Telemetry
	told.Service, told.Instance, told.Version, told.Log = "portcullis-dataplane", cfg.Name, cfg.Release, cfg.Log
	if n.telemetry, err = telemetry.Setup(ctx, told); err != nil {
		return nil, err
	}
	if err := n.assemble(ctx); err != nil {
		return nil, errors.Join(err, n.telemetry.Shutdown(ctx))
	}
	return n, nil
}

func (c *Config) identityDir() string { return filepath.Join(c.DataDir, "identity") }

// assemble makes the parts that live as long as the node.
func (n *Node) assemble(ctx context.Context) error {
	n.wire = newWire(n)
	n.limiter = limit.New(limit.Config{
		Node: n.cfg.Name, Boot: n.boot, AskOwner: n.wire.ask,
		Publish: func(m *busv1.Spent) error {
			n.kin.publish(m)
			return n.wire.publish(bus.Spent, m)
		},
	})
	n.kin = newKin(n)
	n.pool = upstream.NewPool(upstream.Config{TLS: upstreamTLS, Zone: n.cfg.Zone, AffinityKey: affinityKey(n.live), Log: n.cfg.Log})
	n.decisions = gateway.NewDecisions(n.cfg.Name)
	if n.cfg.AccessLog != nil {
		n.access = telemetry.NewAccessLog(telemetry.AccessLogConfig{Writer: n.cfg.AccessLog})
	}
	n.gateway = gateway.New(gateway.Config{
		Node: n.cfg.Name, Pool: n.pool, Tokens: token.NewCache(token.CacheConfig{}), Counters: n.telemetry.Counters,
		Sampler: n.telemetry.Sampler, Tracer: n.telemetry, AccessLog: n.access, Decisions: n.decisions, Log: n.cfg.Log,
		Overload: &n.overload,
		Policy: policy.Deps{
			Credentials: n.credentials, Revocations: n.revocations, Freshness: n.freshness, Limiter: n.limiter, Expr: expr.New(),
			KeyMissing: n.keyMissing, ServedStale: n.servedStale,
		},
	})
	if err := n.open(); err != nil {
		return err
	}
	store, err := n.openStore()
	if err != nil {
		return err
	}
	n.follower, err = follow.New(ctx, follow.Config{
		Addresses: n.cfg.Control, Dial: dialer(n.live), Release: n.cfg.Release, Boot: n.boot, Address: n.Address(),
		Applier: applier{n}, Credentials: n.credentials, Revocations: n.revocations, Freshness: n.freshness,
		Decisions: n.decisions.Decision, Welcome: n.welcome, Store: store, Logger: n.cfg.Log,
	})
	if err != nil {
		return err
	}
	return n.meter()
}

// openStore opens the last-known-good copies under a key of this node's own.
func (n *Node) openStore() (*follow.Store, error) {
	keys, err := secret.File{Path: filepath.Join(n.cfg.DataDir, "seal.key"), Create: true}.Keys()
	if err != nil {
		return nil, err
	}
	sealer, err := secret.New(keys...)
	if err != nil {
		return nil, err
	}
	return follow.OpenStore(filepath.Join(n.cfg.DataDir, "last-known-good"), sealer)
}

func upstreamTLS(spec *configv1.UpstreamTLS) (*tls.Config, error) {
	return identity.Upstream(spec.Ca, spec.ServerName, spec.Certificate, spec.PrivateKey, spec.Pins...)
}

// affinityKey keys what affinity cookies call endpoints: the same on all nodes of
// a cluster, also without a control plane, and of something that no client is
// shown.
func affinityKey(live *identity.Live) []byte {
	mac := hmac.New(sha256.New, []byte("portcullis affinity"))
	if authorities := live.State().Authorities; len(authorities) > 0 {
		mac.Write(authorities[0])
	}
	return mac.Sum(nil)
}

func (n *Node) keyMissing(issuer string) {
	workspace, name := splitName(issuer)
	n.follower.KeyMissing(workspace, name)
}

// frontSettings returns the live settings; it builds them when the Gateway
// resource is another.
func (n *Node) frontSettings() *admission.Settings {
	spec := n.gateway.Settings()
	if have := n.settings.Load(); have != nil && have.of == spec {
		return &have.Settings
	}
	next := &frontSettings{of: spec, Settings: admission.Settings{
		MaxHeaderBytes: int(spec.GetLimits().GetMaxHeaderBytes()), MaxBodyBytes: int64(spec.GetLimits().GetMaxBodyBytes()),
	}}
	for _, text := range spec.GetTrustedProxies() {
		// Checked by pkg/config; one that cannot be read trusts nobody.
		if prefix, err := netip.ParsePrefix(text); err == nil {
			next.TrustedProxies = append(next.TrustedProxies, prefix)
		}
	}
	n.settings.Store(next)
	return &next.Settings
}

// Version returns what the node runs; zero before the first.
func (n *Node) Version() config.Version { return n.follower.Status().Version }

// Ready says whether the node can serve: it runs a configuration, and it has
// either caught up with the revocations or nobody is there to catch up with. A
// node that is to stop is not ready, so that balancers turn elsewhere.
func (n *Node) Ready() error {
	if n.draining.Load() {
		return errors.New("draining")
	}
	if n.gateway.Live() == nil {
		return errors.New("no configuration yet")
	}
	// A node that has just started asks first: what it held when it stopped may not
	// be all that is revoked by now.
	if status := n.follower.Status(); (status.Connected || !status.Sought) && !n.freshness.Ready() {
		return errors.New("catching up with revocations")
	}
	return nil
}

// Address is where the node serves clients.
func (n *Node) Address() string { return n.listeners.Address().String() }

// Limits returns what the node's limiter has counted.
func (n *Node) Limits() limit.Stats { return n.limiter.Stats() }

// Run serves until ctx ends, then drains: requests in flight are finished before
// anything that they need ends.
func (n *Node) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { n.draining.Store(true) })()
	// What requests need outlives the front end.
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	parts, inner := errgroup.WithContext(inner)
	run := []func(context.Context) error{
		n.follower.Run, n.wire.Run, n.limiter.Run, n.gateway.Run, n.renewer(n.cfg.identityDir()).Run, n.serveMetrics, n.revocations.Run,
		n.pool.Run, n.tellCondition, n.overload.Run, n.kin.run,
	}
	if n.access != nil {
		run = append(run, n.access.Run)
	}
	if n.cfg.Limits != nil {
		// Before the first request: it must find what was spent already.
		if err := n.kin.take(n.cfg.Limits); err != nil {
			n.cfg.Log.Warn("this process begins with fresh limits", "error", err)
		}
	}
	for _, one := range run {
		parts.Go(func() error { return one(inner) })
	}
	front, cancel := context.WithCancel(ctx)
	defer cancel()
	// A part that fails takes the node down in order.
	defer context.AfterFunc(inner, cancel)()
	err := n.listeners.Run(front)
	n.limiter.Leave(time.Now())
	stop()
	err = errors.Join(err, parts.Wait())
	n.pool.Cut()
	// What is queued for a collector that does not answer is not worth a long wait.
	last, cancelLast := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancelLast()
	if lost := n.telemetry.Shutdown(last); lost != nil {
		n.cfg.Log.Warn("telemetry that was queued is lost", "error", lost)
	}
	if errors.Is(err, listen.ErrCut) {
		n.cfg.Log.Warn("the drain's deadline passed", "error", err)
		err = nil
	}
	return err
}

// serveMetrics serves Prometheus and the probes on a listener of their own, so
// that no path of the data listener is exempt from policy.
func (n *Node) serveMetrics(ctx context.Context) error {
	if n.cfg.Metrics == nil {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", n.telemetry.Handler())
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := n.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	err := server.Serve(n.cfg.Metrics)
	if errors.Is(err, net.ErrClosed) && n.draining.Load() {
		<-ctx.Done()
		return nil
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics listener: %w", err)
	}
	return nil
}

// nextBoot numbers this start of the node: by the clock, and above the last one
// even when the clock has been set back, since others drop what an earlier boot
// says.
func nextBoot(dir string) (uint64, error) {
	path := filepath.Join(dir, "boot")
	boot := uint64(time.Now().UnixNano())
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	if last, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64); err == nil && last >= boot {
		boot = last + 1
	}
	return boot, secret.WriteFile(path, []byte(strconv.FormatUint(boot, 10)+"\n"), 0o600)
}
