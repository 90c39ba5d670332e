package main

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
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"portcullis.dev/portcullis/dataplane/listen"
	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/telemetry"
)

// runFlags are what all roles share.
type runFlags struct {
	logLevel, logFormat string
	accessLog           string
	otlp                string
	drain               time.Duration
}

func (f *runFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	cmd.Flags().StringVar(&f.logFormat, "log-format", "text", "text or json")
	cmd.Flags().StringVar(&f.otlp, "otlp-endpoint", "", "OpenTelemetry collector, e.g. http://127.0.0.1:4317 (default $OTEL_EXPORTER_OTLP_ENDPOINT)")
}

const zoneUsage = "where the node stands, for upstreams with balance.zoneAware, e.g. eu-1a"

func (f *runFlags) addNode(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.accessLog, "access-log", "", "file for the JSON access log; '-' is standard output (default: none)")
	cmd.Flags().DurationVar(&f.drain, "drain", 30*time.Second, "how long a stopping node waits for requests in flight")
}

func (f *runFlags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: expected debug, info, warn or error", f.logLevel)
	}
	return telemetry.NewLogger(telemetry.LogConfig{Writer: w, Format: f.logFormat, Level: level})
}

// openAccessLog opens what --access-log names; nil and no error when it names
// nothing.
func (f *runFlags) openAccessLog(stdout io.Writer) (io.Writer, func(), error) {
	switch f.accessLog {
	case "":
		return nil, func() {}, nil
	case "-":
		return stdout, func() {}, nil
	}
	file, err := os.OpenFile(f.accessLog, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, nil, fmt.Errorf("--access-log: %w", err)
	}
	return file, func() { _ = file.Close() }, nil
}

// openAudit opens the audit log of a control plane: one JSON record for each
// authorisation.
func openAudit(path string) (*slog.Logger, func(), error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("audit log: %w", err)
	}
	log, err := telemetry.NewLogger(telemetry.LogConfig{Writer: file, Format: "json", Level: slog.LevelInfo})
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return log, func() { _ = file.Close() }, nil
}

func (c *cli) standalone() *cobra.Command {
	var flags runFlags
	var cfg cluster.Config
	var demo bool
	var listen []string
	cmd := &cobra.Command{
		Use: "standalone", Short: "Run a whole cluster in one process", Args: cobra.NoArgs,
		Long: `Run a whole cluster in one process: a control plane with an embedded store and
bus, and one or more nodes, secured as a cluster of machines is.

The first start writes an operator's credential and the context for the command
line to context.yaml in the data directory (mode 0600). There is no default
password anywhere.`,
		Example: "  portcullis standalone --demo\n  export PORTCULLIS_CONTEXT=portcullis-data/context.yaml\n  portcullis status",
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := flags.logger(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer noSuccession(log)()
			if cfg.Nodes < 1 || cfg.Nodes > 64 {
				return fmt.Errorf("--nodes %d: expected 1 to 64", cfg.Nodes)
			}
			if cfg.Sockets, err = parseListen(listen); err != nil {
				return err
			}
			if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
				return fmt.Errorf("--data-dir: %w", err)
			}
			lock, err := lockDir(cfg.Dir)
			if err != nil {
				return err
			}
			defer lock.Close()
			access, closeAccess, err := flags.openAccessLog(cmd.OutOrStdout())
			if err != nil {
				return err
			}
			defer closeAccess()
			audit, closeAudit, err := openAudit(filepath.Join(cfg.Dir, "audit.log"))
			if err != nil {
				return err
			}
			defer closeAudit()
			cfg.Log, cfg.Audit, cfg.AccessLog, cfg.Release, cfg.Drain = log, audit, access, release, flags.drain
			cfg.Telemetry = telemetry.Config{Endpoint: flags.otlp}
			return runStandalone(cmd, cfg, demo)
		},
	}
	cmd.Flags().StringVar(&cfg.Dir, "data-dir", "portcullis-data", "where store, keys and context are kept")
	cmd.Flags().StringSliceVar(&listen, "listen", []string{"127.0.0.1:8080"}, listenUsage+". It is the first node's; each further node takes the next free port")
	cmd.Flags().StringVar(&cfg.AdminListen, "admin-listen", "127.0.0.1:8081", "address of the admin API")
	cmd.Flags().StringVar(&cfg.MetricsListen, "metrics-listen", "127.0.0.1:9464", "address of the first node's metrics and probes; each further one takes the next free port; empty: none")
	cmd.Flags().IntVar(&cfg.Nodes, "nodes", 1, "how many nodes")
	cmd.Flags().StringVar(&cfg.Zone, "zone", "", zoneUsage)
	cmd.Flags().BoolVar(&demo, "demo", false, "start two demo upstreams and apply a sample configuration")
	cmd.Flags().BoolVar(&cfg.AllowLoopbackJWKS, "allow-loopback-jwks", false, "fetch issuers' keys over http from loopback, for development")
	cmd.Flags().BoolVar(&cfg.ACME.AllowLoopback, "allow-loopback-acme", false, "let the directories of certificate authorities be on loopback, for development")
	flags.add(cmd)
	flags.addNode(cmd)
	return cmd
}

func runStandalone(cmd *cobra.Command, cfg cluster.Config, demo bool) error {
	ctx := cmd.Context()
	started := time.Now()
	starting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := cluster.Start(starting, cfg)
	if err != nil {
		return explainListen(err)
	}
	// Absolute, so that the printed line works in any folder.
	contextPath, err := filepath.Abs(filepath.Join(cfg.Dir, "context.yaml"))
	if err != nil {
		return errors.Join(err, c.Stop())
	}
	err = keepContext(contextPath, c)
	if err == nil && demo {
		var stopDemo func()
		if stopDemo, err = startDemo(starting, c, contextPath); err == nil {
			defer stopDemo()
		}
	}
	if err == nil {
		announce(cmd.OutOrStdout(), c, contextPath, time.Since(started))
		select {
		case err = <-c.Failed():
			err = fmt.Errorf("a part of the cluster has ended: %w", err)
		case <-ctx.Done():
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "stopping: finishing requests in flight (interrupt again to stop at once)")
	}
	return errors.Join(err, c.Stop())
}

// keepContext writes the context of the first operator, or brings the addresses
// of an existing one up to date.
func keepContext(path string, c *cluster.Cluster) error {
	file := contextFile{Address: c.AdminAddress(), CA: string(c.Authorities()), Credential: c.Credential()}
	if file.Credential == "" {
		old, err := (&cli{contextFile: path}).readContext()
		if err != nil {
			return fmt.Errorf("the cluster has operators already, but the context of the first one cannot be read (bring the file back, or begin anew with another --data-dir): %w", err)
		}
		file.Credential = old.Credential
	}
	return writeContext(path, file)
}

func announce(w io.Writer, c *cluster.Cluster, contextPath string, took time.Duration) {
	fmt.Fprintf(w, "ready in %s\n", milliseconds(took))
	for i, sockets := range c.Sockets() {
		for _, name := range slices.Sorted(maps.Keys(sockets)) {
			if name == listen.HTTP {
				fmt.Fprintf(w, "  node %d    http://%s\n", i+1, sockets[name])
			} else {
				fmt.Fprintf(w, "  node %d    %s=%s\n", i+1, name, sockets[name])
			}
		}
	}
	for _, address := range c.MetricsAddresses() {
		fmt.Fprintf(w, "  metrics   http://%s/metrics\n", address)
	}
	fmt.Fprintf(w, "  admin     https://%s\n", c.AdminAddress())
	fmt.Fprintf(w, "  context   export PORTCULLIS_CONTEXT=%s\n", contextPath)
}

// explainListen says what to do when a port is taken.
func explainListen(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "listen" && strings.Contains(err.Error(), "in use") {
		return fmt.Errorf("%w\nAnother process has the port: choose others with --listen, --admin-listen and --metrics-listen", err)
	}
	return err
}
