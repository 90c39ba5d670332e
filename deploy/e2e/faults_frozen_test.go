package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane"
	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/bus"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// nodeVariable tells this test binary to be a node: a process that can be frozen
// and killed without a binary being linked for it.
const nodeVariable = "PORTCULLIS_E2E_NODE"

// nodeProcess is what such a process is told.
type nodeProcess struct {
	Name, Dir, Listen, Control, BusURL, JoinToken string
}

// TestNodeProcess is the node of other tests, not a test of its own.
func TestNodeProcess(t *testing.T) {
	text := os.Getenv(nodeVariable)
	if text == "" {
		return
	}
	var told nodeProcess
	if err := json.Unmarshal([]byte(text), &told); err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", told.Listen)
	if err != nil {
		t.Fatal(err)
	}
	node, err := dataplane.New(ctx, dataplane.Config{
		Name: told.Name, DataDir: told.Dir, Control: []string{told.Control}, JoinToken: told.JoinToken, Listener: listener,
		Bus: bus.NATSConfig{URLs: []string{told.BusURL}, Plaintext: true}, Drain: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Run(ctx); err != nil {
		t.Fatal(err)
	}
}

// spawn starts a node in a process of its own; the test's end kills it.
func (h *harness) spawn(told nodeProcess) *exec.Cmd {
	h.t.Helper()
	text, err := json.Marshal(told)
	h.must("telling the process", err)
	cmd := exec.Command(os.Args[0], "-test.run=^TestNodeProcess$", "-test.v")
	cmd.Env = append(os.Environ(), nodeVariable+"="+string(text))
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	h.must("starting the process", cmd.Start())
	h.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if h.t.Failed() {
			h.t.Logf("the node's process: %s", output.String())
		}
	})
	return cmd
}

// freeAddress is a loopback address that was free a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// A node that was frozen: the first answers after it wakes go by the staleness
// rule, though proofs from before the freeze wait in its buffers; what was revoked
// meanwhile is never served; and it recovers by itself.
func TestFrozenNode(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 1, BusListen: "127.0.0.1:0"})
	h.apply(strings.Replace(orders, "maxStaleness: 5s", "maxStaleness: 1s", 1))
	good, bad := h.mint("alice", "orders:read"), h.mint("mallory", "orders:read")
	token, err := h.Plane().JoinToken(t.Context(), time.Minute)
	h.must("join token", err)
	told := nodeProcess{"frozen", t.TempDir(), freeAddress(t), h.ControlAddress(), h.BusURL(), token}
	process := h.spawn(told)
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(token string) (string, error) {
		req, err := http.NewRequest("GET", "http://"+told.Listen+"/orders/1", nil)
		if err != nil {
			return "", err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer func() { _ = resp.Body.Close() }()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode == 200 {
			return "ok", err
		}
		var problem answer
		return problem.Reason, json.Unmarshal(text, &struct{ Reason *string }{&problem.Reason})
	}
	serves := func(want string) {
		t.Helper()
		h.until("the node answers "+want, func() error {
			for _, one := range []string{good, bad} {
				if got, err := get(one); err != nil || got != "ok" {
					return fmt.Errorf("%s, %v", got, err)
				}
			}
			return nil
		})
	}
	serves("ok")
	h.must("freezing", process.Process.Signal(syscall.SIGSTOP))
	frozen := time.Now()
	_, err = h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: "mallory"})
	h.must("revoke", err)
	// Requests that come while it is frozen wait in the kernel and are answered first.
	type result struct {
		token, reason string
		err           error
	}
	waiting := make(chan result, 8)
	for i := range cap(waiting) {
		one := good
		if i%2 == 1 {
			one = bad
		}
		go func() {
			reason, err := get(one)
			waiting <- result{one, reason, err}
		}()
	}
	// The freeze has to last longer than the route's bound.
	time.Sleep(time.Until(frozen.Add(1500 * time.Millisecond)))
	h.must("waking", process.Process.Signal(syscall.SIGCONT))
	for range cap(waiting) {
		r := <-waiting
		if r.err != nil {
			t.Fatal(r.err)
		}
		want := map[string]bool{"revocations_stale": true}
		if r.token == bad {
			want["token_revoked"] = true
		}
		if !want[r.reason] {
			t.Errorf("a request that waited while the node was frozen: %q", r.reason)
		}
	}
	h.until("it recovers", func() error {
		got, err := get(good)
		if err != nil || got != "ok" {
			return fmt.Errorf("%s, %v", got, err)
		}
		return nil
	})
	if got, err := get(bad); err != nil || got != "token_revoked" {
		t.Errorf("revoked while it was frozen: %s, %v", got, err)
	}
}
