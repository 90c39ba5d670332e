package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
)

// goPeers builds the Go gateways, which are a module of their own: what they
// depend on is nothing to this one.
type goPeers struct {
	once   sync.Once
	binary string
	err    error
}

const (
	goPeersDir = "loadtest/peers/gopeers"
	root       = "portcullis.dev/portcullis"
)

func builtGoPeers(ctx context.Context, r *rig) error {
	r.goPeers.once.Do(func() {
		r.goPeers.binary = filepath.Join(r.options.cache, "gopeers")
		where, err := r.tree(ctx)
		if err != nil {
			r.goPeers.err = err
			return
		}
		build := exec.CommandContext(ctx, "go", "build", "-o", r.goPeers.binary, ".")
		build.Dir, build.Env = filepath.Join(where, goPeersDir), append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			r.goPeers.err = fmt.Errorf("the Go peers cannot be built: %w: %.300s; needs their modules: go -C %s mod download", err, out, goPeersDir)
		}
	})
	return r.goPeers.err
}

func startGoPeer(name string) func(context.Context, *rig, setup, string) (*gateway, error) {
	return func(ctx context.Context, r *rig, s setup, address string) (*gateway, error) {
		args := []string{r.goPeers.binary, name, "-listen", address, "-upstream", r.upstream.address, "-routes", strconv.Itoa(s.routes())}
		if s == setupTLS {
			args = append(args, "-certificate", r.tokens.certificate, "-key", r.tokens.key)
		}
		return r.run(ctx, s, address, command{name: name, args: args, env: []string{"GOMAXPROCS=" + strconv.Itoa(len(r.options.proxyCPUs))}})
	}
}
