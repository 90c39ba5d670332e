package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// series is one peer's cells in one scenario and group over the rounds; after an
// error there are no more.
type series struct {
	key     seriesKey
	cells   []cell
	problem string
}

// run is one whole measurement.
type run struct {
	rig    *rig
	peers  []peer
	absent map[string]string
	series map[seriesKey]*series
	// warmed are the gateways, by process, and what they have learned.
	warmed  map[string]bool
	windows windows
	// idle and apply are measured by themselves.
	idle     []idleReading
	apply    *applyReading
	profiles []profile
}

func newRun(r *rig) *run {
	return &run{rig: r, absent: map[string]string{}, series: map[seriesKey]*series{}, warmed: map[string]bool{}}
}

// all measures everything that is asked for. What cannot be measured says why and
// costs its own rows only.
func (m *run) all(ctx context.Context) error {
	o := m.rig.options
	if err := m.choose(ctx); err != nil {
		return err
	}
	// Compilers have used every processor; from here on the gateways have theirs.
	if err := pinSelf(o.loadCPUs); err != nil {
		return err
	}
	if err := m.rig.keepAwake(ctx); err != nil {
		return err
	}
	groups := plan(o.scenarios.MatchString, m.peers)
	m.windows.spare = o.rounds * slicesOf(groups, o.passes) / 3
	if o.scenarios.MatchString(applyScenario) {
		m.windows.spare += o.rounds * applyPairs
	}
	for round := range o.rounds {
		if round > 0 {
			// Instances of one program differ, for as long as they live: by where their
			// memory lies, for one.
			m.rig.renew(renewed)
		}
		for _, g := range groups {
			if err := m.group(ctx, g, round); err != nil {
				return err
			}
		}
	}
	if o.scenarios.MatchString(applyScenario) {
		m.apply = m.applying(ctx)
	}
	if o.scenarios.MatchString(idleScenario) {
		m.idle = m.idling(ctx)
	}
	if o.profiles {
		m.profile(ctx)
	}
	return ctx.Err()
}

// renewed are the peers whose gateways each round starts anew: those whose targets
// are near what they cost.
var renewed = append([]string{"portcullis" + twin, "nginx" + twin}, near...)

// choose finds out which peers and tools are there.
func (m *run) choose(ctx context.Context) error {
	for _, p := range peers() {
		if !m.rig.options.peers.MatchString(p.name) {
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
	return nil
}

// group measures one round of one group: pass by pass, its members one after the
// other.
func (m *run) group(ctx context.Context, g group, round int) error {
	taken := map[cellName][]slice{}
	fails := func(each member, err error) error {
		one := m.seriesOf(seriesKey{g.name, each.cell()})
		if err != nil && one.problem == "" && ctx.Err() == nil {
			one.problem = oneLine(err)
			say("NOT MEASURED: %s, %s: %s", g.name, each.cell(), one.problem)
		}
		return ctx.Err()
	}
	for _, each := range g.members {
		if err := fails(each, m.warm(ctx, each)); err != nil {
			return err
		}
	}
	for pass := range m.rig.options.passes {
		for _, each := range g.pass(m.rig.options.passes, round, pass) {
			if m.seriesOf(seriesKey{g.name, each.cell()}).problem != "" {
				continue
			}
			one, err := m.slice(ctx, each)
			if err := fails(each, err); err != nil {
				return err
			}
			taken[each.cell()] = append(taken[each.cell()], one)
		}
	}
	for _, each := range g.members {
		if one := m.seriesOf(seriesKey{g.name, each.cell()}); one.problem == "" {
			c := cellOf(taken[each.cell()])
			one.cells = append(one.cells, c)
			say("round %d  %-11s %-28s %7.1f µs  %8.0f/s  p50 %6.0f µs  p99 %7.0f µs  %5.1f MB", round+1, g.name, each.cell(),
				c.CPU, c.Rate, c.P50, c.P99, float64(c.Resident)/1e6)
		}
	}
	return nil
}

func (m *run) seriesOf(key seriesKey) *series {
	if m.series[key] == nil {
		m.series[key] = &series{key: key}
	}
	return m.series[key]
}

// slice loads one gateway for one pass, again while it is disturbed.
func (m *run) slice(ctx context.Context, each member) (slice, error) {
	g, sent, err := m.ready(ctx, each)
	if err != nil {
		return slice{}, err
	}
	one, seen, err := quietest(&m.windows, func() (slice, disturbance, error) { return m.window(ctx, g, sent) })
	one.disturbance = seen
	return one, err
}

func (m *run) ready(ctx context.Context, each member) (*gateway, shape, error) {
	g, err := m.rig.gateway(ctx, each.peer, each.scenario.setup)
	if err != nil {
		return nil, shape{}, err
	}
	sent, err := m.rig.shape(each.scenario)
	return g, sent, err
}

// window loads one gateway once.
func (m *run) window(ctx context.Context, g *gateway, sent shape) (one slice, d disturbance, err error) {
	parts := append([]*process{g.process, m.rig.upstream.process}, m.rig.awake...)
	before, err := observe(parts)
	if err != nil {
		return one, d, err
	}
	seen, err := m.rig.send(ctx, g.address, sent, m.rig.options.duration)
	if err != nil {
		return one, d, err
	}
	after, err := observe(parts)
	if err != nil {
		return one, d, err
	}
	if d, err = before.host.between(after.host, after.known-before.known+seen.spent); err != nil {
		return one, d, err
	}
	return sliceOf(before.gateway, after.gateway, seen), d, nil
}

// observed is a reading before or after a window.
type observed struct {
	host    hostTimes
	gateway usage
	// known is the processor time of all that is part of the measurement.
	known time.Duration
}

// observe reads what the machine and these processes have used, the gateway first.
func observe(parts []*process) (o observed, err error) {
	if o.host, err = readHost(); err != nil {
		return o, err
	}
	for i, p := range parts {
		each, err := p.usage()
		if err != nil {
			return o, err
		}
		if i == 0 {
			o.gateway = each
		}
		o.known += each.cpu
	}
	return o, nil
}

// warm loads a gateway that has just been started, until it has seen each distinct
// request at least once: caches fill, buffers and connections are made, and what
// remembers verdicts is not measured while it learns them.
func (m *run) warm(ctx context.Context, each member) error {
	g, sent, err := m.ready(ctx, each)
	if err != nil {
		return err
	}
	key := fmt.Sprint(g.cmd.Process.Pid, " ", sent.lines)
	if m.warmed[key] {
		return nil
	}
	for seen, tries := 0, 0; tries == 0 || seen < 2*sent.distinct && tries < 15; tries++ {
		one, err := m.rig.send(ctx, g.address, sent, time.Second)
		if err != nil {
			return err
		}
		seen += one.requests
	}
	m.warmed[key] = true
	return nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }
