package store

import (
	"bytes"
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// CreateCredential implements Store.
func (s *Etcd) CreateCredential(ctx context.Context, r *configv1.Resource, meta Meta) (config.Version, error) {
	return s.setCredential(ctx, r, meta, true)
}

// PutCredential implements Store.
func (s *Etcd) PutCredential(ctx context.Context, r *configv1.Resource, meta Meta) (config.Version, error) {
	return s.setCredential(ctx, r, meta, false)
}

func (s *Etcd) setCredential(ctx context.Context, r *configv1.Resource, meta Meta, fresh bool) (config.Version, error) {
	k, app, err := credentialKeys(r)
	if err != nil {
		return config.Version{}, err
	}
	return again(ctx, func() (config.Version, error) {
		v, _, err := s.writeCredential(ctx, k, &app, r, fresh, meta)
		return v, err
	})
}

// credentialKeys returns the keys of a credential and of its Application.
func credentialKeys(r *configv1.Resource) (k, app config.Key, err error) {
	k = config.KeyOf(r)
	app = config.Key{Kind: "Application", Workspace: k.Workspace, Name: r.GetCredential().GetApplication()}
	if r.GetCredential() == nil {
		return k, app, fmt.Errorf("%w: %s is no Credential", ErrInvalid, k)
	}
	if err := checkKey(k); err != nil {
		return k, app, err
	}
	return k, app, checkKey(app)
}

// DeleteCredential implements Store.
func (s *Etcd) DeleteCredential(ctx context.Context, workspace, name string, meta Meta) (config.Version, *configv1.Resource, error) {
	k := config.Key{Kind: kindCredential, Workspace: workspace, Name: name}
	if err := checkKey(k); err != nil {
		return config.Version{}, nil, err
	}
	var was *configv1.Resource
	v, err := again(ctx, func() (v config.Version, err error) {
		v, was, err = s.writeCredential(ctx, k, nil, nil, false, meta)
		return v, err
	})
	return v, was, err
}

// writeCredential puts one credential, or deletes it when after is nil. It is
// conditional on that credential, which must not be there yet when it is to be
// fresh, and, when app is set, on the Application being there; on nothing else.
func (s *Etcd) writeCredential(ctx context.Context, k config.Key, app *config.Key, after *configv1.Resource, fresh bool, meta Meta) (config.Version, *configv1.Resource, error) {
	var none config.Version
	m, err := s.settled(ctx)
	if err != nil {
		return none, nil, err
	}
	if app != nil {
		resp, err := s.client.Get(ctx, s.keys.resource(*app), clientv3.WithCountOnly())
		if err != nil {
			return none, nil, fmt.Errorf("store: reading %s: %w", app, explain(err))
		}
		if resp.Count == 0 {
			return none, nil, fmt.Errorf("%w: %s", ErrNotFound, app)
		}
	}
	d, err := s.draft(ctx, wanted{keys: []config.Key{k}, after: map[config.Key]*configv1.Resource{k: after}}, m.revision)
	if err != nil {
		return none, nil, err
	}
	switch {
	case fresh && (len(d.edits) == 0 || len(d.edits[0].Before) > 0):
		return none, nil, fmt.Errorf("%w: %s", ErrExists, k)
	case len(d.edits) == 0 && after == nil:
		return none, nil, fmt.Errorf("%w: %s", ErrNotFound, k)
	case len(d.edits) == 0:
		return s.version(m.tip), after, nil
	}
	before, err := s.codec.decode(k, d.edits[0].Before)
	if err != nil {
		return none, nil, err
	}
	c := commit{record: newRecord(meta), current: m.revision, when: d.credentials}
	c.record.Edits = d.edits
	c.then = append(s.writes(d.edits), s.touch(s.keys.keys()))
	if app != nil {
		c.when = append(c.when, clientv3.Compare(clientv3.CreateRevision(s.keys.resource(*app)), ">", 0))
	}
	revision, ok, err := s.commit(ctx, c)
	if err != nil {
		return none, nil, err
	}
	if !ok {
		return none, nil, errAgain // the next attempt finds out what has changed
	}
	return s.version(revision), before, nil
}

// GetCredential implements Store.
func (s *Etcd) GetCredential(ctx context.Context, workspace, name string) (*configv1.Resource, error) {
	k := config.Key{Kind: kindCredential, Workspace: workspace, Name: name}
	if err := checkKey(k); err != nil {
		return nil, err
	}
	m, err := s.readMarks(ctx)
	if err != nil {
		return nil, err
	}
	over, err := s.overlay(ctx, m)
	if err != nil {
		return nil, err
	}
	value, covered := over[k]
	if !covered {
		resp, err := s.client.Get(ctx, s.keys.resource(k), clientv3.WithRev(m.revision))
		if err != nil {
			return nil, fmt.Errorf("store: reading %s: %w", k, explain(err))
		}
		if len(resp.Kvs) > 0 {
			value = resp.Kvs[0].Value
		}
	}
	if len(value) == 0 {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, k)
	}
	return s.codec.decode(k, value)
}

// ListCredentials implements Store.
func (s *Etcd) ListCredentials(ctx context.Context, workspace string, page Page) (CredentialPage, error) {
	if page.Limit <= 0 {
		page.Limit = 1000
	}
	if err := checkKey(config.Key{Kind: kindCredential, Workspace: workspace, Name: "any"}); err != nil {
		return CredentialPage{}, err
	}
	return again(ctx, func() (CredentialPage, error) {
		m, err := s.settled(ctx)
		if err != nil {
			return CredentialPage{}, err
		}
		prefix := s.keys.credentials() + workspace + "/"
		from := prefix
		if page.After != "" {
			from += page.After + "\x00"
		}
		resp, err := s.client.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)),
			clientv3.WithRev(m.revision), clientv3.WithLimit(int64(page.Limit)))
		if err != nil {
			return CredentialPage{}, fmt.Errorf("store: listing credentials: %w", explain(err))
		}
		out := CredentialPage{Version: s.version(m.tip)}
		for _, kv := range resp.Kvs {
			k, err := s.keys.keyOf(string(kv.Key))
			if err != nil {
				return CredentialPage{}, err
			}
			r, err := s.codec.decode(k, kv.Value)
			if err != nil {
				return CredentialPage{}, err
			}
			out.Credentials = append(out.Credentials, r)
			if resp.More {
				out.Next = k.Name
			}
		}
		return out, nil
	})
}

// sameSecret reports whether two credentials are used with the same key.
func sameSecret(a, b *configv1.Resource) bool {
	return bytes.Equal(a.GetCredential().GetApiKey().GetSha256(), b.GetCredential().GetApiKey().GetSha256())
}

// eventOf turns a commit into what its watchers see.
func eventOf(h *HistoryRecord, previous config.Version) Event {
	who := *h
	who.Edits = nil
	e := Event{Version: h.Version, Previous: previous, Record: &who, Revocations: h.Revocations}
	for _, edit := range h.Edits {
		switch {
		case edit.Key.Kind == kindCredential:
			if edit.Before != nil && (edit.After == nil || !sameSecret(edit.Before, edit.After)) {
				e.CredentialDeletes = append(e.CredentialDeletes, edit.Before)
			}
			if edit.After != nil {
				e.CredentialPuts = append(e.CredentialPuts, edit.After)
			}
		case edit.After == nil:
			e.Deletes = append(e.Deletes, edit.Key)
		default:
			e.Upserts = append(e.Upserts, edit.After)
		}
	}
	return e
}
