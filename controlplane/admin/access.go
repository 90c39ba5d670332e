package admin

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/keys"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	defaultLifetime = 24 * time.Hour
	defaultTokenTTL = time.Hour
	// keyRevocation is how long the deny lane remembers an ended API key. The
	// credential itself is gone with the same call; this covers nodes that cannot
	// be reached for a while.
	keyRevocation = 30 * 24 * time.Hour
	maxClaims     = 64
)

// CreateKey implements adminv1.AdminServiceServer.
func (s *Service) CreateKey(ctx context.Context, req *adminv1.CreateKeyRequest) (*adminv1.CreateKeyResponse, error) {
	started := time.Now()
	workspace := req.Workspace
	if workspace == "" {
		workspace = config.DefaultWorkspace
	}
	name := req.Name
	if name == "" {
		name = "key-" + strings.ToLower(rand.Text()[:12])
	}
	operator, err := s.authorise(ctx, ActionKeys, "create key "+workspace+"/"+name, workspace)
	if err != nil {
		return nil, err
	}
	secret, sum, hint, err := credential.Generate()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	spec := &configv1.Credential{
		Application: req.Application, Scopes: req.Scopes, CreatedAt: timestamppb.New(now),
		Kind: &configv1.Credential_ApiKey{ApiKey: &configv1.APIKeyCredential{Sha256: sum[:], Hint: hint}},
	}
	if req.Ttl != nil {
		if req.Ttl.AsDuration() <= 0 {
			return nil, fmt.Errorf("%w: ttl must be positive; leave it out for a key that does not expire", ErrInvalid)
		}
		spec.ExpiresAt = timestamppb.New(now.Add(req.Ttl.AsDuration()))
	}
	resource := &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: workspace, Name: name},
		Spec:     &configv1.Resource_Credential{Credential: spec},
	}
	current, _, err := s.newest(ctx)
	if err != nil {
		return nil, err
	}
	if err := config.CheckCredential(current, resource); err != nil {
		return nil, err
	}
	// A name taken is refused: to put another key there would end the first one
	// unasked.
	version, err := s.Store.CreateCredential(ctx, resource, store.Meta{Author: operator.Name, Reason: "create key", Time: now})
	if errors.Is(err, store.ErrExists) {
		return nil, fmt.Errorf("key %s/%s: %w: revoke it first, or choose another name", workspace, name, store.ErrExists)
	}
	if err != nil {
		return nil, err
	}
	s.seen(ctx, version)
	return &adminv1.CreateKeyResponse{
		Key: secret, Name: name, Version: version.Proto(), Convergence: s.converge(ctx, operator, version, req.WaitFor, started),
	}, nil
}

// RevokeKey implements adminv1.AdminServiceServer: the deny lane first, so that
// the key is dead everywhere before it is forgotten.
func (s *Service) RevokeKey(ctx context.Context, req *adminv1.RevokeKeyRequest) (*adminv1.RevokeKeyResponse, error) {
	workspace := req.Workspace
	if workspace == "" {
		workspace = config.DefaultWorkspace
	}
	operator, err := s.authorise(ctx, ActionKeys, "revoke key "+workspace+"/"+req.Name, workspace)
	if err != nil {
		return nil, err
	}
	ended, err := s.Store.GetCredential(ctx, workspace, req.Name)
	if err != nil {
		return nil, fmt.Errorf("key %s/%s: %w", workspace, req.Name, err)
	}
	record, err := credential.Of(ended)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	meta := store.Meta{Author: operator.Name, Reason: "revoke key " + workspace + "/" + req.Name, Time: now}
	entry := &controlv1.Revocation{
		Kind: controlv1.RevocationKind_REVOCATION_KIND_CREDENTIAL, Key: record.ID[:], ExpiresAt: timestamppb.New(now.Add(keyRevocation)),
	}
	if _, err := s.Store.Revoke(ctx, []*controlv1.Revocation{entry}, meta); err != nil {
		return nil, err
	}
	version, _, err := s.Store.DeleteCredential(ctx, workspace, req.Name, meta)
	if err != nil {
		return nil, fmt.Errorf("the key is revoked on every node, but its record stays; revoke it again to remove it: %w", err)
	}
	s.seen(ctx, version)
	return &adminv1.RevokeKeyResponse{Version: version.Proto()}, nil
}

// listCredentials pages through a workspace's credentials, or through those of
// one workspace after another.
func (s *Service) listCredentials(ctx context.Context, operator *adminv1.Operator, req *adminv1.ListRequest, size int) (*adminv1.ListResponse, error) {
	workspaces := []string{req.Workspace}
	if req.Workspace == "" {
		workspaces = s.workspacesOf(operator)
	}
	// The token is workspace/name of the last credential of the page before.
	from, after, _ := strings.Cut(req.PageToken, "/")
	_, version := s.Mirror.Current()
	resp := &adminv1.ListResponse{Version: version.Proto()}
	for _, workspace := range workspaces {
		if workspace < from {
			continue
		}
		if workspace != from {
			after = ""
		}
		page, err := s.Store.ListCredentials(ctx, workspace, store.Page{After: after, Limit: size - len(resp.Resources)})
		if err != nil {
			return nil, err
		}
		for _, resource := range page.Credentials {
			resp.Resources = append(resp.Resources, config.Redact(resource))
		}
		if len(resp.Resources) == size {
			last := config.KeyOf(resp.Resources[size-1])
			resp.NextPageToken = last.Workspace + "/" + last.Name
			break
		}
	}
	return resp, nil
}

// workspacesOf lists the workspaces that the operator covers, sorted.
func (s *Service) workspacesOf(operator *adminv1.Operator) []string {
	if len(operator.Workspaces) > 0 {
		return slices.Compact(slices.Sorted(slices.Values(operator.Workspaces)))
	}
	names := []string{config.DefaultWorkspace}
	current, _ := s.Mirror.Current()
	for key := range current.OfKind(config.KindWorkspace) {
		if key.Name != config.DefaultWorkspace {
			names = append(names, key.Name)
		}
	}
	slices.Sort(names)
	return names
}

// MintToken implements adminv1.AdminServiceServer.
func (s *Service) MintToken(ctx context.Context, req *adminv1.MintTokenRequest) (*adminv1.MintTokenResponse, error) {
	name := req.Issuer
	if name == "" {
		name = "local"
	}
	key := config.Key{Kind: "Issuer", Workspace: config.DefaultWorkspace, Name: name}
	if workspace, rest, ok := strings.Cut(name, "/"); ok {
		key.Workspace, key.Name = workspace, rest
	}
	if _, err := s.authorise(ctx, ActionMint, "token of "+key.String(), key.Workspace); err != nil {
		return nil, err
	}
	current, _ := s.Mirror.Current()
	resource, ok := current.Get(key)
	if !ok || !resource.GetIssuer().GetBuiltIn() {
		return nil, fmt.Errorf("%w: %s is not a built-in issuer: only tokens of issuers with builtIn: true are signed here", ErrInvalid, key)
	}
	issuer := resource.GetIssuer()
	ttl := defaultTokenTTL
	if req.Ttl != nil {
		ttl = req.Ttl.AsDuration()
	}
	longest := defaultLifetime
	if issuer.MaxLifetime != nil {
		longest = issuer.MaxLifetime.AsDuration()
	}
	if ttl < time.Second || ttl > longest {
		return nil, fmt.Errorf("%w: ttl %s is outside 1s to %s, the issuer's maxLifetime", ErrInvalid, ttl, longest)
	}
	if req.Subject == "" && req.Client == "" {
		return nil, fmt.Errorf("%w: a token needs a subject or a client", ErrInvalid)
	}
	extra := req.Claims.AsMap()
	if len(extra) > maxClaims {
		return nil, fmt.Errorf("%w: more than %d extra claims", ErrInvalid, maxClaims)
	}
	token, claims, err := s.Issuers.Mint(ctx, key, issuer, keys.Claims{
		Subject: req.Subject, Client: req.Client, Scopes: req.Scopes, Audiences: req.Audiences, Extra: extra,
	}, ttl, time.Now())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return &adminv1.MintTokenResponse{Token: token, ExpiresAt: timestamppb.New(claims.ExpiresAt), Jti: claims.TokenID}, nil
}
