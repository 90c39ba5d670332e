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
	want := usage{3 * time.Second, 500 * time.Millisecond, 256 * int64(os.Getpagesize())}
	if err != nil || parent != 17 || got != want {
		t.Errorf("%d %+v %v, want 17 %+v", parent, got, err, want)
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
		if err == nil && (u.cpu < 50*time.Millisecond || u.resident == 0) {
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

// The exact clock and the ticks of /proc count the same.
func TestCPUClockIsOfTheWholeProcess(t *testing.T) {
	for began := time.Now(); time.Since(began) < 60*time.Millisecond; {
	}
	exact, err := cpuClock(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, ticks, err := parseStat(string(text))
	// Other goroutines go on meanwhile.
	if err != nil || exact <= 0 || ticks.cpu < exact-2*userTick || ticks.cpu > exact+time.Second {
		t.Errorf("%v by the clock, %v in /proc, %v", exact, ticks.cpu, err)
	}
	if got, err := cpuClock(1 << 22); err == nil { // Ids end below.
		t.Errorf("a process that does not exist has used %v", got)
	}
}
