package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// cell is what one peer did in one scenario, in one round.
type cell struct {
	// CPU is the microseconds of processor time of the gateway per request, of which
	// System are the kernel's.
	CPU    float64 `json:"cpu_us"`
	System float64 `json:"system_us"`
	// Rate is in requests per second, P50 and P99 in microseconds, Resident in bytes.
	Rate     float64 `json:"rate"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	Resident int64   `json:"resident_bytes"`
}

// series is one peer's cells in one scenario over the rounds; after an error there
// are no more.
type series struct {
	scenario, peer string
	cells          []cell
	problem        string
}

// run is one whole measurement.
type run struct {
	rig    *rig
	peers  []peer
	absent map[string]string
	series map[string]*series
	order  []string
	// singles are the figures that are not a ratio of two cells.
	idle     []reading
	apply    []reading
	profiles []profile
}

func newRun(r *rig) *run {
	return &run{rig: r, absent: map[string]string{}, series: map[string]*series{}}
}

// all measures everything that is asked for. What cannot be measured says why and
// costs its own rows only.
func (m *run) all(ctx context.Context) error {
	o := m.rig.options
	for _, p := range peers() {
		if !o.peers.MatchString(p.name) {
			m.absent[p.name] = "left out by -peer"
			continue
		}
		if err := p.missing(ctx, m.rig); err != nil {
			m.absent[p.name] = oneLine(err)
			say("NOT MEASURED: %s: %v", p.name, err)
			continue
		}
		m.peers = append(m.peers, p)
	}
	for _, tool := range []string{"wrk", "h2load"} {
		if err := needs(tool, map[string]string{"wrk": "wrk", "h2load": "nghttp2-client"}[tool])(ctx, m.rig); err != nil {
			return err
		}
	}
	if len(m.peers) == 0 {
		return fmt.Errorf("no peer can be measured: %v", m.absent)
	}
	// Compilers have used every processor; from here on the gateways have theirs.
	if err := pinSelf(o.loadCPUs); err != nil {
		return err
	}
	for round := range o.rounds {
		for _, s := range scenarios() {
			if !o.scenarios.MatchString(s.name) {
				continue
			}
			if err := m.scenario(ctx, s, round); err != nil {
				return err
			}
		}
		if o.scenarios.MatchString(applyScenario) {
			m.apply = append(m.apply, m.applying(ctx))
		}
	}
	if o.scenarios.MatchString(idleScenario) {
		m.idle = m.idling(ctx)
	}
	if o.profiles {
		m.profile(ctx)
	}
	return ctx.Err()
}

// scenario measures one round of one scenario, the peers one after the other.
func (m *run) scenario(ctx context.Context, s scenario, round int) error {
	sent, err := m.rig.shape(s)
	if err != nil {
		return err
	}
	for i := range m.peers {
		// Each round begins with another peer: none always follows the same one.
		p := m.peers[(i+round)%len(m.peers)]
		if !s.asks(p) {
			continue
		}
		one := m.seriesOf(s.name, p.name)
		if one.problem != "" {
			continue
		}
		c, err := m.cell(ctx, p, s, sent, round)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			one.problem = oneLine(err)
			say("NOT MEASURED: %s, %s: %s", s.name, p.name, one.problem)
			continue
		}
		one.cells = append(one.cells, c)
		say("round %d  %-11s %-11s %7.1f µs  %8.0f/s  p50 %6.0f µs  p99 %7.0f µs  %5.1f MB", round+1, s.name, p.name,
			c.CPU, c.Rate, c.P50, c.P99, float64(c.Resident)/1e6)
	}
	return nil
}

func (m *run) seriesOf(scenario, peer string) *series {
	key := scenario + "/" + peer
	if m.series[key] == nil {
		m.series[key] = &series{scenario: scenario, peer: peer}
		m.order = append(m.order, key)
	}
	return m.series[key]
}

// cell loads one gateway. The first time it is warmed up: caches fill, buffers
// and connections are made.
func (m *run) cell(ctx context.Context, p peer, s scenario, sent shape, round int) (cell, error) {
	g, err := m.rig.gateway(ctx, p, s.setup)
	if err != nil {
		return cell{}, err
	}
	if round == 0 {
		if err := m.warm(ctx, g, sent); err != nil {
			return cell{}, err
		}
	}
	before, err := g.usage()
	if err != nil {
		return cell{}, err
	}
	seen, err := m.rig.send(ctx, g.address, sent, m.rig.options.duration)
	if err != nil {
		return cell{}, err
	}
	after, err := g.usage()
	if err != nil {
		return cell{}, err
	}
	return cellOf(before, after, seen), nil
}

// warm loads a gateway until it has seen each distinct request at least once: what
// remembers verdicts is not measured while it learns them.
func (m *run) warm(ctx context.Context, g *gateway, sent shape) error {
	for seen, tries := 0, 0; tries == 0 || seen < 2*sent.distinct && tries < 15; tries++ {
		one, err := m.rig.send(ctx, g.address, sent, time.Second)
		if err != nil {
			return err
		}
		seen += one.requests
	}
	return nil
}

func cellOf(before, after usage, seen sample) cell {
	each := func(d time.Duration) float64 { return microseconds(d) / float64(seen.requests) }
	return cell{
		CPU: each(after.cpu() - before.cpu()), System: each(after.system - before.system), Rate: seen.rate,
		P50: microseconds(seen.p50), P99: microseconds(seen.p99), Resident: after.resident,
	}
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
