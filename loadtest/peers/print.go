package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// print writes the report as a page of text.
func (r *report) print(out io.Writer) error {
	fmt.Fprintf(out, "%s; took %s\n%s\n%s.\n", r.Machine, r.Took, r.Method, r.Windows)
	for _, name := range slices.Sorted(maps.Keys(r.Absent)) {
		fmt.Fprintf(out, "NOT MEASURED: %s: %s\n", name, r.Absent[name])
	}
	fmt.Fprintln(out)
	if err := r.printLines(out); err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
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

func (r *report) printLines(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SCENARIO\tPEER\tCPU µs\tOF IT KERNEL µs\tBUSY %\tREQUESTS/s\tP50 µs\tP99 µs\tRSS MB")
	var failed []string
	for _, l := range r.Lines {
		if l.CPU == nil {
			failed = append(failed, fmt.Sprintf("NOT MEASURED: %s, %s: %s\n", l.Title, l.Peer, l.Problem))
			continue
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%.1f\t%.0f\t%s\t%s\t%s\t%.1f\t%s\n", l.Title, l.Peer, l.CPU.digits(1), l.System.Median, 100*l.Busy.Median, l.Rate.digits(0),
			l.P50.digits(0), l.P99.digits(0), l.Resident.Median/1e6, l.Problem)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, strings.Join(failed, ""))
	return err
}
