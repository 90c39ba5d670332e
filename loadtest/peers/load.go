package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// shape is what a scenario sends.
type shape struct {
	// path of every request, unless lines says otherwise.
	path string
	// bearer sends the first token with every request.
	bearer bool
	// lines is a file of requests that are sent in turn: path, tab, token or nothing.
	lines string
	// distinct is how many there are.
	distinct int
	// h2 speaks HTTP/2 over TLS.
	h2 bool
}

// sample is what a load generator saw.
type sample struct {
	requests int
	rate     float64
	p50, p99 time.Duration
	// spent is the load generator's own processor time.
	spent time.Duration
}

// outcome is a sample and what makes it worthless: requests that failed.
type outcome struct {
	sample
	failed string
}

//go:embed conf/requests.lua
var requestsScript []byte

// streams is how many requests each HTTP/2 connection has in flight; there are as
// many fewer connections, so that the concurrency is that of HTTP/1.1.
const streams = 4

// send loads an address for a time and returns what came of it. A request that
// was not answered with 2xx makes it an error.
func (r *rig) send(ctx context.Context, address string, s shape, duration time.Duration) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, duration+20*time.Second)
	defer cancel()
	var out outcome
	var err error
	if s.h2 {
		out, err = r.h2load(ctx, address, s, duration)
	} else {
		out, err = r.wrk(ctx, address, s, duration)
	}
	switch {
	case err != nil:
		return sample{}, err
	case out.failed != "":
		return sample{}, errors.New(out.failed)
	case out.requests == 0:
		return sample{}, errors.New("not one request was answered")
	}
	return out.sample, nil
}

func (r *rig) wrk(ctx context.Context, address string, s shape, duration time.Duration) (outcome, error) {
	args := []string{"-t1", fmt.Sprintf("-c%d", r.options.connections), fmt.Sprintf("-d%ds", int(duration.Seconds())), "--timeout", "10s", "--latency"}
	if s.bearer {
		args = append(args, "-H", "Authorization: Bearer "+r.tokens.signed[0])
	}
	if s.lines != "" {
		args = append(args, "-s", filepath.Join(r.dir, "requests.lua"))
	}
	args = append(args, "http://"+address+s.path)
	if s.lines != "" {
		args = append(args, "--", s.lines)
	}
	out, spent, err := r.tool(ctx, "wrk", args...)
	if err != nil {
		return outcome{}, err
	}
	parsed, err := parseWrk(out)
	parsed.spent = spent
	return parsed, err
}

func (r *rig) h2load(ctx context.Context, address string, s shape, duration time.Duration) (outcome, error) {
	times := filepath.Join(r.dir, "h2load.log")
	if err := os.WriteFile(times, nil, 0o600); err != nil {
		return outcome{}, err
	}
	clients := max(1, r.options.connections/streams)
	out, spent, err := r.tool(ctx, "h2load", "-t1", fmt.Sprintf("-c%d", clients), fmt.Sprintf("-m%d", streams),
		"-D", strconv.Itoa(int(duration.Seconds())), "--log-file", times, "https://"+address+s.path)
	if err != nil {
		return outcome{}, err
	}
	parsed, err := parseH2load(out)
	if err != nil {
		return outcome{}, err
	}
	parsed.spent = spent
	file, err := os.Open(times)
	if err != nil {
		return outcome{}, err
	}
	defer func() { _ = file.Close() }()
	parsed.p50, parsed.p99, err = parseH2loadTimes(file)
	return parsed, err
}

// tool runs a load generator on the processors for load, which this process is
// pinned to, and returns what it said and how much processor time it had.
func (r *rig) tool(ctx context.Context, name string, args ...string) (said string, spent time.Duration, err error) {
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", 0, fmt.Errorf("%s: %w: %.300s", name, err, out)
	}
	return string(out), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), nil
}

var (
	wrkTotal   = regexp.MustCompile(`(?m)^\s*(\d+) requests in `)
	wrkRate    = regexp.MustCompile(`(?m)^Requests/sec:\s+([\d.]+)`)
	wrkLatency = regexp.MustCompile(`(?m)^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)$`)
	wrkErrors  = regexp.MustCompile(`(?m)^\s*(Socket errors: .*|Non-2xx or 3xx responses: .*)$`)
)

// parseWrk reads the output of `wrk --latency`.
func parseWrk(text string) (o outcome, err error) {
	total, rate, latency := wrkTotal.FindStringSubmatch(text), wrkRate.FindStringSubmatch(text), wrkLatency.FindAllStringSubmatch(text, -1)
	if total == nil || rate == nil || len(latency) != 2 {
		return o, fmt.Errorf("not an output of wrk --latency: %.300q", text)
	}
	if o.requests, err = strconv.Atoi(total[1]); err != nil {
		return o, err
	}
	if o.rate, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return o, err
	}
	for _, each := range latency {
		value, err := strconv.ParseFloat(each[2], 64)
		if err != nil {
			return o, err
		}
		unit := map[string]time.Duration{"us": time.Microsecond, "ms": time.Millisecond, "s": time.Second, "m": time.Minute}[each[3]]
		took := time.Duration(value * float64(unit))
		if each[1] == "50" {
			o.p50 = took
		} else {
			o.p99 = took
		}
	}
	if failed := wrkErrors.FindStringSubmatch(text); failed != nil {
		o.failed = failed[1]
	}
	return o, nil
}

var (
	h2loadRate  = regexp.MustCompile(`(?m)^finished in [\d.]+\w+, ([\d.]+) req/s`)
	h2loadTotal = regexp.MustCompile(`(?m)^requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout`)
)

// parseH2load reads what h2load prints; it prints no percentiles. In a run of
// fixed time those requests that were in flight at its end count as failed only
// when they were answered so.
func parseH2load(text string) (o outcome, err error) {
	rate, total := h2loadRate.FindStringSubmatch(text), h2loadTotal.FindStringSubmatch(text)
	if rate == nil || total == nil {
		return o, fmt.Errorf("not an output of h2load: %.300q", text)
	}
	if o.rate, err = strconv.ParseFloat(rate[1], 64); err != nil {
		return o, err
	}
	var counts [5]int
	for i := range counts {
		if counts[i], err = strconv.Atoi(total[i+1]); err != nil {
			return o, err
		}
	}
	o.requests = counts[1]
	if counts[0] != counts[1] {
		o.failed = strings.TrimPrefix(total[0], "requests: ")
	}
	return o, nil
}

// parseH2loadTimes reads h2load's log: for each request when it began, its status
// and how many microseconds it took, separated by tabs.
func parseH2loadTimes(log io.Reader) (p50, p99 time.Duration, err error) {
	var all []int
	lines := bufio.NewScanner(log)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		if len(fields) != 3 {
			return 0, 0, fmt.Errorf("not a line of h2load's log: %.80q", lines.Text())
		}
		took, err := strconv.Atoi(fields[2])
		if err != nil {
			return 0, 0, fmt.Errorf("h2load's log: %w", err)
		}
		if fields[1] != "-1" {
			all = append(all, took)
		}
	}
	if err := lines.Err(); err != nil {
		return 0, 0, err
	}
	if len(all) == 0 {
		return 0, 0, errors.New("h2load's log is empty")
	}
	slices.Sort(all)
	return time.Duration(quantile(all, 0.5)) * time.Microsecond, time.Duration(quantile(all, 0.99)) * time.Microsecond, nil
}
