package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"text/tabwriter"
	"time"
)

// experiment is one measurement, which gives one or more figures.
type experiment struct {
	// name is what -run matches.
	name    string
	targets []target
	// measure returns one reading per target, in their order.
	measure func(context.Context) ([]reading, error)
}

// target is a figure and what it must reach.
type target struct {
	figure   string
	relation relation
	bound    float64
	unit     unit
}

type relation string

const (
	below   relation = "<"
	atMost  relation = "<="
	atLeast relation = ">="
	exactly relation = "="
)

func (r relation) holds(value, bound float64) bool {
	switch r {
	case below:
		return value < bound
	case atMost:
		return value <= bound
	case atLeast:
		return value >= bound
	case exactly:
		return value == bound
	}
	return false
}

// unit is that of a value; print is for people.
type unit string

const (
	seconds unit = "s"
	memory  unit = "B"
	ratio   unit = "1"
	count   unit = "{count}"
)

func (u unit) print(value float64) string {
	switch u {
	case seconds:
		return printSeconds(value)
	case memory:
		return fmt.Sprintf("%.4g MB", value/1e6)
	case count:
		return fmt.Sprintf("%.4g", value)
	}
	return fmt.Sprintf("%.3f", value)
}

// printSeconds keeps three digits: time.Duration's own text has nine.
func printSeconds(value float64) string {
	if value == 0 {
		return "0 s"
	}
	for _, scale := range []struct {
		least  float64
		suffix string
	}{{1, "s"}, {1e-3, "ms"}, {1e-6, "µs"}} {
		if math.Abs(value) >= scale.least {
			return fmt.Sprintf("%.3g %s", value/scale.least, scale.suffix)
		}
	}
	return fmt.Sprintf("%.3g ns", value*1e9)
}

// reading is a measured value, and what a reader should know about how it came
// to be.
type reading struct {
	value float64
	note  string
}

func took(d time.Duration, note string, args ...any) reading {
	return reading{d.Seconds(), fmt.Sprintf(note, args...)}
}

// row is a line of the table.
type row struct {
	Figure   string   `json:"figure"`
	Target   string   `json:"target"`
	Measured string   `json:"measured"`
	Value    *float64 `json:"value,omitempty"`
	Unit     unit     `json:"unit"`
	Result   string   `json:"result"`
	Command  string   `json:"command"`
	Note     string   `json:"note,omitempty"`
}

const (
	resultOK    = "ok"
	resultShort = "SHORT"
	resultNone  = "none"
)

func newRow(name string, t target) row {
	return row{
		Figure: t.figure, Target: string(t.relation) + " " + t.unit.print(t.bound), Unit: t.unit,
		Command: fmt.Sprintf("go run ./loadtest/bench -run '^%s$'", name),
	}
}

func judge(name string, t target, r reading) row {
	out := newRow(name, t)
	out.Measured, out.Value, out.Note, out.Result = t.unit.print(r.value), &r.value, r.note, resultShort
	if t.relation.holds(r.value, t.bound) {
		out.Result = resultOK
	}
	return out
}

func unmeasured(name string, t target, err error) row {
	out := newRow(name, t)
	out.Measured, out.Result, out.Note = "not measured", resultNone, strings.Join(strings.Fields(err.Error()), " ")
	return out
}

func printTable(w io.Writer, rows []row) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FIGURE\tTARGET\tMEASURED\tRESULT\tCOMMAND\tNOTE")
	short, none := 0, 0
	for _, r := range rows {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Figure, r.Target, r.Measured, r.Result, r.Command, r.Note)
		switch r.Result {
		case resultShort:
			short++
		case resultNone:
			none++
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d figures: %d ok, %d short, %d not measured\n", len(rows), len(rows)-short-none, short, none)
	return err
}

func writeJSON(file string, rows []row) error {
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}

func verdict(rows []row, strict bool) error {
	bad := 0
	for _, r := range rows {
		if r.Result != resultOK {
			bad++
		}
	}
	if strict && bad > 0 {
		return fmt.Errorf("%d of %d figures are short of their target or could not be measured", bad, len(rows))
	}
	return nil
}
