package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// giveWay becomes the program that args name, which gets only the processor time
// that nobody else wants: anything else that wakes up takes its place at once
// (SCHED_IDLE, sched(7)). It ends when its parent does.
func giveWay(args []string) error {
	if len(args) == 0 {
		return errors.New("no command; usage: peers idle COMMAND [ARGUMENT ...] as a child of the measurement")
	}
	program, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	// The thread that executes the program is the one that is left.
	runtime.LockOSThread()
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0); err != nil {
		return fmt.Errorf("sched_setattr: %w", err)
	}
	// To end with the parent is a thread's wish, not a process's (prctl(2)): the one
	// that the process began with had it, and this one may be another.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0, 0, 0); err != nil {
		return fmt.Errorf("prctl: %w", err)
	}
	return fmt.Errorf("%s: %w", program, syscall.Exec(program, args, os.Environ()))
}

const (
	// awakeMost bounds a child that keeps a processor awake: no run lasts longer.
	awakeMost = 2 * time.Hour
	// awakeTurn is how long it runs before it yields to what gives way as well.
	awakeTurn = 50 * time.Microsecond
)

// stayAwake keeps the processor that it is pinned to from sleeping, until ctx
// ends: to wake a sleeping one costs the waker an interrupt that leaves the
// virtual machine, several microseconds which a gateway would pay whenever the
// load is faster than it.
func stayAwake(ctx context.Context, announce io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, awakeMost)
	defer cancel()
	if _, err := fmt.Fprintln(announce, "awake"); err != nil {
		return err
	}
	for ctx.Err() == nil {
		for turn := time.Now(); time.Since(turn) < awakeTurn; {
		}
		// It has no result but to have yielded.
		_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
	return nil
}

// keepAwake starts a child for each of the load's processors.
func (r *rig) keepAwake(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, cpu := range r.options.loadCPUs {
		p, err := launch(command{name: "awake " + strconv.Itoa(cpu), args: []string{self, "idle", self, "awake"}, cpus: []int{cpu}, env: []string{"GOMAXPROCS=1"}})
		if err != nil {
			return err
		}
		r.awake = append(r.awake, p)
		err = p.until(ctx, startLimit, func() error {
			if !p.said.has("awake\n") {
				return errors.New("it has not said that it is awake")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
