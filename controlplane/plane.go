// Package controlplane is the plane that keeps the truth and tells the nodes: it
// wires store, stream, keys and admin API into one replica. Replicas keep
// nothing of their own; any node may follow any of them.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/controlplane/acme"
	"portcullis.dev/portcullis/controlplane/admin"
	"portcullis.dev/portcullis/controlplane/keys"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Config of one control-plane replica. It is read by New only.
type Config struct {
	// Name of the replica; lower-case letters, digits and '-'. Required.
	Name string
	// Store is opened by the caller and closed by it after Run. Required.
	Store store.Store
	// Control and Admin are the listeners for nodes and for operators; Run closes
	// them. Required.
	Control, Admin net.Listener
	// Advertise is where nodes and replicas reach Control; default: its address.
	Advertise string
	// Hosts are further names and addresses for the replica's certificate.
	Hosts []string
	// Bus opens the bus under a boot number, once the replica has an identity to open
	// it with, and says where nodes find it (nil: they are told otherwise). Run
	// closes it. A nil Bus means that nodes hear of revocations on the stream only.
	Bus func(ctx context.Context, live *identity.Live, boot uint64) (bus.Bus, []string, error)
	// AllowLoopbackJWKS accepts http JWKS URLs on loopback, for development.
	AllowLoopbackJWKS bool
	// ACME tunes how certificates are obtained.
	ACME ACME
	// Release is the binary's version.
	Release string
	// Log; nil discards. Audit receives one record per authorisation; nil means Log.
	Log, Audit *slog.Logger
}

// Plane is one replica. New loads the store; Run serves.
type Plane struct {
	cfg     Config
	shared  *authority
	live    *identity.Live
	hub     *stream.Hub
	mirror  *mirror
	cluster *cluster
	keeper  *keys.Keeper
	acme    *acme.Keeper
	tickets *tickets
	issuers *keys.Issuers
	members *members
	admin   *admin.Service
	// bus is nil when there is none; busURLs is where nodes find it.
	bus     bus.Bus
	busURLs []string
	// issuersChanged wakes the keeper, certificatesChanged acme.
	issuersChanged, certificatesChanged chan struct{}
}

// New opens the cluster's secrets, makes them on the very first start, and
// prepares the replica.
func New(ctx context.Context, cfg Config) (*Plane, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Audit == nil {
		cfg.Audit = cfg.Log
	}
	if cfg.Advertise == "" {
		cfg.Advertise = cfg.Control.Addr().String()
	}
	shared, err := openAuthority(ctx, cfg.Store)
	if err != nil {
		return nil, err
	}
	p := &Plane{cfg: cfg, shared: shared, issuersChanged: make(chan struct{}, 1), certificatesChanged: make(chan struct{}, 1)}
	if p.live, err = p.certify(); err != nil {
		return nil, err
	}
	if p.tickets, err = openTickets(ctx, cfg.Store.Items(roomTickets), cfg.Log); err != nil {
		return nil, err
	}
	p.tickets.told = p.welcome
	p.members = newMembers(cfg.Store, shared.ca)
	if err := p.members.read(ctx); err != nil {
		return nil, fmt.Errorf("reading which nodes have joined: %w", err)
	}
	client := &keys.Client{AllowLoopback: cfg.AllowLoopbackJWKS}
	p.issuers = &keys.Issuers{Client: client, Vault: vault{cfg.Store.Items(roomIssuerKeys)}}
	if err := initialise(ctx, cfg.Store, p.issuers); err != nil {
		return nil, err
	}
	p.mirror = newMirror(cfg.Store, cfg.Log)
	p.mirror.committed, p.mirror.proved = p.committed, p.proved
	p.mirror.loaded = func() { trigger(p.issuersChanged); trigger(p.certificatesChanged) }
	p.hub = stream.NewHub(stream.Config{
		Replica: cfg.Name, Logger: cfg.Log, Full: p.mirror.Full,
		Node: func(ctx context.Context) (string, error) {
			peer, err := identity.PeerFromContext(ctx)
			if err == nil {
				err = p.members.known(ctx, peer.Identity)
			}
			return peer.Name, err
		},
		Peer: func(ctx context.Context) error { _, err := identity.PeerFromContext(ctx); return err },
		Sign: func(v config.Version, d stream.Digest) []byte {
			return shared.signing.SignVersion(v.Epoch, v.Revision, d[:])
		},
		Expected:   p.members.expected,
		KeyMissing: func(_ string, m *controlv1.KeyMissing) { p.keeper.Missing(m.Workspace, m.Issuer) },
	})
	p.mirror.hub = p.hub
	if err := p.openBus(ctx); err != nil {
		return nil, err
	}
	if err := p.welcome(); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	p.cluster = newCluster(cfg.Store, p.hub, p.live, cfg.Name, cfg.Advertise, cfg.Log)
	p.keeper = &keys.Keeper{
		Client: client, Log: cfg.Log, Changed: p.issuersChanged, Sources: p.sources, Claim: p.claim, Write: p.writeKeys,
	}
	p.admin = &admin.Service{
		Store: cfg.Store, Mirror: p.mirror, Cluster: p.cluster, Issuers: p.issuers,
		JoinToken: p.members.token, RemoveNodeByName: p.members.remove, Audit: cfg.Audit, Log: cfg.Log, Release: cfg.Release,
	}
	p.acme = p.newACME()
	return p, nil
}

// certify gives the replica a certificate of the cluster's CA, whose key it
// holds as every replica does.
func (p *Plane) certify() (*identity.Live, error) {
	id := identity.Identity{Role: identity.Controlplane, Name: p.cfg.Name}
	hosts, err := p.hosts()
	if err != nil {
		return nil, err
	}
	key, csr, err := identity.NewRequest(id, hosts...)
	if err != nil {
		return nil, err
	}
	issued, err := p.shared.ca.Issue(csr, id, 0, time.Now())
	if err != nil {
		return nil, err
	}
	return identity.NewLive(identity.State{Key: key, Issued: issued})
}

// hosts are the names that operators' other clients (curl, browsers) verify;
// nodes and the command line know the replica by its role.
func (p *Plane) hosts() ([]string, error) {
	hosts := []string{"localhost", "127.0.0.1"}
	for _, address := range []string{p.cfg.Advertise, p.cfg.Admin.Addr().String()} {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", address, err)
		}
		hosts = append(hosts, host)
	}
	return append(hosts, p.cfg.Hosts...), nil
}

func (p *Plane) openBus(ctx context.Context) error {
	if p.cfg.Bus == nil {
		return nil
	}
	boot, err := nextBoot(ctx, p.cfg.Store, p.cfg.Name)
	if err != nil {
		return err
	}
	if p.bus, p.busURLs, err = p.cfg.Bus(ctx, p.live, boot); err != nil {
		return fmt.Errorf("opening the bus: %w", err)
	}
	if err := p.bus.SetKeys([]*controlv1.BusKey{p.shared.busKey}); err != nil {
		return errors.Join(err, p.Close())
	}
	return nil
}

// Close closes what New has opened. It is for a replica that is not run; Run
// closes it at its end.
func (p *Plane) Close() error {
	if p.bus == nil {
		return nil
	}
	return p.bus.Close()
}

// welcome sets what nodes are told first, and tells those that are connected.
func (p *Plane) welcome() error {
	signer, err := p.shared.signing.Public()
	if err != nil {
		return err
	}
	return p.hub.SetWelcome(&controlv1.Welcome{
		BusKeys: []*controlv1.BusKey{p.shared.busKey}, BusUrls: p.busURLs, SigningKeys: [][]byte{signer},
		TicketKeys: p.tickets.keys(),
	})
}

// Authorities returns the PEM of the cluster's CA certificates, for contexts.
func (p *Plane) Authorities() []byte { return identity.EncodePEM(p.shared.ca.Authorities()) }

// FirstOperator makes the cluster's first admin and returns its credential; ""
// when the cluster has an operator already.
func (p *Plane) FirstOperator(ctx context.Context) (string, error) {
	return firstOperator(ctx, p.cfg.Store)
}

// JoinToken makes a one-time join token for a node.
func (p *Plane) JoinToken(ctx context.Context, ttl time.Duration) (string, error) {
	return p.members.token(ctx, ttl)
}

// Await returns when this replica has seen a version; the zero version means
// that it has loaded the store.
func (p *Plane) Await(ctx context.Context, v config.Version) error {
	if v.IsZero() {
		v = config.Version{Epoch: 1}
	}
	return p.mirror.Await(ctx, v)
}

// Nodes returns what is known of every node.
func (p *Plane) Nodes() []*controlv1.NodeStatus { return p.hub.Nodes() }

// Converge returns when every connected node runs the version or has rejected
// it, or when ctx ends.
func (p *Plane) Converge(ctx context.Context, v config.Version) (programmed, total int) {
	programmed, total, _ = p.hub.Await(ctx, v)
	return programmed, total
}

// NodesChanged returns a channel that closes when what Nodes returns changes.
func (p *Plane) NodesChanged() <-chan struct{} { return p.hub.Changed() }

// Run serves until ctx ends or a listener fails, and returns when all that it
// started has ended.
func (p *Plane) Run(ctx context.Context) error {
	hosts, err := p.hosts()
	if err != nil {
		return errors.Join(err, p.Close())
	}
	tasks, ctx := errgroup.WithContext(ctx)
	renewer := &identity.Renewer{
		Live: p.live, Log: p.cfg.Log, Hosts: hosts,
		Renew: func(_ context.Context, csr []byte) (identity.Issued, error) {
			return p.shared.ca.Issue(csr, p.live.Identity(), 0, time.Now())
		},
	}
	for _, run := range []func(context.Context) error{
		func(ctx context.Context) error { return p.members.Run(ctx, p.hub.Drop) },
		p.mirror.Run, p.mirror.revocations.Run, p.hub.Run, p.cluster.Run, p.keeper.Run, p.acme.Run, p.tickets.Run, renewer.Run, p.serveControl, p.serveAdmin,
	} {
		tasks.Go(func() error { return run(ctx) })
	}
	return errors.Join(tasks.Wait(), p.Close())
}

// sources lists the issuers for the keeper.
func (p *Plane) sources() []keys.Source {
	checked, _ := p.mirror.Current()
	var sources []keys.Source
	for key, resource := range checked.OfKind(config.KindIssuer) {
		source := keys.Source{Workspace: key.Workspace, Name: key.Name, Issuer: resource.GetIssuer()}
		if set, ok := checked.Get(config.Key{Kind: "KeySet", Workspace: key.Workspace, Name: key.Name}); ok {
			source.Keys = set.GetKeySet()
		}
		sources = append(sources, source)
	}
	return sources
}

// claim lets one replica fetch an issuer's keys per interval: an item that goes
// by itself.
func (p *Plane) claim(ctx context.Context, workspace, name string, interval time.Duration) (bool, error) {
	_, err := p.cfg.Store.Items(roomLocks).Put(ctx, "jwks/"+workspace+"/"+name, []byte(p.cfg.Name), store.Write{TTL: interval})
	if errors.Is(err, store.ErrExists) {
		return false, nil
	}
	return err == nil, err
}

// writeKeys commits a key set, unless its issuer is gone.
func (p *Plane) writeKeys(ctx context.Context, source keys.Source, set *configv1.KeySet) error {
	return p.admin.WriteKeySet(ctx, &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: source.Workspace, Name: source.Name},
		Spec:     &configv1.Resource_KeySet{KeySet: set},
	}, source.Issuer)
}

// Version returns the newest version that this replica has seen.
func (p *Plane) Version() config.Version {
	_, version := p.mirror.Current()
	return version
}
