package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// rig is what all measurements share: the upstream, the tokens, the collector of
// traces, a folder, and the gateways that already run.
type rig struct {
	options   options
	dir       string
	tokens    *tokens
	upstream  *gateway
	collector *collector
	goPeers   goPeers
	built     struct {
		once sync.Once
		err  error
	}
	// running are the gateways by peer and set-up; a failed start is not tried again.
	running map[string]started
	// shapes are what scenarios send.
	shapes   map[string]shape
	awake    []*process
	clusters map[string]*portcullis
}

type started struct {
	*gateway
	err error
}

func newRig(ctx context.Context, o options) (r *rig, err error) {
	r = &rig{options: o, running: map[string]started{}, shapes: map[string]shape{}, clusters: map[string]*portcullis{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return r, err
	}
	if r.dir, err = os.MkdirTemp("", "portcullis-peers-"); err != nil {
		return r, err
	}
	if err := os.WriteFile(filepath.Join(r.dir, "requests.lua"), requestsScript, 0o600); err != nil {
		return r, err
	}
	raiseFiles()
	say("signing %d tokens", manyTokens)
	if r.tokens, err = newTokens(r.dir, manyTokens); err != nil {
		return r, err
	}
	if r.collector, err = startCollector(); err != nil {
		return r, err
	}
	return r, r.startUpstream(ctx)
}

// raiseFiles lets this process and those that it starts have as many files as the
// system allows.
func raiseFiles() {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
		limit.Cur = limit.Max
		// Whether it is enough is seen by who needs many.
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
}

func (r *rig) startUpstream(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	p, err := launch(command{name: "upstream", args: []string{self, "upstream"}, cpus: r.options.loadCPUs})
	if err != nil {
		return err
	}
	r.upstream = &gateway{process: p}
	return p.until(ctx, startLimit, func() error {
		fields := strings.Fields(p.said.String())
		if len(fields) != 2 {
			return errors.New("it has not said where it listens")
		}
		r.upstream.address = fields[1]
		return nil
	})
}

// tree returns the root of this source tree.
func (r *rig) tree(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", root).Output()
	if err != nil {
		return "", fmt.Errorf("finding the source tree: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// gateway returns the peer running in the set-up, which it starts at first use:
// it then stands idle while others are measured.
func (r *rig) gateway(ctx context.Context, p peer, s setup) (*gateway, error) {
	key := p.name + "/" + string(s)
	if have, ok := r.running[key]; ok {
		return have.gateway, have.err
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	g, err := p.start(ctx, r, s, address)
	if ctx.Err() == nil {
		r.running[key] = started{g, err}
	}
	return g, err
}

// renew stops the gateways of some peers: their next use starts them again.
func (r *rig) renew(peers []string) {
	var ending sync.WaitGroup
	for key, each := range r.running {
		if name, _, _ := strings.Cut(key, "/"); each.err == nil && slices.Contains(peers, name) {
			ending.Go(each.stop)
			delete(r.running, key)
		}
	}
	ending.Wait()
}

// list writes what a load generator sends in turn, and returns the file's name.
func (r *rig) list(name string, count int, line func(i int) (path, token string)) (string, error) {
	var text strings.Builder
	for i := range count {
		path, token := line(i)
		fmt.Fprintf(&text, "%s\t%s\n", path, token)
	}
	file := filepath.Join(r.dir, name)
	return file, os.WriteFile(file, []byte(text.String()), 0o600)
}

func (r *rig) close() error {
	var ending sync.WaitGroup
	for _, each := range r.running {
		if each.gateway != nil {
			ending.Go(each.stop)
		}
	}
	ending.Wait()
	for _, c := range r.clusters {
		c.stop()
	}
	for _, p := range r.awake {
		p.stop()
	}
	if r.upstream != nil {
		r.upstream.stop()
	}
	if r.collector != nil {
		r.collector.stop()
	}
	if r.dir == "" {
		return nil
	}
	return os.RemoveAll(r.dir)
}

// say tells what is going on, on standard error.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s\n", time.Now().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}
