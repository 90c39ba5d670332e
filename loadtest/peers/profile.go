package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// profile says where the node's processor time goes in one scenario.
type profile struct {
	Scenario string `json:"scenario"`
	// SystemCalls is the share of samples that were in a system call's own function.
	SystemCalls float64 `json:"system_calls"`
	// Top is the list of functions by their own time, as pprof prints it.
	Top     string `json:"top"`
	Problem string `json:"problem,omitempty"`
}

func (p profile) String() string {
	if p.Problem != "" {
		return fmt.Sprintf("PROFILE of portcullis, %s: not measured: %s", p.Scenario, p.Problem)
	}
	return fmt.Sprintf("PROFILE of portcullis, %s: %.0f %% in system calls\n%s", p.Scenario, 100*p.SystemCalls, p.Top)
}

// profiled are the scenarios of which a profile is taken.
var profiled = map[string]bool{"plain": true, "jwt": true, "tls": true}

// profile takes Portcullis's profiles under load, after all that is counted has
// been: a profile costs time.
func (m *run) profile(ctx context.Context) {
	for _, s := range scenarios() {
		if !profiled[s.name] || !m.rig.options.scenarios.MatchString(s.name) || ctx.Err() != nil {
			continue
		}
		for _, p := range m.peers {
			if p.name != "portcullis" {
				continue
			}
			one, err := m.profileOf(ctx, p, s)
			if err != nil {
				one.Problem = oneLine(err)
			}
			one.Scenario = s.title
			m.profiles = append(m.profiles, one)
		}
	}
	if m.rig.options.pgo != "" {
		if err := m.merge(ctx, m.rig.options.pgo); err != nil {
			say("-pgo: %v", err)
		}
	}
}

// merge writes all profiles that were taken as one, as go build -pgo takes it.
func (m *run) merge(ctx context.Context, file string) error {
	taken, err := filepath.Glob(filepath.Join(m.rig.dir, "*.pprof"))
	if err != nil || len(taken) == 0 {
		return errors.Join(err, errors.New("no profile was taken"))
	}
	out, err := exec.CommandContext(ctx, "go", append([]string{"tool", "pprof", "-proto", "-output", file}, taken...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go tool pprof: %w: %s", err, out)
	}
	return nil
}

func (m *run) profileOf(ctx context.Context, p peer, s scenario) (out profile, err error) {
	g, err := m.rig.gateway(ctx, p, s.setup)
	if err != nil {
		return out, err
	}
	sent, err := m.rig.shape(s)
	if err != nil {
		return out, err
	}
	return m.profileDuring(ctx, g, s.name+".pprof", func() error {
		_, err := m.rig.send(ctx, g.address, sent, profileLasts+time.Second)
		return err
	})
}

// profileApplying adds a profile of the node while all routes are applied: what a
// p99 that is short of its target comes from.
func (m *run) profileApplying(ctx context.Context, g *gateway, path string, rate float64) {
	// It is not one of those that a build is guided by.
	one, err := m.profileDuring(ctx, g, applyScenario+".profile", func() error {
		o, err := m.reapplying(ctx, g.cluster)
		if err != nil {
			return err
		}
		defer o.stop()
		_, _, err = m.paced(ctx, g.address, path, rate, profileLasts+time.Second)
		return err
	})
	if err != nil {
		one.Problem = oneLine(err)
	}
	one.Scenario = "half of saturation, 10,000 routes applied every second"
	m.profiles = append(m.profiles, one)
}

const profileLasts = 3 * time.Second

// profileDuring profiles the node while load runs, and keeps the profile in a file.
func (m *run) profileDuring(ctx context.Context, g *gateway, name string, load func() error) (out profile, err error) {
	loaded := make(chan error, 1)
	go func() { loaded <- load() }()
	data, err := fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", g.debug, int(profileLasts.Seconds())), profileLasts)
	if failed := <-loaded; err == nil {
		err = failed
	}
	if err != nil {
		return out, err
	}
	file := filepath.Join(m.rig.dir, name)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return out, err
	}
	text, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-nodecount=2000", "-nodefraction=0", "-edgefraction=0", file).Output()
	if err != nil {
		return out, fmt.Errorf("go tool pprof: %w", err)
	}
	return parseTop(string(text))
}

// fetch gets what a node serves about itself, which takes it so long.
func fetch(ctx context.Context, url string, lasts time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, lasts+10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	var data bytes.Buffer
	if _, err := io.Copy(&data, resp.Body); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %.200s", resp.Status, &data)
	}
	return data.Bytes(), nil
}

// topLines is how many functions a profile shows.
const topLines = 15

var (
	topLine = regexp.MustCompile(`^\s*[\d.]+\w*\s+([\d.]+)%\s+[\d.]+%\s+[\d.]+\w*\s+[\d.]+%\s+(.+)$`)
	// inKernel are the functions that do nothing but a system call.
	inKernel = regexp.MustCompile(`^(internal/runtime/syscall|internal/runtime/syscall/linux|syscall|runtime/internal/syscall)\.(Raw)?Syscall6?$|^runtime\.(futex|epollwait|write1|read|usleep|nanotime1|tgkill|madvise)$|^internal/runtime/syscall/linux\.\w+$`)
)

// parseTop reads pprof's -top: it keeps the first functions and adds up the shares
// of those that are system calls.
func parseTop(text string) (p profile, err error) {
	var kept []string
	for each := range strings.Lines(text) {
		each = strings.TrimRight(each, "\n")
		match := topLine.FindStringSubmatch(each)
		switch {
		case match == nil && strings.Contains(each, "flat%"):
			kept = append(kept, each)
			continue
		case match == nil:
			continue
		}
		share, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			return p, err
		}
		if inKernel.MatchString(strings.TrimSuffix(match[2], " (inline)")) {
			p.SystemCalls += share / 100
		}
		if len(kept) <= topLines {
			kept = append(kept, each)
		}
	}
	if len(kept) < 2 {
		return p, fmt.Errorf("not an output of pprof -top: %.200q", text)
	}
	p.Top = strings.Join(kept, "\n")
	return p, nil
}
