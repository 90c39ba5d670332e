package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	idleConnections = 10_000
	// settle is how long the connections stand before memory is read.
	settle = 2 * time.Second
)

// idleReading is what one gateway holds for idle connections, in bytes for each.
type idleReading struct {
	Peer string  `json:"peer"`
	Each float64 `json:"each"`
	Note string  `json:"note,omitempty"`
	err  error
}

// idling measures what idle connections make a gateway hold, Portcullis first.
// Each has had one request: its buffers have been in use. What is read is what the
// process holds a moment later, garbage that no collection has come for included:
// none is asked for, since nobody does in production.
func (m *run) idling(ctx context.Context) (all []idleReading) {
	for _, p := range m.peers {
		if !p.can(setupPlain) || strings.HasSuffix(p.name, twin) {
			continue
		}
		one := idleReading{Peer: p.name}
		one.Each, one.Note, one.err = m.idlingOf(ctx, p)
		if ctx.Err() != nil {
			return all
		}
		all = append(all, one)
		say("%d idle connections, KiB each: %s: %.1f %s %v", idleConnections, one.Peer, one.Each/1024, one.Note, one.err)
	}
	return all
}

func (m *run) idlingOf(ctx context.Context, p peer) (each float64, note string, err error) {
	// A process of its own: what full load has left behind would hide what is new.
	var g *gateway
	if p.name == "portcullis" {
		c := m.rig.cluster(idleScenario, setupPlain, "base")
		if err := c.start(ctx, m.rig); err != nil {
			return 0, "", err
		}
		defer c.stop()
		g = c.gateway()
		if err := m.rig.proves(ctx, g, setupPlain); err != nil {
			return 0, "", err
		}
	} else {
		address, err := freeAddress()
		if err != nil {
			return 0, "", err
		}
		if g, err = p.start(ctx, m.rig, setupPlain, address); err != nil {
			return 0, "", err
		}
		defer g.stop()
	}
	was, err := m.heldBy(ctx, g)
	if err != nil {
		return 0, "", err
	}
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
				return 0, "", err
			}
		}
		conn, err := useOnce(ctx, g.address, setupPlain.prefix(0)+smallPath)
		if err != nil {
			return 0, "", fmt.Errorf("connection %d: %w", i, err)
		}
		open = append(open, conn)
	}
	after, err := settled(ctx, g)
	if err != nil {
		return 0, "", err
	}
	// After the figure: to be asked costs the process memory as well.
	is, err := m.heldBy(ctx, g)
	if err != nil {
		return 0, "", err
	}
	resident := float64(after.resident - before.resident)
	return resident / idleConnections, was.until(is, resident), nil
}

// held is what a Go process that serves profiles says about its memory, in bytes.
type held struct {
	heap, stacks float64
	collections  float64
	known        bool
}

var heldLine = regexp.MustCompile(`(?m)^# (HeapInuse|Stack|NumGC) = (\d+)`)

// heldBy asks the process, if it can be asked; that makes it collect no garbage.
func (m *run) heldBy(ctx context.Context, g *gateway) (held, error) {
	if g.debug == "" {
		return held{}, nil
	}
	text, err := fetch(ctx, "http://"+g.debug+"/debug/pprof/heap?debug=1", settle)
	if err != nil {
		return held{}, err
	}
	return parseHeld(string(text))
}

// parseHeld reads the runtime's memory statistics at the end of a heap profile as
// text (runtime/pprof, runtime.MemStats).
func parseHeld(text string) (h held, err error) {
	for _, match := range heldLine.FindAllStringSubmatch(text, -1) {
		value, err := strconv.ParseFloat(match[2], 64)
		if err != nil {
			return h, err
		}
		switch match[1] {
		case "HeapInuse":
			h.heap = value
		case "Stack":
			h.stacks = value
		case "NumGC":
			h.collections = value
		}
	}
	if h.known = h.heap > 0 && h.stacks > 0; !h.known {
		return h, fmt.Errorf("not a heap profile with the runtime's statistics: %.100q", text)
	}
	return h, nil
}

// until says what so many more resident bytes are made of.
func (was held) until(is held, resident float64) string {
	if !was.known || !is.known {
		return ""
	}
	kib := func(bytes float64) float64 { return bytes / idleConnections / 1024 }
	heap, stacks := is.heap-was.heap, is.stacks-was.stacks
	return fmt.Sprintf("heap %.1f, stacks %.1f, the rest (freed spans, the runtime's own tables) %.1f; %.0f collections meanwhile, none asked for",
		kib(heap), kib(stacks), kib(resident-heap-stacks), is.collections-was.collections)
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
