package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/dataplane"
	"portcullis.dev/portcullis/pkg/secret"
	"portcullis.dev/portcullis/pkg/telemetry"
)

// nodeFlags are the flags of the data-plane role.
type nodeFlags struct {
	runFlags
	nats                  externalFlags
	listen                []string
	metrics, debug, token string
}

func (c *cli) dataplane() *cobra.Command {
	var f nodeFlags
	var cfg dataplane.Config
	cmd := &cobra.Command{
		Use: "dataplane", Short: "Run one node", Args: cobra.NoArgs,
		Long: `Run one node.

The first start needs a join token (portcullis join-token create), which is used
up; after that the node's identity lies in its data directory and renews itself.
With every control plane down a node starts from its sealed last-known-good copy.

SIGUSR2 starts a successor: the binary that is then at this one's path, with the
same arguments, on the same open sockets. Once it is ready this process drains; no
connection is refused in between. A service manager may pass the sockets too
(LISTEN_FDS), by the names that --listen gives them.`,
		Example: "  portcullis join-token create | portcullis dataplane --control 10.0.0.5:8443 --listen :8080 --listen https=:8443 --join-token -",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if len(f.nats.urls) > 0 {
				if cfg.Bus, err = f.nats.nats(); err != nil {
					return err
				}
			}
			return runDataplane(cmd, cfg, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Name, "name", defaultName(), "name of the node, unique in the cluster")
	flags.StringVar(&cfg.DataDir, "data-dir", "portcullis-node", "where identity and last-known-good copies are kept")
	flags.StringSliceVar(&cfg.Control, "control", []string{"127.0.0.1:8443"}, "address of a control plane; may be repeated")
	flags.StringVar(&f.token, "join-token", "", "join token: env:NAME, file:PATH or '-' for standard input; only needed the first time")
	flags.StringSliceVar(&f.listen, "listen", []string{"127.0.0.1:8080"}, listenUsage)
	flags.StringVar(&f.metrics, "metrics-listen", "127.0.0.1:9464", "address of metrics and probes (/metrics, /readyz, /livez); empty: none")
	flags.StringVar(&f.debug, "debug-listen", "", "loopback address of profiles (/debug/pprof/), for finding out where time goes (default: none)")
	flags.StringSliceVar(&f.nats.urls, "nats-urls", nil, "external NATS (default: where the control plane says)")
	flags.StringVar(&f.nats.credentials, "nats-credentials", "", "NATS credentials file")
	f.nats.add(cmd, "nats", "NATS")
	flags.StringVar(&cfg.Zone, "zone", "", zoneUsage)
	flags.DurationVar(&cfg.Grace, "drain-grace", 0, "how long a stopping node goes on accepting, so that balancers notice")
	f.add(cmd)
	f.addNode(cmd)
	return cmd
}

// joinTokenOf reads the token from where the flag says. A token on the command
// line itself would be visible to every user of the machine.
func joinTokenOf(cmd *cobra.Command, where string) (string, error) {
	switch {
	case where == "":
		return "", nil
	case where == "-":
		return argOrStdin(cmd, nil)
	case strings.HasPrefix(where, "env:") || strings.HasPrefix(where, "file:"):
		value, err := secret.Resolve(where)
		return strings.TrimSpace(value.Reveal()), err
	}
	return "", errors.New("--join-token: expected env:NAME, file:PATH or '-', so that no process list shows the token")
}

func runDataplane(cmd *cobra.Command, cfg dataplane.Config, f *nodeFlags) (err error) {
	given, err := inherit(firstPassed)
	if err != nil {
		return err
	}
	defer given.close()
	if !given.successor {
		if cfg.JoinToken, err = joinTokenOf(cmd, f.token); err != nil {
			return err
		}
	}
	log, err := f.logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	access, closeAccess, err := f.openAccessLog(cmd.OutOrStdout())
	if err != nil {
		return err
	}
	defer closeAccess()
	cfg.Log, cfg.AccessLog, cfg.Release, cfg.Drain = log, access, release, f.drain
	cfg.Telemetry = telemetry.Config{Endpoint: f.otlp}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	lock := given.take(lockFile)
	if lock == nil {
		if lock, err = lockDir(cfg.DataDir); err != nil {
			return err
		}
	}
	defer lock.Close()
	s := &sockets{lock: lock}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(given, f, cmd.Flags().Changed("listen")); err != nil {
		return err
	}
	stopDebug, err := serveDebug(s.debug)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopDebug()) }()
	cfg.Listeners, cfg.Metrics, cfg.Packets, cfg.Limits = s.clients, s.metrics, s.packets, given.take(limitsPipe)
	if err := limitMemory(log); err != nil {
		return err
	}
	node, err := dataplane.New(cmd.Context(), cfg)
	if err != nil {
		return err
	}
	return serveNode(cmd, node, given, s, log)
}

// serveNode runs the node until it is told to stop, or has a successor.
func serveNode(cmd *cobra.Command, node *dataplane.Node, given *passed, s *sockets, log *slog.Logger) error {
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	next := &succession{
		binary: binary, args: os.Args[1:], log: log,
		files: func() (map[string]*os.File, error) { return successorFiles(node, s, log) },
		pause: func() { node.KeepOff(true) }, resume: func() { node.KeepOff(false) },
	}
	beside := make(chan struct{})
	go func() {
		defer close(beside)
		if !announceNode(ctx, cmd, node) {
			return
		}
		if err := given.ready(); err != nil {
			log.Error("whoever started this process cannot be told that it serves", "error", err)
		}
		if next.run(ctx) == nil {
			node.HandOver()
		}
	}()
	err = node.Run(cmd.Context())
	cancel()
	<-beside
	return err
}

// successorFiles are all that a successor is passed.
func successorFiles(node *dataplane.Node, s *sockets, log *slog.Logger) (map[string]*os.File, error) {
	files, err := s.files()
	if err != nil {
		return nil, err
	}
	packets, err := node.Packets()
	if err != nil {
		// Clients come by TCP until this process has left the ports.
		log.Warn("the successor does not take over HTTP/3's connections", "error", err)
	}
	maps.Copy(files, packets)
	limits, err := node.LimitsForSuccessor()
	if err != nil {
		log.Warn("the successor begins with fresh limits", "error", err)
	} else {
		files[limitsPipe] = limits
	}
	return files, nil
}

// announceNode says once when the node is ready, and whether it has become so
// before ctx ended.
func announceNode(ctx context.Context, cmd *cobra.Command, node *dataplane.Node) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if node.Ready() == nil {
			fmt.Fprintf(cmd.OutOrStdout(), "ready\n  node      http://%s\n", node.Address())
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// sockets are all that the role listens on, and the lock of its data directory.
type sockets struct {
	clients        map[string]net.Listener
	metrics, debug net.Listener
	lock           *os.File
	packets        map[string]*os.File
}

// open takes the sockets that were passed and opens the others. What was passed
// precedes the defaults of flags: then nobody asked for these.
func (s *sockets) open(given *passed, f *nodeFlags, asked bool) (err error) {
	addresses, err := parseListen(f.listen)
	if err != nil {
		return err
	}
	if names := given.names(); len(names) > 0 {
		if !asked {
			clear(addresses)
		}
		for _, name := range names {
			addresses[name] = ""
		}
	}
	if s.clients, err = openSockets(given, addresses); err != nil {
		return err
	}
	if f.metrics != "" {
		if s.metrics, err = given.listen(metricsSocket, f.metrics); err != nil {
			return explainListen(err)
		}
	}
	if f.debug != "" {
		if err := loopbackOnly("--debug-listen", f.debug); err != nil {
			return err
		}
		if s.debug, err = given.listen(debugSocket, f.debug); err != nil {
			return explainListen(err)
		}
	}
	s.packets = given.packets()
	return given.left()
}

// all returns every socket by name.
func (s *sockets) all() map[string]net.Listener {
	all := map[string]net.Listener{}
	for name, ln := range s.clients {
		all[name] = ln
	}
	if s.metrics != nil {
		all[metricsSocket] = s.metrics
	}
	if s.debug != nil {
		all[debugSocket] = s.debug
	}
	return all
}

// files returns duplicates of all for a successor.
func (s *sockets) files() (map[string]*os.File, error) {
	files := map[string]*os.File{}
	fail := func(name string, err error) (map[string]*os.File, error) {
		for _, f := range files {
			_ = f.Close()
		}
		return nil, fmt.Errorf("socket %q: %w", name, err)
	}
	for name, ln := range s.all() {
		tcp, ok := ln.(*net.TCPListener)
		if !ok {
			return fail(name, errors.New("cannot be passed on"))
		}
		file, err := duplicateSocket(tcp)
		if err != nil {
			return fail(name, err)
		}
		files[name] = file
	}
	lock, err := duplicate(s.lock)
	if err != nil {
		return fail(lockFile, err)
	}
	files[lockFile] = lock
	return files, nil
}

// close closes what is still open; a node closes its own.
func (s *sockets) close() error {
	var errs []error
	for _, ln := range s.all() {
		if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
