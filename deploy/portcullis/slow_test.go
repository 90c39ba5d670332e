//go:build slow

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// freePorts returns addresses that nobody listens on. Another process may take
// one before it is used, which is why only slow tests use it.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var found []string
	for range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = listener.Close() }()
		found = append(found, listener.Addr().String())
	}
	return found
}

// TestSlowReadmeRoles runs the README's roles in processes of their own, and
// the tour against them.
func TestSlowReadmeRoles(t *testing.T) {
	for _, tool := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("THE ROLES ARE NOT TESTED: they need %s: %v", tool, err)
		}
	}
	all := blocks(section(t, "## Roles in processes of their own"))
	if len(all) == 0 {
		t.Fatal("the README shows no roles")
	}
	script := all[0]
	ports := freePorts(t, 5)
	for i, address := range []string{"127.0.0.1:8443", "127.0.0.1:8081", "127.0.0.1:4222", "127.0.0.1:8080", "127.0.0.1:9464"} {
		if !strings.Contains(script, address) {
			t.Fatalf("the README's roles do not use %s", address)
		}
		script = strings.ReplaceAll(script, address, ports[i])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", "exec 2>&1\n"+script+"\nportcullis wait\ntrap : TERM\nkill -TERM 0\nwait\necho all ended\n")
	cmd.Dir = t.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	output, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, want := range []string{"n1 ", "1/1 nodes run revision", "all ended"} {
		if !strings.Contains(string(output), want) {
			t.Errorf("lacks %q:\n%s", want, output)
		}
	}
}

// TestSlowCleanClone types the first of the two commands in a clean clone, and
// then Ctrl-C.
func TestSlowCleanClone(t *testing.T) {
	for _, tool := range []string{"git", "make"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("THE CLEAN CLONE IS NOT TESTED: it needs %s: %v", tool, err)
		}
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	clone := filepath.Join(t.TempDir(), "clone")
	if output, err := exec.Command("git", "clone", "-q", "--no-hardlinks", root, clone).CombinedOutput(); err != nil {
		t.Skipf("THE CLEAN CLONE IS NOT TESTED: this is no git repository: %v\n%s", err, output)
	}
	ports := freePorts(t, 3)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command("make", "run", fmt.Sprintf("ARGS=--listen %s --admin-listen %s --metrics-listen %s", ports[0], ports[1], ports[2]))
	cmd.Dir, cmd.Stdout, cmd.Stderr = clone, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { defer close(exited); _ = cmd.Wait() }()
	said := func() string {
		data, err := os.ReadFile(log.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for deadline := time.Now().Add(10 * time.Minute); !strings.Contains(said(), "  context "); {
		select {
		case <-exited:
			t.Fatalf("make run ended:\n%s", said())
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-exited
			t.Fatalf("make run is not ready:\n%s", said())
		}
	}
	status := exec.Command(filepath.Join(clone, "bin", "portcullis"), "status")
	status.Env = append(os.Environ(), "PORTCULLIS_CONTEXT="+filepath.Join(clone, "portcullis-data", "context.yaml"))
	if output, err := status.CombinedOutput(); err != nil || !strings.Contains(string(output), "current") {
		t.Errorf("status: %v\n%s", err, output)
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-exited:
	case <-time.After(time.Minute):
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		t.Errorf("Ctrl-C did not stop it:\n%s", said())
	}
	if strings.Contains(said(), "error:") {
		t.Errorf("it did not stop cleanly:\n%s", said())
	}
	if output, err := exec.Command("git", "-C", clone, "status", "--short").CombinedOutput(); err != nil || len(output) > 0 {
		t.Errorf("running it leaves files that git sees: %v\n%s", err, output)
	}
}
