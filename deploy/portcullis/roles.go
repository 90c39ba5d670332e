package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/controlplane"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/secret"
)

// endpoint flags of an external etcd or NATS.
type externalFlags struct {
	urls           []string
	ca, cert, key  string
	username, pass string
	credentials    string
	plaintext      bool
}

func (f *externalFlags) add(cmd *cobra.Command, name, what string) {
	cmd.Flags().StringVar(&f.ca, name+"-ca", "", "PEM file of the authorities of "+what)
	cmd.Flags().StringVar(&f.cert, name+"-cert", "", "PEM file of the client certificate for "+what)
	cmd.Flags().StringVar(&f.key, name+"-key", "", "PEM file of its key")
	cmd.Flags().StringVar(&f.username, name+"-username", "", "user name for "+what)
	cmd.Flags().StringVar(&f.pass, name+"-password", "", "where the password is: env:NAME or file:PATH")
	cmd.Flags().BoolVar(&f.plaintext, name+"-insecure-plaintext", false, "allow a connection without TLS; only on loopback or an isolated network")
}

// tls returns the client configuration; nil when plaintext is allowed and
// nothing asks for TLS.
func (f *externalFlags) tls() (*tls.Config, error) {
	if f.plaintext && f.ca == "" && f.cert == "" {
		return nil, nil
	}
	return identity.Files{CA: f.ca, Certificate: f.cert, Key: f.key}.Client()
}

func (f *externalFlags) password() (string, error) {
	if f.pass == "" {
		return "", nil
	}
	value, err := secret.Resolve(f.pass)
	return value.Reveal(), err
}

// nats turns the flags into where the bus is.
func (f *externalFlags) nats() (bus.NATSConfig, error) {
	secure, err := f.tls()
	if err != nil {
		return bus.NATSConfig{}, fmt.Errorf("--nats-*: %w", err)
	}
	password, err := f.password()
	if err != nil {
		return bus.NATSConfig{}, fmt.Errorf("--nats-password: %w", err)
	}
	return bus.NATSConfig{
		URLs: f.urls, TLS: secure, Plaintext: secure == nil, Credentials: f.credentials, Username: f.username, Password: password,
	}, nil
}

var notInName = regexp.MustCompile(`[^a-z0-9-]+`)

// defaultName makes a member's name of the host's.
func defaultName() string {
	host, err := os.Hostname()
	if err != nil {
		return ""
	}
	return strings.Trim(notInName.ReplaceAllString(strings.ToLower(host), "-"), "-")
}

// controlFlags are the flags of the control-plane role.
type controlFlags struct {
	runFlags
	name, dir, listen, admin, advertise string
	hosts                               []string
	sealKey, busListen, busAdvertise    string
	restored                            bool
	etcd, nats                          externalFlags
	loopbackJWKS, loopbackACME          bool
	context                             string
}

func (c *cli) controlplane() *cobra.Command {
	var f controlFlags
	cmd := &cobra.Command{
		Use: "controlplane", Short: "Run one control-plane replica", Args: cobra.NoArgs,
		Long: `Run one control-plane replica.

Alone it needs nothing: store and bus are embedded. Several replicas share an
external etcd (--etcd-endpoints) and NATS (--nats-urls), and must be given the
same sealing key (--seal-key): what is secret is stored sealed.

The first replica of a cluster writes the first operator's context to --context-out.`,
		Example: "  portcullis controlplane --data-dir cp --control-listen 10.0.0.5:8443 --admin-listen 10.0.0.5:8081",
		RunE:    func(cmd *cobra.Command, _ []string) error { return runControlplane(cmd, &f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.name, "name", defaultName(), "name of the replica, unique in the cluster")
	flags.StringVar(&f.dir, "data-dir", "portcullis-data", "where the embedded store, keys and audit log are kept")
	flags.StringVar(&f.listen, "control-listen", "127.0.0.1:8443", "address for nodes and other replicas")
	flags.StringVar(&f.advertise, "advertise", "", "address under which they reach it (default: --control-listen)")
	flags.StringVar(&f.admin, "admin-listen", "127.0.0.1:8081", "address of the admin API")
	flags.StringSliceVar(&f.hosts, "host", nil, "further host name or address for the certificate; may be repeated")
	flags.StringVar(&f.context, "context-out", "", "where the first operator's context is written (default: context.yaml in --data-dir)")
	flags.StringVar(&f.sealKey, "seal-key", "", "where the sealing keys are: file:PATH or env:NAME (default: seal.key in --data-dir, made on the first start)")
	flags.BoolVar(&f.restored, "restored", false, "the store has been restored from a backup: begin a new epoch, once, so that nodes take it over")
	flags.StringSliceVar(&f.etcd.urls, "etcd-endpoints", nil, "external etcd (default: embedded)")
	f.etcd.add(cmd, "etcd", "etcd")
	flags.StringSliceVar(&f.nats.urls, "nats-urls", nil, "external NATS (default: embedded)")
	flags.StringVar(&f.nats.credentials, "nats-credentials", "", "NATS credentials file")
	f.nats.add(cmd, "nats", "NATS")
	flags.StringVar(&f.busListen, "bus-listen", "127.0.0.1:4222", "address of the embedded bus for nodes")
	flags.StringVar(&f.busAdvertise, "bus-advertise", "", "URL under which nodes reach the embedded bus (default: --bus-listen)")
	flags.BoolVar(&f.loopbackJWKS, "allow-loopback-jwks", false, "fetch issuers' keys over http from loopback, for development")
	flags.BoolVar(&f.loopbackACME, "allow-loopback-acme", false, "let the directories of certificate authorities be on loopback, for development")
	f.add(cmd)
	return cmd
}

func runControlplane(cmd *cobra.Command, f *controlFlags) (err error) {
	ctx := cmd.Context()
	log, err := f.logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	defer noSuccession(log)()
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	lock, err := lockDir(f.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	audit, closeAudit, err := openAudit(filepath.Join(f.dir, "audit.log"))
	if err != nil {
		return err
	}
	defer closeAudit()
	st, err := f.openStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	control, admin, err := listenTwo(f.listen, f.admin)
	if err != nil {
		return explainListen(err)
	}
	var server *bus.Server
	defer func() {
		if server != nil {
			err = errors.Join(err, server.Close())
		}
	}()
	open := func(ctx context.Context, live *identity.Live, boot uint64) (b bus.Bus, urls []string, err error) {
		b, server, urls, err = f.openBus(ctx, live, boot)
		return b, urls, err
	}
	plane, err := controlplane.New(ctx, controlplane.Config{
		Name: f.name, Store: st, Control: control, Admin: admin, Advertise: f.advertise, Hosts: f.hosts, Bus: open,
		AllowLoopbackJWKS: f.loopbackJWKS, ACME: controlplane.ACME{AllowLoopback: f.loopbackACME}, Release: release, Log: log, Audit: audit,
	})
	if err != nil {
		return errors.Join(err, control.Close(), admin.Close())
	}
	if err := f.firstContext(ctx, cmd, plane, admin.Addr().String()); err != nil {
		return errors.Join(err, control.Close(), admin.Close(), plane.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	announced := make(chan struct{})
	go func() {
		defer close(announced)
		if plane.Await(ctx, config.Version{}) == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "ready\n  control   %s\n  admin     https://%s\n", control.Addr(), admin.Addr())
		}
	}()
	err = plane.Run(ctx)
	cancel()
	<-announced
	return err
}

func (f *controlFlags) openStore(ctx context.Context) (*store.Etcd, error) {
	var provider secret.Provider = secret.File{Path: filepath.Join(f.dir, "seal.key"), Create: true}
	if f.sealKey != "" {
		var err error
		if provider, err = secret.ProviderOf(f.sealKey); err != nil {
			return nil, fmt.Errorf("--seal-key: %w", err)
		}
	} else if len(f.etcd.urls) > 0 {
		return nil, errors.New("replicas on an external etcd share their sealing keys: name them with --seal-key (make one with `openssl rand -base64 32`)")
	}
	sealer, err := secret.Load(provider)
	if err != nil {
		return nil, fmt.Errorf("--seal-key: %w", err)
	}
	cfg := store.Config{Sealer: sealer, Endpoints: f.etcd.urls, Username: f.etcd.username, Restored: f.restored}
	if len(f.etcd.urls) == 0 {
		cfg.Dir = filepath.Join(f.dir, "etcd")
		return store.Open(ctx, cfg)
	}
	if cfg.Password, err = f.etcd.password(); err != nil {
		return nil, fmt.Errorf("--etcd-password: %w", err)
	}
	if cfg.TLS, err = f.etcd.tls(); err != nil {
		return nil, fmt.Errorf("--etcd-*: %w", err)
	}
	return store.Open(ctx, cfg)
}

// openBus connects to the external bus or starts the embedded one, which only
// members of the cluster reach.
func (f *controlFlags) openBus(ctx context.Context, live *identity.Live, boot uint64) (bus.Bus, *bus.Server, []string, error) {
	cfg := bus.Config{Name: f.name, Boot: boot}
	if len(f.nats.urls) > 0 {
		var err error
		if cfg.NATS, err = f.nats.nats(); err != nil {
			return nil, nil, nil, err
		}
		b, err := bus.Connect(ctx, cfg)
		return b, nil, nil, err
	}
	server, err := bus.StartEmbedded(bus.ServerConfig{Listen: f.busListen, TLS: identity.ServerPeers(live, identity.Controlplane, identity.Dataplane)})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("--bus-listen: %w", err)
	}
	cfg.NATS.Server = server
	b, err := bus.Connect(ctx, cfg)
	if err != nil {
		return nil, nil, nil, errors.Join(err, server.Close())
	}
	url := f.busAdvertise
	if url == "" {
		url = server.URL()
	}
	return b, server, []string{url}, nil
}

// firstContext writes the context of the cluster's first operator, which exists
// from the moment that the first replica starts.
func (f *controlFlags) firstContext(ctx context.Context, cmd *cobra.Command, plane *controlplane.Plane, address string) error {
	path := f.context
	if path == "" {
		path = filepath.Join(f.dir, "context.yaml")
	}
	credential, err := plane.FirstOperator(ctx)
	if err != nil || credential == "" {
		return err
	}
	if err := writeContext(path, contextFile{Address: address, CA: string(plane.Authorities()), Credential: credential}); err != nil {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "the first operator's context is in", path)
	return nil
}

func listenTwo(first, second string) (net.Listener, net.Listener, error) {
	a, err := net.Listen("tcp", first)
	if err != nil {
		return nil, nil, err
	}
	b, err := net.Listen("tcp", second)
	if err != nil {
		return nil, nil, errors.Join(err, a.Close())
	}
	return a, b, nil
}
