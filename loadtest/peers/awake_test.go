package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The child that keeps a processor awake gives way to everybody, has its processor
// alone when nobody wants it, and ends when it is told to.
func TestAwakeGivesWay(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := launch(command{name: "awake", args: []string{self, "idle", self, "awake"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	err = p.until(t.Context(), 20*time.Second, func() error {
		if !p.said.has("awake\n") {
			return os.ErrNotExist
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	attr, err := unix.SchedGetAttr(p.cmd.Process.Pid, 0)
	if err != nil || attr.Policy != unix.SCHED_IDLE {
		t.Errorf("policy %+v %v", attr, err)
	}
	p.stop()
	if text := p.said.String(); text != "awake" {
		t.Errorf("it has said %q", text)
	}
}

// It ends with its parent, however that ends.
func TestAwakeEndsWithItsParent(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The shell stands for the parent: it is killed, and tells nobody.
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	parent := exec.Command("sh", "-c", `"$0" idle "$0" awake & wait`, self)
	parent.Stdout = out
	if err := errors.Join(parent.Start(), out.Close()); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(in)
	if line, err := said.ReadString('\n'); line != "awake\n" {
		t.Errorf("%q %v", line, err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // It was killed.
	// The child holds the other end until it ends.
	if err := in.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := said.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("it lives on: %v", err)
	}
}

func TestGiveWayRefuses(t *testing.T) {
	for _, bad := range [][]string{nil, {"no-such-program-anywhere"}} {
		if giveWay(bad) == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}
