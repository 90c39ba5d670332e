package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/keys"
	"portcullis.dev/portcullis/dataplane/gateway"
	"portcullis.dev/portcullis/dataplane/limit"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/dataplane/upstream"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/config/expr"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	"portcullis.dev/portcullis/pkg/telemetry"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	issuerURL = "https://issuer.bench.example"
	audience  = "https://api.bench.example"
)

// rig is a node's parts without its wires: what dataplane.Node assembles, minus
// the listener and the disk.
type rig struct {
	deps      policy.Deps
	gateway   *gateway.Gateway
	telemetry *telemetry.Telemetry
	pool      *upstream.Pool
}

func newRig(ctx context.Context) (*rig, error) {
	tel, err := telemetry.Setup(ctx, telemetry.Config{Service: "bench"})
	if err != nil {
		return nil, err
	}
	r := &rig{telemetry: tel, pool: upstream.NewPool(upstream.Config{}), deps: policy.Deps{
		Credentials: credential.NewSet(), Revocations: revocation.NewSet(), Freshness: revocation.NewFreshness(),
		Limiter: limit.New(limit.Config{Node: "bench", Boot: 1}), Expr: expr.New(),
	}}
	r.gateway = gateway.New(gateway.Config{
		Node: "bench", Policy: r.deps, Pool: r.pool, Tokens: token.NewCache(token.CacheConfig{}), Counters: tel.Counters,
		Sampler: tel.Sampler, Tracer: tel, Decisions: gateway.NewDecisions("bench"), Log: slog.New(slog.DiscardHandler),
	})
	return r, nil
}

func (r *rig) close() error {
	r.pool.Close()
	return r.telemetry.Shutdown(context.Background())
}

// signing is an issuer, its vetted keys, and the key that signs.
type signing struct {
	signer    *keys.Signer
	resources []*configv1.Resource
}

func newSigning() (*signing, error) {
	signer, err := keys.NewSigner()
	if err != nil {
		return nil, err
	}
	public, err := signer.Public()
	if err != nil {
		return nil, err
	}
	meta := func() *configv1.Metadata {
		return &configv1.Metadata{Workspace: config.DefaultWorkspace, Name: "bench"}
	}
	return &signing{signer, []*configv1.Resource{
		{Metadata: meta(), Spec: &configv1.Resource_Issuer{Issuer: &configv1.Issuer{Issuer: issuerURL, JwksUri: issuerURL + "/keys"}}},
		{Metadata: meta(), Spec: &configv1.Resource_KeySet{KeySet: &configv1.KeySet{
			Keys: []*configv1.Key{public}, FetchedAt: timestamppb.Now(), StaleAt: timestamppb.New(time.Now().Add(24 * time.Hour)),
		}}},
	}}, nil
}

func (s *signing) token(id string) (string, error) {
	now := time.Now()
	return s.signer.Sign(keys.Claims{
		Issuer: issuerURL, Subject: "alice", Client: "web", TokenID: id, Audiences: []string{audience},
		Scopes: []string{"orders:read"}, IssuedAt: now, ExpiresAt: now.Add(time.Hour),
	})
}

// decode reads resources from YAML.
func decode(text string) ([]*configv1.Resource, error) {
	documents, err := config.Decode("bench.yaml", []byte(text))
	if err != nil {
		return nil, err
	}
	resources := make([]*configv1.Resource, len(documents))
	for i, d := range documents {
		resources[i] = d.Resource
	}
	return resources, nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}
