package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

const (
	// applyLasts is how long a window is; an apply falls into each of its seconds.
	applyLasts = 3 * time.Second
	// applyPairs is how many windows of either kind each round is worth.
	applyPairs = 2
)

// applyWindow is a window at half of saturation.
type applyWindow struct {
	paced
	// CPU is the node's processor time.
	CPU time.Duration `json:"cpu_ns"`
	// Applies ended in the window, the slowest took Slowest until the node ran it.
	Applies int           `json:"applies"`
	Slowest time.Duration `json:"slowest_ns"`
	disturbance
}

// applyReading is p99 at half of saturation while 10,000 routes are applied every
// second, beside p99 without: windows of either kind in turn.
type applyReading struct {
	Rate     float64       `json:"rate"`
	Calm     []applyWindow `json:"calm"`
	Applying []applyWindow `json:"applying"`
	err      error
}

// applying measures in a cluster of its own: its control plane gives way to load
// and upstream, with whom it shares processors, and so does its operator. Else
// their delays would be taken for the gateway's. They are nice, not SCHED_IDLE:
// with that, not one apply came through in 18 s.
func (m *run) applying(ctx context.Context) *applyReading {
	all := &applyReading{}
	if why, absent := m.absent["portcullis"]; absent {
		all.err = errors.New("portcullis: " + why)
		return all
	}
	all.err = m.applyingTo(ctx, all)
	return all
}

func (m *run) applyingTo(ctx context.Context, all *applyReading) error {
	c := m.rig.cluster(applyScenario, setupMyriad, string(setupMyriad))
	if err := c.start(ctx, m.rig); err != nil {
		return err
	}
	defer c.stop()
	g := c.gateway()
	if err := m.rig.proves(ctx, g, setupMyriad); err != nil {
		return err
	}
	path := setupMyriad.prefix(0) + smallPath
	// The first answers are slow: connections and buffers are made.
	if _, err := m.rig.send(ctx, g.address, shape{path: path}, time.Second); err != nil {
		return err
	}
	full, _, err := quietest(&m.windows, func() (slice, disturbance, error) { return m.window(ctx, g, shape{path: path}) })
	if err != nil {
		return err
	}
	all.Rate = float64(full.Requests) / full.Lasted.Seconds() / 2
	for pair := range applyPairs * m.rig.options.rounds {
		// Either kind is first in every other pair.
		for i := range 2 {
			with := (pair+i)%2 == 1
			one, seen, err := quietest(&m.windows, func() (applyWindow, disturbance, error) { return m.applyWindow(ctx, g, path, all.Rate, with) })
			if err != nil {
				return err
			}
			one.disturbance = seen
			kind := &all.Calm
			if with {
				kind = &all.Applying
			}
			*kind = append(*kind, one)
			say("apply %d  applied %v  p50 %v  p99 %v  %d applies, slowest %v, node %v", pair+1, with, one.P50, one.P99, one.Applies, one.Slowest.Round(time.Millisecond), one.CPU)
		}
	}
	if values := all.ratios(); m.rig.options.profiles && spreadOf(values).Median > applyBound {
		m.profileApplying(ctx, g, path, all.Rate)
	}
	return nil
}

// applyWindow measures one window, with or without an operator who applies.
func (m *run) applyWindow(ctx context.Context, g *gateway, path string, rate float64, with bool) (one applyWindow, d disturbance, err error) {
	parts := append([]*process{g.process, g.cluster.control, m.rig.upstream.process}, m.rig.awake...)
	var o *process
	if with {
		if o, err = m.reapplying(ctx, g.cluster); err != nil {
			return one, d, err
		}
		defer o.stop()
		parts = append(parts, o)
	}
	before, err := observe(parts)
	if err != nil {
		return one, d, err
	}
	began := time.Now()
	var spent time.Duration
	if one.paced, spent, err = m.paced(ctx, g.address, path, rate, applyLasts); err != nil {
		return one, d, err
	}
	ended := time.Now()
	after, err := observe(parts)
	if err != nil {
		return one, d, err
	}
	if d, err = before.host.between(after.host, after.known-before.known+spent); err != nil {
		return one, d, err
	}
	one.CPU = after.gateway.cpu - before.gateway.cpu
	if with {
		o.stop()
		one.Applies, one.Slowest, err = countApplies(o.said.raw(), began, ended)
	}
	return one, d, err
}

// paced runs the open-loop sender as a process of its own, and returns how much
// processor time that had.
func (m *run) paced(ctx context.Context, address, path string, rate float64, lasts time.Duration) (out paced, spent time.Duration, err error) {
	self, err := os.Executable()
	if err != nil {
		return out, 0, err
	}
	text, spent, err := m.rig.tool(ctx, self, "pace", "-address", address, "-path", path, "-rate", fmt.Sprint(rate),
		"-connections", fmt.Sprint(m.rig.options.connections), "-duration", lasts.String())
	if err != nil {
		return out, 0, err
	}
	return out, spent, json.Unmarshal([]byte(text), &out)
}

// reapplying starts an operator who applies all routes every second, and returns
// when the first apply is through.
func (m *run) reapplying(ctx context.Context, c *portcullis) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := launch(command{name: "reapply", args: []string{"nice", "-n", "19", self, "reapply", "-dir", c.dir}, cpus: m.rig.options.loadCPUs})
	if err != nil {
		return nil, err
	}
	err = p.until(ctx, startLimit, func() error {
		if !p.said.has("\n") {
			return errors.New("it has applied nothing")
		}
		return nil
	})
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// countApplies reads what the operator said: which applies ended in a window.
func countApplies(said string, began, ended time.Time) (n int, slowest time.Duration, err error) {
	for line := range strings.Lines(said) {
		var one applied
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			return 0, 0, fmt.Errorf("reapply: %s", said)
		}
		if !one.Ended.Before(began) && !one.Ended.After(ended) {
			n++
			slowest = max(slowest, one.Took)
		}
	}
	return n, slowest, nil
}

// ratios are p99 with applies over p99 without, pair by pair.
func (a *applyReading) ratios() []float64 {
	p99 := func(all []applyWindow) (out []float64) {
		for _, each := range all {
			out = append(out, float64(each.P99))
		}
		return out
	}
	return ratios(p99(a.Applying), p99(a.Calm))
}

// note says what the ratio comes from.
func (a *applyReading) note() string {
	over := func(all []applyWindow, of func(applyWindow) float64) spread {
		values := make([]float64, len(all))
		for i, each := range all {
			values[i] = of(each)
		}
		return spreadOf(values)
	}
	micros := func(w applyWindow) float64 { return microseconds(w.P99) }
	cpu := func(w applyWindow) float64 { return w.CPU.Seconds() / applyLasts.Seconds() }
	n, slowest := 0, time.Duration(0)
	for _, each := range a.Applying {
		n, slowest = n+each.Applies, max(slowest, each.Slowest)
	}
	seconds := len(a.Applying) * int(applyLasts.Seconds())
	text := fmt.Sprintf("%.0f requests/s, p99 %s µs undisturbed, %s µs while applied; %d applies in %d s, %d routes changed by each, slowest until enforced %v; node busy %.0f %%, %.0f %% while applied",
		a.Rate, over(a.Calm, micros).digits(0), over(a.Applying, micros).digits(0), n, seconds, changedEach, slowest.Round(time.Millisecond),
		100*over(a.Calm, cpu).Median, 100*over(a.Applying, cpu).Median)
	if n < seconds {
		text = "NOT EVERY SECOND: " + text
	}
	return text
}
