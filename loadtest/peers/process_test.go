package main

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	// The name holds what separates fields elsewhere.
	const text = "4242 (a) R (b) c) S 17 4242 4242 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 5 0 123 1048576 256 18446744073709551615 1 1"
	parent, got, err := parseStat(text)
	want := usage{2500 * time.Millisecond, 500 * time.Millisecond, 256 * int64(os.Getpagesize())}
	if err != nil || parent != 17 || got != want {
		t.Errorf("%d %+v %v, want 17 %+v", parent, got, err, want)
	}
	if got.cpu() != 3*time.Second {
		t.Errorf("cpu %v", got.cpu())
	}
	for _, bad := range []string{"", "1 (x) S 2", "no parentheses at all in this line, though it has many many fields 1 2 3 4 5 6 7 8 9 10 11 12 13"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// A process's usage is its own and its children's.
func TestUsageIncludesChildren(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("no shell:", err)
	}
	p, err := launch(command{name: "sh", args: []string{"sh", "-c", "(while :; do :; done) & echo started; wait"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		// The shell ends by the signal, its child does not.
		pids, err := family(p.cmd.Process.Pid)
		if err != nil {
			t.Error(err)
		}
		for _, pid := range pids[1:] {
			if child, err := os.FindProcess(pid); err == nil {
				_ = child.Kill()
			}
		}
		p.stop()
	}()
	err = p.until(t.Context(), 20*time.Second, func() error {
		u, err := p.usage()
		if err == nil && (u.cpu() < 50*time.Millisecond || u.resident == 0) {
			err = os.ErrProcessDone
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestUntilTellsWhatAProcessSaid(t *testing.T) {
	p, err := launch(command{name: "sh", args: []string{"sh", "-c", "echo cannot bind >&2; exit 1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	err = p.until(t.Context(), 20*time.Second, func() error { return os.ErrNotExist })
	if err == nil || err.Error() != "sh has ended: cannot bind" {
		t.Error(err)
	}
}

func TestCellOf(t *testing.T) {
	before := usage{user: time.Second, system: 2 * time.Second}
	after := usage{user: 2 * time.Second, system: 4 * time.Second, resident: 7}
	got := cellOf(before, after, sample{requests: 100_000, rate: 50_000, p50: time.Millisecond, p99: 2 * time.Millisecond})
	if want := (cell{CPU: 30, System: 20, Rate: 50_000, P50: 1000, P99: 2000, Resident: 7}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
