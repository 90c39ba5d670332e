package main

import (
	"fmt"
)

const (
	resultOK    = "ok"
	resultShort = "SHORT"
	resultNone  = "not measured"
	// resultOpen is of what has no target.
	resultOpen = "-"
)

// verdict is a target beside what was measured.
type verdict struct {
	Figure   string  `json:"figure"`
	Target   string  `json:"target"`
	Measured *spread `json:"measured,omitempty"`
	Result   string  `json:"result"`
	Note     string  `json:"note,omitempty"`
	decimals int
}

// judge compares two series round by round.
func (m *run) judge(g goal) verdict {
	v := verdict{Figure: g.figure, Target: fmt.Sprintf("<= %.2f x", g.bound), Result: resultNone, decimals: 2}
	if g.bound == 0 {
		v.Target, v.Result = resultOpen, resultOpen
	}
	var cpu [2][]float64
	for i, name := range []cellName{g.of, g.by} {
		s := m.series[seriesKey{g.group, name}]
		switch {
		case m.absent[name.peer] != "":
			v.Note = name.peer + ": " + m.absent[name.peer]
		case s == nil:
			v.Note = name.String() + " was not measured"
		case s.problem != "":
			v.Note = name.peer + ": " + s.problem
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

// decide completes a verdict about values that must be at most so much: their
// median decides, and the reader is told when they lie on both sides.
func decide(v verdict, values []float64, bound float64) verdict {
	if len(values) == 0 {
		if v.Note == "" {
			v.Note = "no round has both"
		}
		return v
	}
	measured := spreadOf(values)
	v.Measured = &measured
	if v.Result == resultOpen {
		return v
	}
	v.Result = resultShort
	if measured.Median <= bound {
		v.Result = resultOK
	}
	if measured.Min <= bound && bound < measured.Max {
		v.Note = joined("the target lies within the spread", v.Note)
	}
	return v
}

func joined(first, second string) string {
	if second == "" {
		return first
	}
	return first + "; " + second
}

// idleBound is in KiB a connection, applyBound in times the undisturbed p99.
const (
	idleBound  = 12
	applyBound = 1.2
)

// judgeIdle holds ours to its target; the others' are there to compare with.
func (m *run) judgeIdle() (all []verdict) {
	for _, r := range m.idle {
		v := verdict{
			Figure: fmt.Sprintf("%d idle connections, KiB each: %s", idleConnections, r.Peer), Target: resultOpen, Result: resultOpen,
			Note: joined("resident memory, the kernel's buffers not included", r.Note), decimals: 2,
		}
		if r.Peer == "portcullis" {
			v.Target, v.Result = fmt.Sprintf("<= %d KiB", idleBound), resultNone
		}
		if r.err != nil {
			v.Note = oneLine(r.err)
		} else {
			v = decide(v, []float64{r.Each / 1024}, idleBound)
		}
		all = append(all, v)
	}
	return all
}

func judgeApply(a *applyReading) verdict {
	v := verdict{Figure: "p99 at half of saturation, 10,000 routes applied every second: of undisturbed", Target: fmt.Sprintf("<= %.2f x", applyBound), Result: resultNone, decimals: 2}
	if a.err != nil {
		v.Note = oneLine(a.err)
		return v
	}
	v.Note = a.note()
	return decide(v, a.ratios(), applyBound)
}
