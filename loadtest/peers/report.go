package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
)

const (
	resultOK    = "ok"
	resultShort = "SHORT"
	resultNone  = "not measured"
)

// reading is a figure that is not processor time per request.
type reading struct {
	figure string
	value  float64
	note   string
	err    error
}

// line is one peer in one scenario, over all rounds.
type line struct {
	Scenario string  `json:"scenario"`
	Title    string  `json:"title"`
	Peer     string  `json:"peer"`
	CPU      *spread `json:"cpu_us,omitempty"`
	System   *spread `json:"system_us,omitempty"`
	Rate     *spread `json:"rate,omitempty"`
	P50      *spread `json:"p50_us,omitempty"`
	P99      *spread `json:"p99_us,omitempty"`
	Resident *spread `json:"resident_bytes,omitempty"`
	Rounds   []cell  `json:"rounds,omitempty"`
	Problem  string  `json:"problem,omitempty"`
}

// verdict is a target beside what was measured.
type verdict struct {
	Figure   string  `json:"figure"`
	Target   string  `json:"target"`
	Measured *spread `json:"measured,omitempty"`
	Result   string  `json:"result"`
	Note     string  `json:"note,omitempty"`
	decimals int
}

// report is all that a run says.
type report struct {
	Machine  string            `json:"machine"`
	Took     string            `json:"took"`
	Absent   map[string]string `json:"not_measured,omitempty"`
	Lines    []line            `json:"lines"`
	Verdicts []verdict         `json:"targets"`
	Profiles []profile         `json:"profiles,omitempty"`
}

func (m *run) report() *report {
	o := m.rig.options
	load, _ := os.ReadFile("/proc/loadavg") // Elsewhere than on Linux nothing has been measured.
	r := &report{
		Machine: fmt.Sprintf("%d processors (gateways on %v, load on %v), %s, %s; %d rounds of %v; load average %.14s", runtime.NumCPU(), o.proxyCPUs, o.loadCPUs,
			runtime.GOARCH, runtime.Version(), o.rounds, o.duration, load),
		Absent: m.absent, Profiles: m.profiles,
	}
	for _, s := range scenarios() {
		for _, p := range peers() {
			if one := m.series[s.name+"/"+p.name]; one != nil {
				r.Lines = append(r.Lines, lineOf(s.title, one))
			}
		}
	}
	for _, g := range goals() {
		if of, _, _ := strings.Cut(g.of, "/"); o.scenarios.MatchString(of) {
			r.Verdicts = append(r.Verdicts, m.judge(g))
		}
	}
	r.Verdicts = append(r.Verdicts, m.singles()...)
	return r
}

func lineOf(title string, s *series) line {
	l := line{Scenario: s.scenario, Title: title, Peer: s.peer, Problem: s.problem, Rounds: s.cells}
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
	l.CPU, l.System = over(func(c cell) float64 { return c.CPU }), over(func(c cell) float64 { return c.System })
	l.Rate, l.P50 = over(func(c cell) float64 { return c.Rate }), over(func(c cell) float64 { return c.P50 })
	l.P99, l.Resident = over(func(c cell) float64 { return c.P99 }), over(func(c cell) float64 { return float64(c.Resident) })
	return l
}

// judge compares two series round by round.
func (m *run) judge(g goal) verdict {
	v := verdict{Figure: g.figure, Target: fmt.Sprintf("<= %.2f x", g.bound), Result: resultNone, decimals: 2}
	var cpu [2][]float64
	for i, key := range []string{g.of, g.by} {
		s := m.series[key]
		_, peer, _ := strings.Cut(key, "/")
		switch {
		case m.absent[peer] != "":
			v.Note = peer + ": " + m.absent[peer]
		case s == nil:
			v.Note = key + " was left out by -run"
		case s.problem != "":
			v.Note = peer + ": " + s.problem
		}
		if v.Note != "" {
			return v
		}
		for _, c := range s.cells {
			cpu[i] = append(cpu[i], c.CPU)
		}
	}
	return decide(v, ratios(cpu[0], cpu[1]), g.bound)
}

// decide completes a verdict about values that must be at most so much.
func decide(v verdict, values []float64, bound float64) verdict {
	if len(values) == 0 {
		if v.Note == "" {
			v.Note = "no round has both"
		}
		return v
	}
	measured := spreadOf(values)
	v.Measured, v.Result = &measured, resultShort
	if measured.Median <= bound {
		v.Result = resultOK
	}
	return v
}

// idleBound is in bytes a connection, applyBound in times the undisturbed p99.
const (
	idleBound  = 12 * 1024
	applyBound = 1.2
)

func (m *run) singles() []verdict {
	var all []verdict
	for i, r := range m.idle {
		v := verdict{Figure: r.figure, Target: "<= 12 KiB", Result: resultNone, Note: r.note, decimals: 2}
		if r.err != nil {
			v.Note = oneLine(r.err)
		} else {
			v = decide(v, []float64{r.value / 1024}, idleBound/1024)
		}
		if i > 0 {
			// The others' are there to compare with.
			v.Target, v.Result = "-", "-"
		}
		all = append(all, v)
	}
	if len(m.apply) > 0 {
		v := verdict{Figure: m.apply[0].figure, Target: fmt.Sprintf("<= %.2f x", applyBound), Result: resultNone, decimals: 2}
		var values []float64
		for _, r := range m.apply {
			v.Note = r.note
			if r.err != nil {
				v.Note = oneLine(r.err)
				continue
			}
			values = append(values, r.value)
		}
		all = append(all, decide(v, values, applyBound))
	}
	return all
}

func (r *report) print(out io.Writer) error {
	fmt.Fprintf(out, "%s; took %s\n", r.Machine, r.Took)
	fmt.Fprintln(out, "Processor time of the gateway's process per request; median (min-max). Gaps under 10-15 % are not resolved.")
	for _, name := range slices.Sorted(maps.Keys(r.Absent)) {
		fmt.Fprintf(out, "NOT MEASURED: %s: %s\n", name, r.Absent[name])
	}
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SCENARIO\tPEER\tCPU µs\tOF IT KERNEL µs\tREQUESTS/s\tP50 µs\tP99 µs\tRSS MB")
	var failed []string
	for _, l := range r.Lines {
		if l.CPU == nil {
			failed = append(failed, fmt.Sprintf("NOT MEASURED: %s, %s: %s\n", l.Title, l.Peer, l.Problem))
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%.1f\t%s\t%s\t%s\t%.1f\t%s\n", l.Title, l.Peer, l.CPU.digits(1), l.System.Median, l.Rate.digits(0),
			l.P50.digits(0), l.P99.digits(0), l.Resident.Median/1e6, l.Problem)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out, strings.Join(failed, ""))
	fmt.Fprintln(table, "FIGURE\tTARGET\tMEASURED\tRESULT\tNOTE")
	counts := map[string]int{}
	for _, v := range r.Verdicts {
		measured := "-"
		if v.Measured != nil {
			measured = v.Measured.digits(v.decimals)
		}
		counts[v.Result]++
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", v.Figure, v.Target, measured, v.Result, v.Note)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, p := range r.Profiles {
		fmt.Fprintf(out, "\n%s\n", p)
	}
	_, err := fmt.Fprintf(out, "\n%d targets: %d ok, %d short, %d not measured\n", counts[resultOK]+counts[resultShort]+counts[resultNone],
		counts[resultOK], counts[resultShort], counts[resultNone])
	return err
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
