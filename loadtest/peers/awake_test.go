package main

import (
	"os"
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

func TestGiveWayRefuses(t *testing.T) {
	for _, bad := range [][]string{nil, {"no-such-program-anywhere"}} {
		if giveWay(bad) == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}
