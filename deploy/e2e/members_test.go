package e2e_test

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"portcullis.dev/portcullis/deploy/cluster"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// A node that is taken out follows no control plane any more, and serves what it
// last had until it is stopped.
func TestNodeRemoved(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 2})
	h.apply(`
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: open}
spec: {public: true, backends: [{upstream: up}]}
`)
	if _, err := h.admin.RemoveNode(t.Context(), &adminv1.RemoveNodeRequest{Name: "node-3"}); status.Code(err) != codes.NotFound {
		t.Errorf("removing nobody: %v", err)
	}
	if _, err := h.admin.RemoveNode(t.Context(), &adminv1.RemoveNodeRequest{Name: "node-2"}); err != nil {
		t.Fatal(err)
	}
	connected := func() (names []string) {
		resp, err := h.admin.Status(t.Context(), &adminv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, node := range resp.Nodes {
			if node.Connected {
				names = append(names, node.Name)
			}
		}
		return names
	}
	h.until("the node is gone", func() error {
		if names := connected(); len(names) != 1 || names[0] != "node-1" {
			return fmt.Errorf("connected: %v", names)
		}
		return nil
	})
	if a := h.get(1, "/"); a.Status != 200 {
		t.Errorf("what it last had: %+v", a)
	}
	// It stays out, however often it knocks; only then the cluster is at one.
	if err := h.StopNode(1); err != nil {
		t.Error(errors.New("stopping the removed node: " + err.Error()))
	}
}
