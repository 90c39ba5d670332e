package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// CreateCredential implements Store.
func (s *Memory) CreateCredential(ctx context.Context, r *configv1.Resource, meta Meta) (config.Version, error) {
	return s.setCredential(ctx, r, meta, true)
}

// PutCredential implements Store.
func (s *Memory) PutCredential(ctx context.Context, r *configv1.Resource, meta Meta) (config.Version, error) {
	return s.setCredential(ctx, r, meta, false)
}

func (s *Memory) setCredential(ctx context.Context, r *configv1.Resource, meta Meta, fresh bool) (config.Version, error) {
	k, app, err := credentialKeys(r)
	if err != nil {
		return config.Version{}, err
	}
	if err := s.enter(ctx); err != nil {
		return config.Version{}, err
	}
	defer s.mu.Unlock()
	switch {
	case s.stored[app] == nil:
		return config.Version{}, fmt.Errorf("%w: %s", ErrNotFound, app)
	case fresh && s.stored[k] != nil:
		return config.Version{}, fmt.Errorf("%w: %s", ErrExists, k)
	}
	return s.write(wanted{keys: []config.Key{k}, after: map[config.Key]*configv1.Resource{k: r}}, meta), nil
}

// DeleteCredential implements Store.
func (s *Memory) DeleteCredential(ctx context.Context, workspace, name string, meta Meta) (config.Version, *configv1.Resource, error) {
	k := config.Key{Kind: kindCredential, Workspace: workspace, Name: name}
	if err := checkKey(k); err != nil {
		return config.Version{}, nil, err
	}
	if err := s.enter(ctx); err != nil {
		return config.Version{}, nil, err
	}
	defer s.mu.Unlock()
	was := s.stored[k]
	if was == nil {
		return config.Version{}, nil, fmt.Errorf("%w: %s", ErrNotFound, k)
	}
	return s.write(wanted{keys: []config.Key{k}}, meta), proto.CloneOf(was), nil
}

// GetCredential implements Store.
func (s *Memory) GetCredential(ctx context.Context, workspace, name string) (*configv1.Resource, error) {
	k := config.Key{Kind: kindCredential, Workspace: workspace, Name: name}
	if err := checkKey(k); err != nil {
		return nil, err
	}
	if err := s.enter(ctx); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if s.stored[k] == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, k)
	}
	return proto.CloneOf(s.stored[k]), nil
}

// ListCredentials implements Store.
func (s *Memory) ListCredentials(ctx context.Context, workspace string, page Page) (CredentialPage, error) {
	if page.Limit <= 0 {
		page.Limit = 1000
	}
	if err := checkKey(config.Key{Kind: kindCredential, Workspace: workspace, Name: "any"}); err != nil {
		return CredentialPage{}, err
	}
	if err := s.enter(ctx); err != nil {
		return CredentialPage{}, err
	}
	defer s.mu.Unlock()
	out := CredentialPage{Version: s.version(s.tip())}
	var names []string
	for k := range s.stored {
		if k.Kind == kindCredential && k.Workspace == workspace && strings.Compare(k.Name, page.After) > 0 {
			names = append(names, k.Name)
		}
	}
	slices.Sort(names)
	if len(names) > page.Limit {
		names = names[:page.Limit]
		out.Next = names[page.Limit-1]
	}
	for _, name := range names {
		k := config.Key{Kind: kindCredential, Workspace: workspace, Name: name}
		out.Credentials = append(out.Credentials, proto.CloneOf(s.stored[k]))
	}
	return out, nil
}
