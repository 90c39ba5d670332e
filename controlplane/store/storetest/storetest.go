// Package storetest is what every store.Store must do. It is run over the etcd
// store and over its twin in memory: the twin is trusted because it passes.
package storetest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Run tests the stores that open returns. Each is new and empty; open arranges
// that it is closed, and may be called concurrently.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"Empty", testEmpty},
		{"Apply", testApply},
		{"ApplyNothing", testApplyNothing},
		{"Conflict", testConflict},
		{"Lanes", testLanes},
		{"Refused", testRefused},
		{"Secrets", testSecrets},
		{"Ownership", testOwnership},
		{"LargeBatch", testLargeBatch},
		{"Credentials", testCredentials},
		{"CredentialCreation", testCredentialCreation},
		{"CredentialPages", testCredentialPages},
		{"Revocations", testRevocations},
		{"Watch", testWatch},
		{"WatchReplays", testWatchReplays},
		{"WatchRefused", testWatchRefused},
		{"WatchHints", testWatchHints},
		{"History", testHistory},
		{"AtEveryRevision", testAt},
		{"Races", testRaces},
		{"Items", testItems},
		{"ItemsOnce", testItemsOnce},
		{"ItemsExpire", testItemsExpire},
		{"ItemsHold", testItemsHold},
		{"Closed", testClosed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, open(t))
		})
	}
}

// Sealer encrypts with a random AES-256-GCM key.
func Sealer() store.Sealer {
	var key [32]byte
	_, _ = rand.Read(key[:])
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return sealer{aead}
}

type sealer struct{ aead cipher.AEAD }

func (s sealer) Seal(plain, aad []byte) ([]byte, error) {
	return s.aead.Seal(nil, nil, plain, aad), nil
}

func (s sealer) Open(sealed, aad []byte) ([]byte, error) {
	return s.aead.Open(nil, nil, sealed, aad)
}

// Route is a small route resource.
func Route(workspace, name, prefix string) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: workspace, Name: name},
		Spec: &configv1.Resource_Route{Route: &configv1.Route{
			Public:    true,
			Hostnames: []string{"api.example"},
			Matches:   []*configv1.Match{{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: prefix}}}},
			Backends:  []*configv1.Backend{{Upstream: "u"}},
		}},
	}
}

// Application is a consumer.
func Application(workspace, name string) *configv1.Resource {
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: workspace, Name: name},
		Spec:     &configv1.Resource_Application{Application: &configv1.Application{Scopes: []string{"read"}}},
	}
}

// Credential is an API key whose hash begins with b.
func Credential(workspace, name, application string, b ...byte) *configv1.Resource {
	var sum [32]byte
	copy(sum[:], b)
	return &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: workspace, Name: name},
		Spec: &configv1.Resource_Credential{Credential: &configv1.Credential{
			Application: application,
			Kind: &configv1.Credential_ApiKey{
				ApiKey: &configv1.APIKeyCredential{Sha256: sum[:], Hint: "pc_abc"}},
		}},
	}
}

// Revocation of a subject whose key is all b.
func Revocation(b byte, before, expires time.Time) *controlv1.Revocation {
	key := make([]byte, 16)
	for i := range key {
		key[i] = b
	}
	r := &controlv1.Revocation{Kind: controlv1.RevocationKind_REVOCATION_KIND_SUBJECT, Key: key}
	if !before.IsZero() {
		r.RevokedBefore = timestamppb.New(before)
	}
	if !expires.IsZero() {
		r.ExpiresAt = timestamppb.New(expires)
	}
	return r
}

// Upserts is a change that puts resources.
func Upserts(rs ...*configv1.Resource) *adminv1.Change { return &adminv1.Change{Upserts: rs} }

// Deletes is a change that deletes what resources name.
func Deletes(rs ...*configv1.Resource) *adminv1.Change {
	c := new(adminv1.Change)
	for _, r := range rs {
		c.Deletes = append(c.Deletes, config.KeyOf(r).Proto())
	}
	return c
}

var by = store.Meta{Author: "alice", Reason: "because"}

// within bounds a test's calls; it is generous, since the machine may be slow.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// load fails the test unless the store loads.
func load(t *testing.T, s store.Store) *store.State {
	t.Helper()
	st, err := s.Load(within(t))
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return st
}

// apply fails the test unless the change commits on the current version.
func apply(t *testing.T, s store.Store, c *adminv1.Change) config.Version {
	t.Helper()
	v, err := s.Apply(within(t), load(t, s).Version, c, by)
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return v
}

func credentials(t *testing.T, st *store.State) map[string]*configv1.Resource {
	t.Helper()
	out := make(map[string]*configv1.Resource)
	for r, err := range st.Credentials {
		if err != nil {
			t.Fatalf("Credentials: %v", err)
		}
		name := r.GetMetadata().GetWorkspace() + "/" + r.GetMetadata().GetName()
		if out[name] != nil {
			t.Fatalf("credential %s twice", name)
		}
		out[name] = r
	}
	return out
}

func names(rs []*configv1.Resource) []string {
	out := make([]string, 0, len(rs))
	for _, r := range rs {
		out = append(out, fmt.Sprint(config.KeyOf(r)))
	}
	return out
}
