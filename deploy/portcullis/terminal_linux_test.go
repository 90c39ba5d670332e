package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// openTerminal returns both ends of a pseudo-terminal; see pts(4).
func openTerminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("NO TERMINAL TO TEST WITH: %v", err)
	}
	var unlock, number int32
	for request, argument := range map[uintptr]*int32{syscall.TIOCSPTLCK: &unlock, syscall.TIOCGPTN: &number} {
		if _, _, code := syscall.Syscall(syscall.SYS_IOCTL, ours.Fd(), request, uintptr(unsafe.Pointer(argument))); code != 0 {
			t.Fatalf("pseudo-terminal: %v", code)
		}
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// onTerminal runs a command on a terminal and returns what that shows.
func onTerminal(t *testing.T, env []string, args ...string) string {
	t.Helper()
	ours, theirs := openTerminal(t)
	defer func() { _ = ours.Close() }()
	cmd := exec.Command("portcullis", args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(slices.Clone(os.Environ()), env...), theirs, theirs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	// Reading ends with an error when the last process has left the terminal.
	shown, _ := io.ReadAll(ours)
	_ = cmd.Wait()
	return string(shown)
}

// TestTerminal: colours and progress show on a terminal that can, and only there.
func TestTerminal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := startStandalone(dir, os.Environ(), "--demo")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(); err != nil {
			t.Errorf("standalone: %v", err)
		}
	}()
	file := filepath.Join(dir, "app.yaml")
	document := "apiVersion: portcullis.dev/v1\nkind: Application\nmetadata: {name: app}\nspec: {description: one}\n"
	if err := os.WriteFile(file, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"PORTCULLIS_CONTEXT=" + filepath.Join(dir, "data", "context.yaml"), "TERM=xterm", "NO_COLOR="}
	const green, waiting = "\x1b[32m+ Application default/app\x1b[0m", "waiting for the nodes ... "
	if shown := onTerminal(t, env, "plan", "-f", file); !strings.Contains(shown, green) {
		t.Errorf("plan on a terminal shows %q, without %q", shown, green)
	}
	for _, plain := range []string{"NO_COLOR=1", "TERM=dumb"} {
		if shown := onTerminal(t, append(env, plain), "plan", "-f", file); strings.Contains(shown, "\x1b") || !strings.Contains(shown, "+ Application") {
			t.Errorf("plan with %s shows %q", plain, shown)
		}
	}
	late := []string{"wait", "--revision", "99999", "--timeout", "1s"}
	if shown := onTerminal(t, env, late...); !strings.Contains(shown, waiting) || !strings.Contains(shown, "\r\x1b[K") {
		t.Errorf("wait on a terminal shows no progress: %q", shown)
	}
	cmd := exec.Command("portcullis", late...)
	cmd.Env = append(os.Environ(), env...)
	if said, err := cmd.CombinedOutput(); err == nil || strings.Contains(string(said), "\x1b") || strings.Contains(string(said), waiting) {
		t.Errorf("wait into a pipe: %v %q", err, said)
	}
}
