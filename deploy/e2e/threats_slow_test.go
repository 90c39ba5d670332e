//go:build slow

package e2e_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"portcullis.dev/portcullis/deploy/cluster"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// A hundred thousand routes in one apply.
func TestSlowThreatHundredThousandRoutes(t *testing.T) {
	h := start(t, cluster.Config{})
	h.apply(twoWorkspaces)
	threatManyRoutes(t, h, 100_000)
	_, err := h.admin.Apply(t.Context(), &adminv1.ApplyRequest{Change: &adminv1.Change{Deletes: manyKeys(200_001)}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("200,001 documents in one change: %.200v", err)
	}
}

// A key that the identity provider has just begun to use is learnt from the
// tokens that name it, once the 30 s since the last fetch are over; a withdrawn
// one is out with the same fetch.
func TestSlowThreatRotationIsLearntFromTokens(t *testing.T) {
	h := start(t, cluster.Config{AllowLoopbackJWKS: true})
	before, after := newES256(t, "before"), newES256(t, "after")
	idp := newJWKS(t, before)
	h.apply(fmt.Sprintf("apiVersion: portcullis.dev/v1\nkind: Issuer\nmetadata: {name: ext}\nspec: {issuer: %q, jwksUri: %q}\n", extIssuer, idp.URL+"/jwks") +
		guarded("api", "ext", "https://api.example"))
	accepted := func(k keyPair) func() error {
		return func() error {
			if a := h.get(0, "/api", authorization(k.token())...); a.Status != 200 {
				return fmt.Errorf("%+v", a)
			}
			return nil
		}
	}
	h.until("the keys are fetched", accepted(before))
	old := before.token()
	if a := h.get(0, "/api", authorization(old)...); a.Status != 200 {
		t.Fatalf("%+v", a)
	}
	idp.rotate(after)
	asked := idp.asked.Load()
	h.untilLong("the new key is learnt", accepted(after))
	if n := idp.asked.Load() - asked; n != 1 {
		t.Errorf("%d fetches, want 1", n)
	}
	refused(t, "the withdrawn key, from the cache", h.get(0, "/api", authorization(old)...), 401, "token_bad_signature")
}

// untilLong is until for what takes two of its patiences.
func (h *harness) untilLong(what string, f func() error) {
	h.t.Helper()
	deadline := time.Now().Add(2 * patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond) // a refetch is at most one in 30 s
	}
}
