package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// stamped is a big configuration that stamps every answer twice: by the
// workspace's baseline and by the route. An answer whose stamps differ was made of
// two versions.
func stamped(version string, routes int) string {
	var b strings.Builder
	fmt.Fprintf(&b, `
apiVersion: portcullis.dev/v1
kind: Workspace
metadata: {name: default}
spec:
  policies: [{headers: {response: {set: {x-base: %s}}}}]
`, version)
	filler := strings.Repeat("f", 1500)
	for i := range routes {
		fmt.Fprintf(&b, `---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: r%d}
spec:
  public: true
  matches: [{path: {prefix: /r%d}}]
  policies: [{headers: {request: {set: {x-filler: %s}}, response: {set: {x-route: %s}}}}]
  backends: [{upstream: up}]
`, i, i, filler, version)
	}
	return b.String()
}

func stampOf(a answer) (string, error) {
	base, route := a.Header.Get("X-Base"), a.Header.Get("X-Route")
	if a.Status != 200 || base == "" || base != route {
		return "", fmt.Errorf("%d %s: made of base %q and route %q", a.Status, a.Reason, base, route)
	}
	return base, nil
}

// A control plane that is killed while it sends a big version: no node takes a
// part of it, no request fails, and a node on a good link is not held up by one
// on a bad link.
func TestControlKilledMidPush(t *testing.T) {
	const routes = 100
	between := newLinks(t)
	h := start(t, cluster.Config{Nodes: 2, Adjust: between.adjust})
	h.apply(stamped("one", routes))
	before := h.Plane().Version()
	passed := func(a answer) error { _, err := stampOf(a); return err }
	traffic := h.load("/r7/x", passed, 0, 1)
	// The link to node 0 breaks after the first of the chunks.
	between.control[0].toxin("limit_data", "downstream", map[string]int{"bytes": 100_000})
	resp, err := h.admin.Apply(t.Context(), &adminv1.ApplyRequest{Change: documents(t, stamped("two", routes))})
	h.must("apply", err)
	after := config.VersionOf(resp.Version)
	h.runs(1, after)
	h.must("killing the control plane", h.StopControl())
	traffic.more(50)
	if v := h.Node(0).Version(); v != before {
		t.Errorf("node 0 runs %v without having received it whole, want %v", v, before)
	}
	for i := 0; i < routes; i += 9 {
		for node, want := range []string{"one", "two"} {
			if got, err := stampOf(h.get(node, fmt.Sprintf("/r%d/x", i))); err != nil || got != want {
				t.Errorf("node %d, route %d: version %q, want %q: %v", node, i, got, want, err)
			}
		}
	}
	between.control[0].cut()
	h.must("healing", between.control[0].proxy.Toxics.RemoveToxic(t.Context(), "limit_data-downstream"))
	between.control[0].mend()
	h.must("starting the control plane", h.StartControl(within(t)))
	h.must("converge", h.Converge(within(t)))
	traffic.end()
	for i := 0; i < routes; i += 9 {
		if got, err := stampOf(h.get(0, fmt.Sprintf("/r%d/x", i))); err != nil || got != "two" {
			t.Errorf("healed: route %d: version %q, %v", i, got, err)
		}
	}
}

// All control planes down: requests go on, what was revoked stays revoked, and a
// node that restarts serves from its copy, but no route that wants to be certain.
func TestAllControlDown(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 2})
	h.apply(public + "---" + strings.NewReplacer("name: orders", "name: lasting", "/orders", "/lasting",
		"revocation: {maxStaleness: 5s, onStale: deny}", "").Replace(orders) + "---" + orders)
	good, bad := h.mint("alice", "orders:read"), h.mint("mallory", "orders:read")
	_, err := h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: "mallory"})
	h.must("revoke", err)
	h.must("converge", h.Converge(within(t)))
	traffic := h.load("/public", ok, 0)
	h.must("stopping the control plane", h.StopControl())
	traffic.more(20)
	h.must("stopping node 1", h.StopNode(1))
	h.must("starting node 1", h.StartNode(within(t), 1))
	h.runs(1, config.Version{})
	for node := range 2 {
		if a := h.get(node, "/lasting/1", "Authorization", "Bearer "+good); a.Status != 200 {
			t.Errorf("node %d with no control plane: %+v", node, a)
		}
		if a := h.get(node, "/lasting/1", "Authorization", "Bearer "+bad); a.Reason != "token_revoked" {
			t.Errorf("node %d forgot a revocation: %+v", node, a)
		}
	}
	if a := h.get(1, "/orders/1", "Authorization", "Bearer "+good); a.Status != 503 || a.Reason != "revocations_stale" {
		t.Errorf("a node that has heard nothing since it started served a route that bounds staleness: %+v", a)
	}
	traffic.more(20)
	traffic.end()
	h.must("starting the control plane", h.StartControl(within(t)))
	// Committed before the nodes are back: they hear of it when they are.
	h.apply(strings.ReplaceAll(public, "/public", "/renamed"))
	for node := range 2 {
		h.until("current again", func() error {
			if a := h.get(node, "/renamed"); a.Status != 200 {
				return fmt.Errorf("node %d: %+v", node, a)
			}
			if a := h.get(node, "/orders/1", "Authorization", "Bearer "+good); a.Status != 200 {
				return fmt.Errorf("node %d: %+v", node, a)
			}
			return nil
		})
	}
}

// One slow node: the others do not notice, and it gets the newest version without
// the ones between.
func TestSlowNode(t *testing.T) {
	between := newLinks(t)
	h := start(t, cluster.Config{Nodes: 3, Adjust: between.adjust})
	h.apply(stamped("zero", 20))
	heal := between.control[2].toxin("bandwidth", "downstream", map[string]int{"rate": 2}) // KB/s, and a version has 30 KB
	var first, last config.Version
	for i := range 8 {
		resp, err := h.admin.Apply(t.Context(), &adminv1.ApplyRequest{Change: documents(t, stamped(fmt.Sprintf("v%d", i), 20))})
		h.must("apply", err)
		last = config.VersionOf(resp.Version)
		if i == 0 {
			first = last
		}
		h.runs(0, last)
		h.runs(1, last)
	}
	// What the control plane writes by itself is small and may have come through.
	if v := h.Node(2).Version(); v.Compare(first) >= 0 {
		t.Errorf("the slow node got to %v, the first of them being %v: its link was not slow", v, first)
	}
	waited, err := h.admin.Wait(t.Context(), &adminv1.WaitRequest{Revision: last.Revision, Timeout: durationpb.New(50 * time.Millisecond)})
	h.must("wait", err)
	if c := waited.Convergence; c.Converged || c.Programmed != 2 || c.Total != 3 || len(c.Behind) != 1 || c.Behind[0].Name != "node-3" {
		t.Errorf("convergence does not name the slow node: %v", c)
	}
	heal()
	h.runs(2, last)
}

// lastGood lists a node's copies, the oldest first.
func lastGood(t *testing.T, dir, node string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "nodes", node, "last-known-good", "*.lkg"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// A copy that was damaged is never served and never fatal: the next older one is
// used, and with none left the node waits.
func TestLastKnownGoodDamaged(t *testing.T) {
	dir := t.TempDir()
	h := start(t, cluster.Config{Dir: dir})
	for _, version := range []string{"one", "two", "three"} {
		h.apply(stamped(version, 3))
		h.must("stopping the node", h.StopNode(0))
		h.must("starting the node", h.StartNode(within(t), 0))
		h.must("converge", h.Converge(within(t)))
	}
	h.must("stopping the control plane", h.StopControl())
	h.must("stopping the node", h.StopNode(0))
	files := lastGood(t, dir, "node-1")
	if len(files) != 3 {
		t.Fatalf("copies on disk: %v", files)
	}
	damage := func(file string, how func([]byte) []byte) {
		data, err := os.ReadFile(file)
		h.must("reading", err)
		h.must("damaging", os.WriteFile(file, how(data), 0o600))
	}
	serves := func(want string) {
		t.Helper()
		h.must("starting the node", h.StartNode(within(t), 0))
		h.runs(0, config.Version{})
		if got, err := stampOf(h.get(0, "/r1/x")); err != nil || got != want {
			t.Errorf("it serves %q, %v, want %q", got, err, want)
		}
		h.must("stopping the node", h.StopNode(0))
	}
	damage(files[2], func(b []byte) []byte { return b[:len(b)/2] })
	serves("two")
	damage(files[1], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	serves("one")
	damage(files[0], func([]byte) []byte { return nil })
	h.must("starting the node", h.StartNode(within(t), 0))
	if err := h.Node(0).Ready(); err == nil {
		t.Error("a node without a configuration is ready")
	}
	if a := h.get(0, "/r1/x"); a.Status != 503 || a.Reason != "not_ready" {
		t.Errorf("a node without a configuration: %+v", a)
	}
	h.must("starting the control plane", h.StartControl(within(t)))
	h.must("converge", h.Converge(within(t)))
	if got, err := stampOf(h.get(0, "/r1/x")); err != nil || got != "three" {
		t.Errorf("after recovery: %q, %v", got, err)
	}
	if aside, _ := filepath.Glob(filepath.Join(dir, "nodes", "node-1", "last-known-good", "*.bad")); len(aside) != 3 {
		t.Errorf("bad copies kept for people to look at: %v", aside)
	}
}

// What was revoked while a node was down is denied from the moment that the node
// is ready, not from some moment after.
func TestRevokeThenRestart(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 2})
	h.apply(strings.Replace(orders, "revocation: {maxStaleness: 5s, onStale: deny}", "", 1))
	for i := range 5 {
		subject := fmt.Sprintf("user-%d", i)
		token := h.mint(subject, "orders:read")
		h.must("stopping node 1", h.StopNode(1))
		_, err := h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: subject})
		h.must("revoke", err)
		h.must("starting node 1", h.StartNode(within(t), 1))
		h.runs(1, config.Version{})
		if a := h.get(1, "/orders/1", "Authorization", "Bearer "+token); a.Reason != "token_revoked" {
			t.Fatalf("round %d: the first request after ready: %+v", i, a)
		}
	}
}

// A rollback moves the config lane only: what was revoked before it, while it
// went on and after it stays revoked.
func TestRevokeDuringRollback(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 2})
	first := h.apply(orders).Version
	before, during := h.mint("before", "orders:read"), h.mint("during", "orders:read")
	h.apply(public)
	_, err := h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: "before"})
	h.must("revoke", err)
	rolled := make(chan error, 1)
	go func() {
		_, err := h.admin.Rollback(t.Context(), &adminv1.RollbackRequest{Revision: first.Revision})
		rolled <- err
	}()
	_, err = h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: "during"})
	h.must("revoke during the rollback", err)
	h.must("rollback", <-rolled)
	h.must("converge", h.Converge(within(t)))
	for node := range 2 {
		if a := h.get(node, "/public"); a.Reason != "no_route" {
			t.Errorf("node %d was not rolled back: %+v", node, a)
		}
		for _, token := range []string{before, during} {
			h.until("denied", func() error {
				if a := h.get(node, "/orders/1", "Authorization", "Bearer "+token); a.Reason != "token_revoked" {
					return fmt.Errorf("node %d: %+v", node, a)
				}
				return nil
			})
		}
	}
}
