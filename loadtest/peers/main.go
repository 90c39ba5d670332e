// Command peers measures Portcullis side by side with other gateways: the
// processor time of the gateway's process per request, with rate, latency and
// memory beside it, all in one run. It owns how a peer is set up, loaded and
// accounted for, and the targets as ratios within the run; it knows no figure's
// value. A peer that is not installed is named, with how to get it, and its rows
// are not measured; -strict makes that, and what is short of its target, an error.
//
// What a machine of few shared processors does to a figure is far more than what
// gateways differ by. So, for all of them alike:
//
//   - A window that the hypervisor or another process has disturbed is thrown away
//     and measured again, a bounded number of times; the report counts both what
//     was thrown away and what stayed disturbed. Steal and processor time of others
//     are read from /proc/stat; pressure (PSI) tells nothing here, since the load
//     queues for its processor by design.
//   - What a target compares is measured within a minute, in slices of a second in
//     changing order, and a ratio is taken within a round. Our own plain is measured
//     again beside whatever is compared with it.
//   - The load's processors never sleep: a child spins on each when nobody wants it
//     (SCHED_IDLE). Else a gateway pays for waking them, and the more the slower it
//     is than the load.
//   - Instances of one program differ for as long as they live, so each round starts
//     new ones of the gateways that are near each other, and a second instance of
//     ours and of nginx is measured beside the first: how far those are apart is
//     what the run resolves.
//   - The median of the rounds decides about a target; its spread is printed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := dispatch(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

// dispatch runs what the first argument names: the measurement starts this
// binary again for what must be a process of its own.
func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "upstream":
			return serveUpstream(ctx, os.Stdout)
		case "idle":
			return giveWay(args[1:])
		case "awake":
			return stayAwake(ctx, os.Stdout)
		case "reapply":
			return reapply(ctx, args[1:], os.Stdout)
		case "pace":
			return pace(ctx, args[1:], os.Stdout)
		}
	}
	return measure(ctx, args)
}

// options are the command line.
type options struct {
	scenarios, peers *regexp.Regexp
	rounds, passes   int
	duration         time.Duration
	connections      int
	json             string
	strict           bool
	profiles         bool
	pgo              string
	binary, cache    string
	proxyCPUs        []int
	loadCPUs         []int
}

func parseOptions(args []string) (o options, err error) {
	flags := flag.NewFlagSet("peers", flag.ExitOnError)
	scenarios := flags.String("run", "", "measure only the scenarios whose name matches this regular expression")
	peers := flags.String("peer", "", "measure only the peers whose name matches this regular expression")
	flags.IntVar(&o.rounds, "rounds", 5, "interleaved rounds; medians and spreads are over them")
	flags.IntVar(&o.passes, "passes", 3, "passes of a round over the peers of a scenario; those that cost several times as much are in one of them only")
	flags.DurationVar(&o.duration, "duration", time.Second, "how long a slice is: the load of one peer in one pass; whole seconds")
	flags.IntVar(&o.connections, "connections", 64, "connections that send requests")
	flags.StringVar(&o.json, "json", "", "also write everything to this file, as JSON")
	flags.BoolVar(&o.strict, "strict", false, "exit with 1 when a target is short or could not be measured")
	flags.StringVar(&o.pgo, "pgo", "", "file to merge those profiles into, for profile-guided optimisation (deploy/portcullis/default.pgo)")
	flags.BoolVar(&o.profiles, "profiles", true, "print CPU profiles of the plain, the JWT and the TLS scenario")
	flags.StringVar(&o.binary, "binary", "", "portcullis binary to measure (default: built from this tree)")
	flags.StringVar(&o.cache, "cache", os.Getenv("PEERS_DIR"), "folder for peers that are fetched and built (default: $PEERS_DIR, else in the user's cache)")
	proxy := flags.String("proxy-cpus", "0", "processors for the gateways, comma separated")
	load := flags.String("load-cpus", "", "processors for load and upstream (default: all others)")
	_ = flags.Parse(args)
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.rounds < 1 || o.passes < 1 || o.connections < 1 || o.duration < time.Second || o.duration%time.Second != 0 {
		return o, errors.New("-rounds, -passes and -connections are at least 1, -duration is in whole seconds")
	}
	if o.scenarios, err = regexp.Compile(*scenarios); err != nil {
		return o, fmt.Errorf("-run: %w", err)
	}
	if o.peers, err = regexp.Compile(*peers); err != nil {
		return o, fmt.Errorf("-peer: %w", err)
	}
	if o.cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return o, fmt.Errorf("-cache: %w", err)
		}
		o.cache = filepath.Join(base, "portcullis-peers")
	}
	if o.proxyCPUs, err = parseCPUs(*proxy); err != nil {
		return o, fmt.Errorf("-proxy-cpus: %w", err)
	}
	if *load != "" {
		o.loadCPUs, err = parseCPUs(*load)
	} else {
		for cpu := range runtime.NumCPU() {
			if !slices.Contains(o.proxyCPUs, cpu) {
				o.loadCPUs = append(o.loadCPUs, cpu)
			}
		}
	}
	if err != nil || len(o.loadCPUs) == 0 {
		return o, fmt.Errorf("-load-cpus: load needs a processor that is not the gateway's: %w", err)
	}
	return o, nil
}

func parseCPUs(text string) (cpus []int, err error) {
	for each := range strings.SplitSeq(text, ",") {
		cpu, err := strconv.Atoi(strings.TrimSpace(each))
		if err != nil || cpu < 0 {
			return nil, fmt.Errorf("%q is not a list of processors", text)
		}
		cpus = append(cpus, cpu)
	}
	return cpus, nil
}

func measure(ctx context.Context, args []string) (err error) {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	started := time.Now()
	r, err := newRig(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	run := newRun(r)
	if err := run.all(ctx); err != nil {
		return err
	}
	report := run.report()
	report.Took = time.Since(started).Round(time.Second).String()
	if err := report.print(os.Stdout); err != nil {
		return err
	}
	if o.json != "" {
		if err := report.write(o.json); err != nil {
			return err
		}
	}
	return report.verdict(o.strict)
}
