package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	starts = 3
	// idle is how long a cluster stands before its memory is read.
	idle       = 5 * time.Second
	readyLimit = 30 * time.Second
	stopLimit  = 15 * time.Second
)

// measureStandalone builds the binary and starts it, each time in a fresh data
// directory: what a newcomer does first.
func measureStandalone(ctx context.Context) (readings []reading, err error) {
	dir, err := os.MkdirTemp("", "portcullis-bench-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary := filepath.Join(dir, "portcullis")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "portcullis.dev/portcullis/deploy/portcullis")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the binary: %w: %s", err, out)
	}
	modes := [][]string{nil, {"--demo"}}
	ready, resident := make([][]time.Duration, len(modes)), make([]float64, len(modes))
	for i := range starts {
		for j, mode := range modes {
			wait := time.Duration(0)
			if i == starts-1 {
				wait = idle
			}
			each, held, err := standalone(ctx, binary, filepath.Join(dir, fmt.Sprintf("%d-%d", i, j)), wait, mode...)
			if err != nil {
				return nil, err
			}
			ready[j], resident[j] = append(ready[j], each), held
		}
	}
	for j := range modes {
		readings = append(readings, took(median(ready[j]), "first start, median of %d", starts), reading{resident[j], "VmRSS"})
	}
	return readings, nil
}

// standalone starts the binary, waits for its word that it is ready, and after a
// pause reads how much memory it has.
func standalone(ctx context.Context, binary, dir string, pause time.Duration, args ...string) (ready time.Duration, resident float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, readyLimit+pause)
	defer cancel()
	process := exec.CommandContext(ctx, binary, append([]string{"standalone", "--data-dir", dir, "--listen", "127.0.0.1:0",
		"--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"}, args...)...)
	var problems bytes.Buffer
	process.Stderr = &problems
	process.Cancel = func() error { return process.Process.Signal(syscall.SIGTERM) }
	process.WaitDelay = stopLimit
	stdout, err := process.StdoutPipe()
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if err := process.Start(); err != nil {
		return 0, 0, err
	}
	defer func() {
		cancel()
		// It ends by the signal that was just sent.
		_ = process.Wait()
	}()
	lines := bufio.NewScanner(stdout)
	for {
		if !lines.Scan() {
			return 0, 0, fmt.Errorf("standalone ended before it was ready: %w: %s", lines.Err(), problems.String())
		}
		if strings.HasPrefix(lines.Text(), "ready") {
			break
		}
	}
	ready = time.Since(began)
	select {
	case <-time.After(pause):
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	resident, err = residentOf(process.Process.Pid)
	return ready, resident, err
}

// residentOf reads a process's resident memory in bytes, where the system says
// it: on Linux.
func residentOf(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("resident memory: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return kib * 1024, err
		}
	}
	return 0, errors.New("no VmRSS in /proc/PID/status")
}
