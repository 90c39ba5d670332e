package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// portcullis is a cluster of one control plane and one node, each a process of
// its own: what is accounted for is the node's alone.
type portcullis struct {
	dir           string
	setup         setup
	key           string
	control, node *process
	// listens is where the control plane waits for the node, address and debug where
	// the node serves requests and profiles.
	listens, address, debug string
	err                     error
}

// builtPortcullis builds the binary that is measured.
func builtPortcullis(ctx context.Context, r *rig) error {
	r.built.once.Do(func() {
		if r.options.binary != "" {
			r.options.binary, r.built.err = filepath.Abs(r.options.binary)
			return
		}
		r.options.binary = filepath.Join(r.dir, "portcullis")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", r.options.binary, root+"/deploy/portcullis")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			r.built.err = fmt.Errorf("building the binary: %w: %.500s", err, out)
		}
	})
	return r.built.err
}

// startPortcullis returns the node that serves the set-up. One cluster serves all
// that differ only in their routes' policies; its node is started again when it
// has been stopped.
func startPortcullis(name string) func(context.Context, *rig, setup, string) (*gateway, error) {
	return func(ctx context.Context, r *rig, s setup, _ string) (*gateway, error) {
		key := "base"
		if s.routes() > 1 || s == setupTLS {
			key = string(s)
		}
		c, ok := r.clusters[name+"/"+key]
		switch {
		case !ok:
			c = r.cluster(name+"/"+key, s, key)
			c.err = c.start(ctx, r)
		case c.err == nil && c.node.over():
			c.err = c.startNode(ctx, r, "")
		}
		if c.err != nil {
			return nil, c.err
		}
		return c.gateway(), r.proves(ctx, c.gateway(), s)
	}
}

// cluster returns a new cluster, which ends with the rig.
func (r *rig) cluster(name string, s setup, key string) *portcullis {
	c := &portcullis{dir: filepath.Join(r.dir, "cluster-"+strings.ReplaceAll(name, "/", "-")), setup: s, key: key}
	r.clusters[name] = c
	return c
}

func (c *portcullis) gateway() *gateway {
	return &gateway{process: c.node, address: c.address, debug: c.debug, cluster: c}
}

func (c *portcullis) start(ctx context.Context, r *rig) (err error) {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	var addresses [3]string
	for i := range addresses {
		if addresses[i], err = freeAddress(); err != nil {
			return err
		}
	}
	c.listens = addresses[0]
	// What the control plane does must not keep the load from being sent.
	c.control, err = launch(command{name: "portcullis controlplane", dir: c.dir, cpus: r.options.loadCPUs, args: []string{
		"nice", "-n", "19", r.options.binary, "controlplane", "--name", "cp", "--data-dir", "cp",
		"--control-listen", addresses[0], "--admin-listen", addresses[1], "--bus-listen", addresses[2], "--log-level", "warn",
	}})
	if err != nil {
		return err
	}
	if err := c.control.until(ctx, startLimit, c.control.ready); err != nil {
		return err
	}
	token, err := c.cli(ctx, r, "", "join-token", "create")
	if err != nil {
		return err
	}
	// Refused configuration is refused before a node that might not know the flag.
	if _, err := c.cli(ctx, r, r.declared(c.setup, c.key), "apply", "--no-wait", "-f", "-"); err != nil {
		return err
	}
	return c.startNode(ctx, r, token)
}

// startNode starts the node; only its first start needs a token.
func (c *portcullis) startNode(ctx context.Context, r *rig, token string) (err error) {
	// Ports that were free before may have been taken since.
	for _, address := range []*string{&c.address, &c.debug} {
		if *address, err = freeAddress(); err != nil {
			return err
		}
	}
	args := []string{r.options.binary, "dataplane", "--name", "node", "--data-dir", "node", "--control", c.listens,
		"--metrics-listen", "127.0.0.1:0", "--debug-listen", c.debug, "--otlp-endpoint", r.collector.url(), "--log-level", "warn", "--drain", "1s"}
	if token != "" {
		args = append(args, "--join-token", "-")
	}
	if c.setup == setupTLS {
		clear, err := freeAddress()
		if err != nil {
			return err
		}
		args = append(args, "--listen", clear, "--listen", "https="+c.address)
	} else {
		args = append(args, "--listen", c.address)
	}
	c.node, err = launch(command{
		name: "portcullis dataplane", dir: c.dir, cpus: r.options.proxyCPUs, in: token,
		env: []string{"GOMAXPROCS=" + strconv.Itoa(len(r.options.proxyCPUs))}, args: args,
	})
	if err != nil {
		return err
	}
	return c.node.until(ctx, startLimit, c.node.ready)
}

// ready is whether a role has said that it is.
func (p *process) ready() error {
	if !p.said.has("ready\n") {
		return errors.New("it has not said that it is ready")
	}
	return nil
}

// cli runs the command line as the cluster's first operator.
func (c *portcullis) cli(ctx context.Context, r *rig, in string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, r.options.binary, append([]string{"--context", filepath.Join(c.dir, "cp", "context.yaml")}, args...)...)
	cmd.Stdin = strings.NewReader(in)
	var problems tail
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("portcullis %s: %w: %s", args[0], err, &problems)
	}
	return strings.TrimSpace(string(out)), nil
}

func (c *portcullis) stop() {
	for _, p := range []*process{c.node, c.control} {
		if p != nil {
			p.stop()
		}
	}
}

const declaredUpstream = `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: "http://%s"}]}
`

const declaredIssuer = `---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: peers}
spec: {issuer: %q, jwks: %q}
`

const declaredRoute = `---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: %s}
spec:
  matches: [{path: {prefix: %s}}]
  backends: [{upstream: up}]
  %s
`

const declaredTLS = `---
apiVersion: portcullis.dev/v1
kind: Certificate
metadata: {name: peers}
spec: {certificate: %q, privateKey: %q}
---
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec: {listeners: [{name: http}, {name: https, tls: {certificates: [peers]}}]}
`

// declared is the configuration of the cluster that serves the set-up.
func (r *rig) declared(s setup, key string) string {
	var text strings.Builder
	fmt.Fprintf(&text, declaredUpstream, r.upstream.address)
	switch {
	case s == setupTLS:
		certificate, _ := os.ReadFile(r.tokens.certificate) // This run has just written it.
		private, _ := os.ReadFile(r.tokens.key)
		fmt.Fprintf(&text, declaredTLS, certificate, private)
		fmt.Fprintf(&text, declaredRoute, "tls", s.prefix(0), "public: true")
	case key == "base":
		fmt.Fprintf(&text, declaredIssuer, issuerURL, r.tokens.jwks)
		jwt := fmt.Sprintf("{jwt: {issuers: [peers], audiences: [%q]}}", audience)
		limit := "{rateLimit: {limits: [{name: peers, requests: 10000000, window: 1s}]}}"
		scopes := fmt.Sprintf("{authorize: {rules: [{name: scoped, scopes: [%q]}]}}", scope)
		for s, spec := range map[setup]string{
			setupPlain: "public: true",
			setupJWT:   "policies: [" + jwt + "]",
			setupLimit: "policies: [" + jwt + ", " + limit + "]",
			setupFull:  "policies: [" + jwt + ", " + scopes + ", " + limit + "]\n  revocation: {maxStaleness: 5s}",
		} {
			fmt.Fprintf(&text, declaredRoute, string(s), s.prefix(0), spec)
		}
	default:
		for i := range s.routes() {
			fmt.Fprintf(&text, declaredRoute, fmt.Sprint("route-", i), s.prefix(i), "public: true")
		}
	}
	return text.String()
}
