// Command load offers a scenario's requests to a cluster, each when it is due and
// whatever became of those before (an open loop), and holds what comes of it
// against the scenario's budgets. It owns scenarios, their schedule, what is
// recorded and the report. It must not know how a gateway works inside: it asks
// nodes and the admin API as clients and operators do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// errBroken says that a run went through and did not keep its budgets.
var errBroken = errors.New("budgets are broken")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return
	case errors.Is(err, errBroken):
		fmt.Fprintln(os.Stderr, "load:", err)
		stop()
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "load:", err)
	stop()
	os.Exit(2)
}

const usage = `load [flags] SCENARIO

Runs the scenario (a name in -scenarios, or a path that ends in .yaml) against a cluster that is
started in this process, or against the nodes at -address, and writes a report as NAME.html and
NAME.json. Exits with 1 when a budget is broken, and with 2 when the run did not go through.

`

type options struct {
	where
	scenarios, out string
	times, rates   float64
	name           string
}

func parse(args []string, complaints io.Writer) (options, error) {
	var o options
	var addresses string
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	flags.SetOutput(complaints)
	flags.Usage = func() {
		fmt.Fprint(complaints, usage)
		flags.PrintDefaults()
	}
	flags.StringVar(&o.scenarios, "scenarios", "loadtest/scenarios", "folder of the scenarios")
	flags.StringVar(&o.out, "out", "bin/load", "folder that the report is written to")
	flags.StringVar(&addresses, "address", "", "URLs of nodes, separated by commas; left out, a cluster is started in this process")
	flags.StringVar(&o.context, "context", "", "the operator's context file, with -address: to apply the scenario's documents, mint tokens and revoke")
	flags.StringVar(&o.upstream, "upstream", "", "URL of the upstream as nodes reach it; left out, one is served in this process, on 127.0.0.1")
	flags.Float64Var(&o.times, "time", 1, "factor for all of the scenario's times")
	flags.Float64Var(&o.rates, "rate", 1, "factor for all of the scenario's rates")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() != 1 || o.times <= 0 || o.rates <= 0 {
		flags.Usage()
		return o, errors.New("expected one scenario, and factors above 0")
	}
	o.name = flags.Arg(0)
	if addresses != "" {
		for address := range strings.SplitSeq(addresses, ",") {
			address = strings.TrimSuffix(strings.TrimSpace(address), "/")
			if !strings.HasPrefix(address, "http://") && !strings.HasPrefix(address, "https://") {
				address = "http://" + address
			}
			o.addresses = append(o.addresses, address)
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string, out, complaints io.Writer) (err error) {
	o, err := parse(args, complaints)
	if err != nil {
		return err
	}
	s, err := readScenario(o.scenarios, o.name)
	if err != nil {
		return err
	}
	s.scale(o.times, o.rates)
	fmt.Fprintf(complaints, "%s: preparing ...\n", s.Name)
	t, err := newTarget(ctx, o.where, s)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	report, err := perform(ctx, s, t, complaints)
	if err != nil {
		return err
	}
	page, data, err := writeReport(o.out, report)
	if err != nil {
		return err
	}
	printVerdicts(out, report)
	fmt.Fprintf(out, "\n%s\n%s\n", page, data)
	if bad := broken(report.Verdicts); len(bad) > 0 {
		names := make([]string, len(bad))
		for i, v := range bad {
			names[i] = fmt.Sprintf("%s (%s, want %s)", v.Budget, v.Got, v.Limit)
		}
		return fmt.Errorf("%s: %w: %s", s.Name, errBroken, strings.Join(names, "; "))
	}
	return nil
}

// perform runs a scenario against a target.
func perform(ctx context.Context, s *Scenario, t *target, complaints io.Writer) (*Report, error) {
	v, err := prepare(ctx, s, t)
	if err != nil {
		return nil, err
	}
	d := &disturbance{}
	if err := d.prepare(ctx, s, t); err != nil {
		return nil, fmt.Errorf("preparing the disturbance: %w", err)
	}
	r := newRecorder(s)
	began := time.Now()
	life, end := context.WithCancel(ctx)
	disturbed := make(chan error, 1)
	go func() { disturbed <- d.run(life, s, t, began) }()
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		show(life, s, r, began, complaints)
	}()
	attack(ctx, s, v, r)
	end()
	<-shown
	if err := errors.Join(<-disturbed, ctx.Err()); err != nil {
		return nil, fmt.Errorf("disturbing the cluster: %w", err)
	}
	report := summarise(s, r, d)
	report.Started = began
	report.Target = strings.Join(t.bases, ", ")
	if t.inProcess {
		report.Target = fmt.Sprintf("%d nodes in the generator's own process, %d processors for both", len(t.bases), runtime.GOMAXPROCS(0))
	}
	return report, nil
}

// show tells every second how far the run is.
func show(ctx context.Context, s *Scenario, r *recorder, began time.Time, w io.Writer) {
	for pause(ctx, time.Second) {
		p := r.progress()
		fmt.Fprintf(w, "%s  %3.0f s of %.0f  %8d answered  %6d errors  p99 %s\n",
			s.Name, time.Since(began).Seconds(), s.span().Seconds(), p.offered, p.errors, p.p99)
	}
}

func printVerdicts(w io.Writer, r *Report) {
	sum := r.Summary
	fmt.Fprintf(w, "%d requests, %d errors; p50 %s, p90 %s, p99 %s, p99.9 %s, max %s\n",
		sum.Offered, sum.Errors, sum.Latency.P50, sum.Latency.P90, sum.Latency.P99, sum.Latency.P999, sum.Latency.Max)
	for _, v := range r.Verdicts {
		state := "kept  "
		if !v.Kept {
			state = "BROKEN"
		}
		fmt.Fprintf(w, "%s  %-45s %12s  (%s)\n", state, v.Budget, v.Got, v.Limit)
	}
}
