package e2e_test

import (
	"errors"
	"fmt"
	"testing"

	"portcullis.dev/portcullis/deploy/cluster"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

const orders = `
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: orders}
spec:
  matches: [{path: {prefix: /orders}}]
  policies:
    - jwt: {issuers: [local], audiences: [https://api.example]}
    - authorize: {rules: [{name: read, scopes: [orders:read]}]}
  revocation: {maxStaleness: 5s, onStale: deny}
  backends: [{upstream: up}]
`

// The spine: declare, stream, verify, refuse with a reason, explain, revoke.
func TestSpine(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 3})
	h.apply(orders)
	token := h.mint("alice", "orders:read")
	other := h.mint("bob")
	for node := range 3 {
		if a := h.get(node, "/orders/1", "Authorization", "Bearer "+token); a.Status != 200 || a.Body != "ok /orders/1" {
			t.Fatalf("node %d: allowed request: %+v", node, a)
		}
		if a := h.get(node, "/orders/1"); a.Status != 401 || a.Reason != "credential_missing" || a.Header.Get("WWW-Authenticate") == "" {
			t.Fatalf("node %d: no credential: %+v", node, a)
		}
		if a := h.get(node, "/nowhere"); a.Status != 404 || a.Reason != "no_route" {
			t.Fatalf("node %d: no route: %+v", node, a)
		}
	}
	denied := h.get(1, "/orders/1", "Authorization", "Bearer "+other)
	if denied.Status != 403 || denied.Reason != "scope_missing" || denied.RequestID != denied.Header.Get("X-Request-Id") {
		t.Fatalf("without the scope: %+v", denied)
	}
	why, err := h.admin.Why(t.Context(), &adminv1.WhyRequest{RequestId: denied.RequestID})
	if err != nil {
		t.Fatal(err)
	}
	if r := why.Record; r.Reason != "scope_missing" || r.Rule != "read" || r.Route != "orders" || r.Subject != "bob" || r.Node != "node-2" {
		t.Fatalf("why: %v", r)
	}
	if _, err := h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: "alice"}); err != nil {
		t.Fatal(err)
	}
	for node := range 3 {
		h.until("revoked everywhere", func() error {
			if a := h.get(node, "/orders/1", "Authorization", "Bearer "+token); a.Reason != "token_revoked" {
				return fmt.Errorf("node %d: %+v", node, a)
			}
			return nil
		})
	}
	if got := h.up.take(); len(got) < 3 {
		t.Fatal(errors.New("the upstream saw fewer than the allowed requests"))
	}
}
