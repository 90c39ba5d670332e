package main

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
)

// line is one peer in one scenario, over all rounds. A scenario that is only there
// to compare another with bears its own name, and that one's group.
type line struct {
	Group    string  `json:"group"`
	Scenario string  `json:"scenario"`
	Title    string  `json:"title"`
	Peer     string  `json:"peer"`
	CPU      *spread `json:"cpu_us,omitempty"`
	System   *spread `json:"system_us,omitempty"`
	Busy     *spread `json:"busy,omitempty"`
	Rate     *spread `json:"rate,omitempty"`
	P50      *spread `json:"p50_us,omitempty"`
	P99      *spread `json:"p99_us,omitempty"`
	Resident *spread `json:"resident_bytes,omitempty"`
	Rounds   []cell  `json:"rounds,omitempty"`
	Problem  string  `json:"problem,omitempty"`
}

// report is all that a run says.
type report struct {
	Machine  string            `json:"machine"`
	Method   string            `json:"method"`
	Took     string            `json:"took"`
	Windows  windows           `json:"windows"`
	Absent   map[string]string `json:"not_measured,omitempty"`
	Lines    []line            `json:"lines"`
	Verdicts []verdict         `json:"targets"`
	Idle     []idleReading     `json:"idle,omitempty"`
	Apply    *applyReading     `json:"apply,omitempty"`
	Profiles []profile         `json:"profiles,omitempty"`
}

func (m *run) report() *report {
	o := m.rig.options
	load, _ := os.ReadFile("/proc/loadavg") // Elsewhere than on Linux nothing has been measured.
	r := &report{
		Machine: fmt.Sprintf("%d processors (gateways on %v, load on %v), %s, %s; load average %.14s", runtime.NumCPU(), o.proxyCPUs, o.loadCPUs,
			runtime.GOARCH, runtime.Version(), load),
		Method: fmt.Sprintf(`CPU is the processor time of the gateway's process per request: median of %d rounds (min-max).
A round is %d passes over the peers of a scenario and what targets compare it with, a slice of %v each, summed up; peers that cost several times as much are in one pass.
A target compares within a round, so within a minute; its range is over the rounds. Each round starts anew the gateways whose targets are near what they cost.
The load's processors are kept awake by a process that runs when nobody else wants to. BUSY is the gateway's share of its processor: the load limits where it is below 100 %%.`,
			o.rounds, o.passes, o.duration),
		Windows: m.windows, Absent: m.absent, Idle: m.idle, Apply: m.apply, Profiles: m.profiles,
	}
	for _, g := range plan(o.scenarios.MatchString, peers()) {
		for _, each := range g.members {
			if one := m.series[seriesKey{g.name, each.cell()}]; one != nil {
				r.Lines = append(r.Lines, lineOf(g.title(each), one))
			}
		}
	}
	for _, g := range goals() {
		if o.scenarios.MatchString(g.group) {
			r.Verdicts = append(r.Verdicts, m.judge(g))
		}
	}
	r.Verdicts = append(r.Verdicts, m.judgeIdle()...)
	if m.apply != nil {
		r.Verdicts = append(r.Verdicts, judgeApply(m.apply))
	}
	return r
}

// title is what the table calls a member of the group.
func (g group) title(m member) string {
	if m.scenario.name == g.name {
		return m.scenario.title
	}
	return fmt.Sprintf("  (%s beside %s)", m.scenario.name, g.name)
}

func lineOf(title string, s *series) line {
	l := line{Group: s.key.group, Scenario: s.key.cell.scenario, Title: title, Peer: s.key.cell.peer, Problem: s.problem, Rounds: s.cells}
	if len(s.cells) == 0 {
		return l
	}
	over := func(of func(cell) float64) *spread {
		values := make([]float64, len(s.cells))
		for i, c := range s.cells {
			values[i] = of(c)
		}
		all := spreadOf(values)
		return &all
	}
	l.CPU, l.System, l.Busy = over(func(c cell) float64 { return c.CPU }), over(func(c cell) float64 { return c.System }), over(func(c cell) float64 { return c.Busy })
	l.Rate, l.P50 = over(func(c cell) float64 { return c.Rate }), over(func(c cell) float64 { return c.P50 })
	l.P99, l.Resident = over(func(c cell) float64 { return c.P99 }), over(func(c cell) float64 { return float64(c.Resident) })
	return l
}

func (r *report) write(file string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

func (r *report) verdict(strict bool) error {
	bad := 0
	for _, v := range r.Verdicts {
		if v.Result == resultShort || v.Result == resultNone {
			bad++
		}
	}
	if strict && bad > 0 {
		return fmt.Errorf("%d of %d targets are short or could not be measured", bad, len(r.Verdicts))
	}
	return nil
}
