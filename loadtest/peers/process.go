package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopLimit is how long a process may take to end after it was told to.
const stopLimit = 5 * time.Second

// command is what to run as a process, and on which processors.
type command struct {
	name string
	args []string
	env  []string
	dir  string
	cpus []int
	in   string
}

// process is one that this measurement has started. It ends with it.
type process struct {
	command command
	cmd     *exec.Cmd
	said    tail
	ended   chan struct{}
}

// tail keeps the first and newest of what a process says, for the message when
// it fails. Any goroutine may use it.
type tail struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.text.Len() > 1<<16 {
		t.text.Next(1 << 15)
	}
	return t.text.Write(p)
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := strings.Join(strings.Fields(t.text.String()), " ")
	const most = 600
	if len(text) > most {
		text = "... " + text[len(text)-most:]
	}
	return text
}

// raw is what was said, as it was.
func (t *tail) raw() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

func (t *tail) has(text string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Contains(t.text.Bytes(), []byte(text))
}

// launch starts a process, pinned to its processors from its first instruction.
func launch(c command) (*process, error) {
	p := &process{command: c, cmd: exec.Command(c.args[0], c.args[1:]...), ended: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = c.dir, strings.NewReader(c.in), &p.said, &p.said
	p.cmd.Env = append(os.Environ(), c.env...)
	// nginx's workers live on when their master is killed: it must be told to end.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := onCPUs(c.cpus, p.cmd.Start); err != nil {
		return nil, fmt.Errorf("%s: %w", c.name, err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // How it ended is told by what it said.
	}()
	return p, nil
}

// onCPUs calls f on a thread that runs on these processors only; what f starts
// inherits that. Without any, f just runs.
func onCPUs(cpus []int, f func() error) error {
	if len(cpus) == 0 {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("reading the affinity: %w", err)
	}
	if err := setAffinity(0, cpus); err != nil {
		return err
	}
	return errors.Join(f(), unix.SchedSetaffinity(0, &before))
}

func setAffinity(thread int, cpus []int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	if err := unix.SchedSetaffinity(thread, &set); err != nil {
		return fmt.Errorf("pinning to processors %v: %w", cpus, err)
	}
	return nil
}

// pinSelf keeps this process, and all that it starts without saying otherwise,
// off the gateways' processors.
func pinSelf(cpus []int) error {
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			return err
		}
		if err := setAffinity(id, cpus); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// until asks ready again and again, until it says yes, the process has ended or
// the limit is over.
func (p *process) until(ctx context.Context, limit time.Duration, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s has ended: %s", p.command.name, &p.said)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", p.command.name, err, &p.said)
		case <-tick.C:
		}
	}
}

// stop ends the process: in order, and if that takes too long, at once.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // It may have ended.
	select {
	case <-p.ended:
	case <-time.After(stopLimit):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// over is whether the process has ended.
func (p *process) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// userTick is the unit of times in /proc/PID/stat: USER_HZ is 100 on every
// architecture that Go runs on.
const userTick = 10 * time.Millisecond

// usage is what a process and its children have used and hold.
type usage struct {
	// cpu is processor time, of which system is the kernel's.
	cpu, system time.Duration
	resident    int64
}

// usage reads the process's and its descendants' processor time and memory.
func (p *process) usage() (total usage, err error) {
	pids, err := family(p.cmd.Process.Pid)
	if err != nil {
		return total, err
	}
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return total, fmt.Errorf("%s: %w", p.command.name, err)
		}
		_, each, err := parseStat(string(stat))
		if err != nil {
			return total, fmt.Errorf("%s: %w", p.command.name, err)
		}
		if each.cpu, err = cpuClock(pid); err != nil {
			return total, fmt.Errorf("%s: %w", p.command.name, err)
		}
		total.cpu += each.cpu
		total.system += each.system
		total.resident += each.resident
	}
	return total, nil
}

// parseStat reads the parent, the times and the resident memory from the text of
// /proc/PID/stat (proc(5)). The name, in parentheses, may hold anything.
func parseStat(text string) (parent int, u usage, err error) {
	end := strings.LastIndexByte(text, ')')
	fields := strings.Fields(text[end+1:])
	// The fields after the name start with the third: state.
	const first, ppid, utime, stime, rss = 3, 4, 14, 15, 24
	if end < 0 || len(fields) <= rss-first {
		return 0, usage{}, fmt.Errorf("not a process's stat: %.80q", text)
	}
	numbers := make([]int64, 0, 4)
	for _, field := range []int{ppid, utime, stime, rss} {
		n, err := strconv.ParseInt(fields[field-first], 10, 64)
		if err != nil {
			return 0, usage{}, fmt.Errorf("field %d of a process's stat: %w", field, err)
		}
		numbers = append(numbers, n)
	}
	return int(numbers[0]), usage{
		cpu: time.Duration(numbers[1]+numbers[2]) * userTick, system: time.Duration(numbers[2]) * userTick,
		resident: numbers[3] * int64(os.Getpagesize()),
	}, nil
}

// cpuClock reads a process's processor time to the nanosecond; /proc has it in
// ticks, which are a hundredth of a short window.
func cpuClock(pid int) (time.Duration, error) {
	// The clock of another process, as clock_getcpuclockid(3) makes it from its id: of
	// all its threads (4 would be of one), by the scheduler's account.
	const scheduled = 2
	var at unix.Timespec
	if err := unix.ClockGettime(int32(^pid)<<3|scheduled, &at); err != nil {
		return 0, fmt.Errorf("the processor time of process %d: %w", pid, err)
	}
	return time.Duration(at.Nano()), nil
}

// family returns a process and its descendants.
func family(pid int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, entry := range entries {
		id, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id))
		if err != nil {
			continue // It has just ended.
		}
		if parent, _, err := parseStat(string(stat)); err == nil {
			children[parent] = append(children[parent], id)
		}
	}
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all, nil
}
