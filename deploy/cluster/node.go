package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"portcullis.dev/portcullis/dataplane"
	"portcullis.dev/portcullis/dataplane/listen"
	"portcullis.dev/portcullis/pkg/bus"
)

// member is one node's place in the cluster; the node in it comes and goes.
type member struct {
	name, metrics string
	// sockets are addresses by name.
	sockets map[string]string

	// mu guards the addresses too; they are read without it by the goroutine that
	// starts and stops the node.
	mu   sync.Mutex
	node *dataplane.Node
	stop func() error
}

func (c *Cluster) addNode(ctx context.Context, i int) error {
	m := &member{name: fmt.Sprintf("node-%d", i+1), sockets: maps.Clone(c.cfg.Sockets), metrics: c.cfg.MetricsListen}
	if i > 0 {
		for name, address := range c.cfg.Sockets {
			if _, port, err := net.SplitHostPort(address); err != nil || port != "0" {
				m.sockets[name] = c.nodes[i-1].sockets[name]
			}
		}
		m.metrics = c.nodes[i-1].metrics
		if c.cfg.MetricsListen == "127.0.0.1:0" {
			m.metrics = c.cfg.MetricsListen
		}
	}
	c.nodes = append(c.nodes, m)
	return c.StartNode(ctx, i)
}

// StartNode starts a node that is not running. The first time it joins with a
// token; later it comes back with its identity and its port.
func (c *Cluster) StartNode(ctx context.Context, i int) error {
	m := c.nodes[i]
	open := func(address string) (net.Listener, error) {
		if m.node != nil {
			return listenAgain(ctx, address)
		}
		return listenFrom(ctx, address, i > 0)
	}
	sockets := map[string]net.Listener{}
	// In order, so that it is the same each time who gets which port.
	for _, name := range slices.Sorted(maps.Keys(m.sockets)) {
		listener, err := open(m.sockets[name])
		if err != nil {
			return errors.Join(err, closeAll(sockets, nil))
		}
		sockets[name] = listener
	}
	var metrics net.Listener
	if m.metrics != "" {
		var err error
		if metrics, err = open(m.metrics); err != nil {
			return errors.Join(err, closeAll(sockets, nil))
		}
	}
	m.mu.Lock()
	for name, listener := range sockets {
		m.sockets[name] = listener.Addr().String()
	}
	if metrics != nil {
		m.metrics = metrics.Addr().String()
	}
	m.mu.Unlock()
	dir := filepath.Join(c.cfg.Dir, "nodes", m.name)
	cfg := dataplane.Config{
		Name: m.name, DataDir: dir, Zone: c.cfg.Zone, Control: []string{c.planeAddress}, Listeners: sockets, Metrics: metrics,
		Bus: bus.NATSConfig{Server: c.server}, Telemetry: c.cfg.Telemetry, AccessLog: c.cfg.AccessLog,
		Drain: c.cfg.Drain, Release: c.cfg.Release, Log: c.cfg.Log.With("node", m.name),
	}
	if _, err := os.Stat(filepath.Join(dir, "identity")); errors.Is(err, os.ErrNotExist) {
		if cfg.JoinToken, err = c.plane.JoinToken(ctx, time.Minute); err != nil {
			return errors.Join(err, closeAll(sockets, metrics))
		}
	}
	if c.cfg.Adjust != nil {
		c.cfg.Adjust(i, &cfg)
	}
	node, err := dataplane.New(ctx, cfg)
	if err != nil {
		return errors.Join(err, closeAll(sockets, metrics))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.node, m.stop = node, c.background(node.Run)
	return nil
}

func closeAll(sockets map[string]net.Listener, metrics net.Listener) error {
	var errs []error
	for _, l := range sockets {
		errs = append(errs, l.Close())
	}
	if metrics != nil {
		errs = append(errs, metrics.Close())
	}
	return errors.Join(errs...)
}

// StopNode drains a node and stops it.
func (c *Cluster) StopNode(i int) error {
	m := c.nodes[i]
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stop == nil {
		return nil
	}
	stop := m.stop
	m.stop = nil
	return stop()
}

// Addresses returns where the nodes serve clients, on the sockets named "http".
func (c *Cluster) Addresses() []string {
	var all []string
	for _, m := range c.nodes {
		m.mu.Lock()
		all = append(all, m.sockets[listen.HTTP])
		m.mu.Unlock()
	}
	return all
}

// Sockets returns where the nodes serve clients, by the sockets' names.
func (c *Cluster) Sockets() []map[string]string {
	var all []map[string]string
	for _, m := range c.nodes {
		m.mu.Lock()
		all = append(all, maps.Clone(m.sockets))
		m.mu.Unlock()
	}
	return all
}

// MetricsAddresses returns where the nodes serve metrics and probes.
func (c *Cluster) MetricsAddresses() []string {
	var all []string
	for _, m := range c.nodes {
		m.mu.Lock()
		if m.metrics != "" {
			all = append(all, m.metrics)
		}
		m.mu.Unlock()
	}
	return all
}

// Node returns a node, running or not.
func (c *Cluster) Node(i int) *dataplane.Node {
	m := c.nodes[i]
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.node
}
