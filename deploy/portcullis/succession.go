package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// successionTimeout bounds the wait for a successor to be ready.
const successionTimeout = time.Minute

// succession starts another process on SIGUSR2, of the binary that is then at the
// path of this one, with the same arguments and the same open sockets. Once it is
// ready, this process drains; until then, and when it fails, this one serves on.
// No connection is refused in between: both accept from the same queue.
type succession struct {
	// binary is the path as it was at the start: a file that replaced it since is
	// what is wanted.
	binary string
	args   []string
	// files are the sockets and the lock of the data directory, by name.
	files func() (map[string]*os.File, error)
	// pause stops this process from writing to the data directory, which the
	// successor reads; resume lets it again.
	pause, resume func()
	log           *slog.Logger
}

// run waits for the signal, as often as it takes, and returns nil once a
// successor is ready, or the cause of ctx.
func (s *succession) run(ctx context.Context) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2)
	defer signal.Stop(signals)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-signals:
		}
		s.log.Info("a successor is started", "binary", s.binary)
		pid, err := s.start(ctx)
		if err == nil {
			s.log.Info("the successor is ready; this process drains", "pid", pid)
			return nil
		}
		s.log.Error("no successor: this process serves on", "error", err)
	}
}

// start starts a successor and waits until it says that it is ready.
func (s *succession) start(ctx context.Context) (pid int, err error) {
	files, err := s.files()
	if err != nil {
		return 0, err
	}
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	ready, child, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer ready.Close()
	files[readyPipe] = child
	cmd := exec.Command(s.binary, s.args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	var names []string
	for name, file := range files {
		names = append(names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	cmd.Env = append(os.Environ(), successionEnv+"="+strings.Join(names, ":"))
	s.pause()
	if err := cmd.Start(); err != nil {
		s.resume()
		return 0, err
	}
	// Ours, so that the pipe ends with the child.
	_ = child.Close()
	delete(files, readyPipe)
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	if err := s.await(ctx, ready); err != nil {
		_ = cmd.Process.Kill()
		s.resume()
		return 0, errors.Join(err, <-exited)
	}
	return cmd.Process.Pid, nil
}

// await reads the byte that says ready.
func (s *succession) await(ctx context.Context, ready *os.File) error {
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Now()) })()
	_ = ready.SetReadDeadline(time.Now().Add(successionTimeout))
	var one [1]byte
	switch _, err := ready.Read(one[:]); {
	case errors.Is(err, io.EOF):
		return errors.New("it ended before it was ready: its own messages say why")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("it was not ready within %v", successionTimeout)
	default:
		return err
	}
}

// noSuccession keeps SIGUSR2 from ending a role that cannot be replaced in place.
func noSuccession(log *slog.Logger) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-signals:
				log.Warn("only a dataplane is replaced by SIGUSR2: restart this process instead")
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// ready tells who started this process that it serves: its predecessor, if it has
// one, and the service manager (sd_notify(3)).
func (p *passed) ready() error {
	message := "READY=1"
	if p.successor {
		message = fmt.Sprintf("MAINPID=%d\nREADY=1", os.Getpid())
	}
	// The manager first: the predecessor may end at once.
	err := notify(message)
	if pipe := p.take(readyPipe); pipe != nil {
		_, werr := pipe.Write([]byte{1})
		err = errors.Join(err, werr, pipe.Close())
	}
	return err
}
