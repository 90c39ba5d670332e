package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	idleConnections = 10_000
	// settle is how long the connections stand before memory is read.
	settle = 2 * time.Second
)

// idling measures what idle connections make a gateway hold, Portcullis first.
// Each has had one request: its buffers have been in use.
func (m *run) idling(ctx context.Context) (all []reading) {
	for _, p := range m.peers {
		if !p.can(setupPlain) {
			continue
		}
		figure := fmt.Sprintf("%d idle connections, KiB each: %s", idleConnections, p.name)
		each, err := m.idlingOf(ctx, p)
		if ctx.Err() != nil {
			return all
		}
		all = append(all, reading{figure: figure, value: each, err: err, note: "VmRSS of the process, kernel buffers not included"})
		say("%s: %.1f %v", figure, each/1024, err)
	}
	return all
}

func (m *run) idlingOf(ctx context.Context, p peer) (each float64, err error) {
	// A process of its own: what full load has left behind would hide what is new.
	address, err := freeAddress()
	if err != nil {
		return 0, err
	}
	var g *gateway
	if p.name == "portcullis" {
		c := &portcullis{dir: m.rig.dir + "/portcullis-idle"}
		m.rig.clusters["idle"] = c
		if err := c.start(ctx, m.rig, setupPlain, "base"); err != nil {
			return 0, err
		}
		g = &gateway{process: c.node, address: c.address}
		if err := m.rig.proves(ctx, g, setupPlain); err != nil {
			return 0, err
		}
	} else if g, err = p.start(ctx, m.rig, setupPlain, address); err != nil {
		return 0, err
	}
	defer g.stop()
	var open []net.Conn
	defer func() {
		for _, conn := range open {
			_ = conn.Close()
		}
	}()
	// The first ones make what the process has once.
	const first = 100
	var before usage
	for i := range idleConnections + first {
		if i == first {
			if before, err = settled(ctx, g); err != nil {
				return 0, err
			}
		}
		conn, err := useOnce(ctx, g.address, setupPlain.prefix(0)+smallPath)
		if err != nil {
			return 0, fmt.Errorf("connection %d: %w", i, err)
		}
		open = append(open, conn)
	}
	after, err := settled(ctx, g)
	if err != nil {
		return 0, err
	}
	return float64(after.resident-before.resident) / idleConnections, nil
}

func settled(ctx context.Context, g *gateway) (usage, error) {
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return usage{}, ctx.Err()
	}
	return g.usage()
}

// useOnce opens a connection, has one request answered and leaves it open.
func useOnce(ctx context.Context, address, path string) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, address); err != nil {
		return nil, err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 512), nil)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("answered %s", resp.Status)
	}
	return conn, nil
}
