package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/secret"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	// storeBatch is how many keys one revision writes: as many as fit into one
	// transaction.
	storeBatch = 2_000
	keysAdded  = 20
)

const keyedRoute = `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: "%[1]s"}]}
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {name: app}
spec: {scopes: [read]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: keyed}
spec:
  matches: [{path: {prefix: /keyed}}]
  policies: [{apiKey: {}}]
  backends: [{upstream: up}]
`

// measureKeyAdded fills a cluster's store with API keys, starts a cluster of
// three nodes on it, and makes further keys.
func measureKeyAdded(ctx context.Context, stored int) (readings []reading, err error) {
	var loaded time.Duration
	began, started := time.Now(), time.Time{}
	f, err := newFixture(ctx, 3, func(dir string) (credential string, err error) {
		credential, loaded, err = fillStore(ctx, dir, stored)
		started = time.Now()
		return credential, err
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	ready := time.Since(started)
	if status, err := f.admin.Status(ctx, &adminv1.StatusRequest{}); err != nil || status.Credentials != int64(stored) {
		return nil, fmt.Errorf("the cluster has %d keys: %w", status.GetCredentials(), err)
	}
	if err := f.apply(ctx, keyedRoute); err != nil {
		return nil, err
	}
	nodes := f.clients()
	defer closeIdle(nodes)
	var all []time.Duration
	for range keysAdded {
		each, err := addKey(ctx, f, nodes)
		if err != nil {
			return nil, err
		}
		all = append(all, each)
	}
	slices.Sort(all)
	return []reading{
		took(loaded, "decoded and indexed, as a control plane does when it starts"),
		took(all[len(all)-1], "worst of %d, median %s; control plane and 3 nodes started on the keys in %s, after they were written in %s",
			keysAdded, printSeconds(quantile(all, 0.5).Seconds()), printSeconds(ready.Seconds()),
			printSeconds((started.Sub(began) - loaded).Seconds())),
	}, nil
}

// addKey makes a key and returns how long after the call's begin every node let
// it in. The key is known when the call returns: nobody can use it before.
func addKey(ctx context.Context, f *fixture, nodes []*client) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	began := time.Now()
	made, err := f.admin.CreateKey(ctx, &adminv1.CreateKeyRequest{Application: "app"})
	if err != nil {
		return 0, err
	}
	seen := make([]time.Time, len(nodes))
	group, ctx := errgroup.WithContext(ctx)
	for i, node := range nodes {
		group.Go(func() (err error) {
			seen[i], err = node.pollUntil(ctx, func(a answer) bool { return a.status == 204 }, "/keyed", "X-API-Key", made.Key)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return slices.MaxFunc(seen, time.Time.Compare).Sub(began), nil
}

// fillStore makes a cluster's store and writes keys into it, in many
// large revisions. It returns the operator's credential, and how long it took to
// read the keys back.
func fillStore(ctx context.Context, dir string, stored int) (operator string, loaded time.Duration, err error) {
	c, err := cluster.Start(ctx, cluster.Config{Dir: dir, Drain: time.Second})
	if err != nil {
		return "", 0, err
	}
	if err := c.Stop(); err != nil {
		return "", 0, err
	}
	keys, err := secret.File{Path: filepath.Join(dir, "seal.key")}.Keys()
	if err != nil {
		return "", 0, err
	}
	sealer, err := secret.New(keys...)
	if err != nil {
		return "", 0, err
	}
	st, err := store.Open(ctx, store.Config{Dir: filepath.Join(dir, "etcd"), Sealer: sealer})
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if err := writeKeys(ctx, st, stored); err != nil {
		return "", 0, err
	}
	loaded, err = readKeys(ctx, st, stored)
	return c.Credential(), loaded, err
}

func writeKeys(ctx context.Context, st *store.Etcd, stored int) error {
	state, err := st.Load(ctx)
	if err != nil {
		return err
	}
	version := state.Version
	application := &configv1.Resource{
		Metadata: &configv1.Metadata{Workspace: config.DefaultWorkspace, Name: "app"},
		Spec:     &configv1.Resource_Application{Application: &configv1.Application{Scopes: []string{"read"}}},
	}
	if version, err = st.Apply(ctx, version, &adminv1.Change{Upserts: []*configv1.Resource{application}}, store.Meta{Author: "bench"}); err != nil {
		return err
	}
	for from := 0; from < stored; from += storeBatch {
		change := &adminv1.Change{}
		for i := range min(storeBatch, stored-from) {
			sha := hashOf(from + i)
			change.Upserts = append(change.Upserts, &configv1.Resource{
				Metadata: &configv1.Metadata{Workspace: config.DefaultWorkspace, Name: keyName(from + i)},
				Spec: &configv1.Resource_Credential{Credential: &configv1.Credential{
					Application: "app", Kind: &configv1.Credential_ApiKey{ApiKey: &configv1.APIKeyCredential{Sha256: sha[:], Hint: "pc_bench"}},
				}},
			})
		}
		if version, err = st.Apply(ctx, version, change, store.Meta{Author: "bench"}); err != nil {
			return fmt.Errorf("writing keys from %d: %w", from, err)
		}
	}
	return nil
}

// readKeys takes the keys out of the store into a set, as the mirror of a control
// plane does.
func readKeys(ctx context.Context, st *store.Etcd, stored int) (time.Duration, error) {
	began := time.Now()
	state, err := st.Load(ctx)
	if err != nil {
		return 0, err
	}
	set := credential.NewSet()
	for resource, err := range state.Credentials {
		if err != nil {
			return 0, err
		}
		one, err := credential.Of(resource)
		if err != nil {
			return 0, err
		}
		set.Put(one)
	}
	took := time.Since(began)
	if set.Len() != stored {
		return 0, fmt.Errorf("%d keys came back", set.Len())
	}
	return took, nil
}
