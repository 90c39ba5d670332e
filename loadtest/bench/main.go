// Command bench measures every figure that Portcullis promises and prints them
// beside their targets, each with the command that measures it again. It owns how
// a figure is measured; it knows no figure's value, and a row that cannot be
// measured says why. What is short of its target is printed as SHORT; only
// -strict makes that an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	pattern := flag.String("run", "", "measure only the experiments whose name matches this regular expression")
	file := flag.String("json", "", "also write the rows to this file, as JSON")
	strict := flag.Bool("strict", false, "exit with 1 when a row is short of its target or could not be measured")
	stored := flag.Int("stored-keys", million, "API keys that are written to etcd before one is added; a million take half a minute")
	flag.Parse()
	wanted, err := regexp.Compile(*pattern)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	var rows []row
	for _, e := range experiments(*stored) {
		if wanted.MatchString(e.name) && ctx.Err() == nil {
			rows = append(rows, perform(ctx, e)...)
		}
	}
	if len(rows) == 0 {
		return errors.Join(fmt.Errorf("no experiment matches %q", *pattern), ctx.Err())
	}
	fmt.Printf("%d processors, %s, %s; load average %s\n\n", runtime.NumCPU(), runtime.GOARCH, runtime.Version(), loadAverage())
	if err := printTable(os.Stdout, rows); err != nil {
		return err
	}
	if *file != "" {
		if err := writeJSON(*file, rows); err != nil {
			return err
		}
	}
	return verdict(rows, *strict)
}

// experimentLimit bounds one experiment, so that a cluster that hangs costs one
// row and not the table.
const experimentLimit = 4 * time.Minute

// perform runs one experiment; its rows are there whatever becomes of it.
func perform(ctx context.Context, e experiment) []row {
	fmt.Fprintf(os.Stderr, "%-16s measuring ...\n", e.name)
	started := time.Now()
	ctx, cancel := context.WithTimeout(ctx, experimentLimit)
	defer cancel()
	readings, err := e.measure(ctx)
	if err == nil && len(readings) != len(e.targets) {
		err = fmt.Errorf("%d readings for %d figures", len(readings), len(e.targets))
	}
	rows := make([]row, len(e.targets))
	for i, t := range e.targets {
		if err != nil {
			rows[i] = unmeasured(e.name, t, err)
			continue
		}
		rows[i] = judge(e.name, t, readings[i])
	}
	for _, r := range rows {
		fmt.Fprintf(os.Stderr, "%-16s %-5s %s: %s\n", e.name, r.Result, r.Figure, r.Measured)
	}
	fmt.Fprintf(os.Stderr, "%-16s took %v\n", e.name, time.Since(started).Round(100*time.Millisecond))
	// What one experiment has left on the heap must not slow the next.
	debug.FreeOSMemory()
	return rows
}
