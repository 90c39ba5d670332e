package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

const revocations = 1000

const revokedRoute = `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: "%[1]s"}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: orders}
spec:
  matches: [{path: {prefix: /orders}}]
  policies: [{jwt: {issuers: [local], audiences: ["https://api.bench.example"]}}]
  revocation: {maxStaleness: 5s, onStale: deny}
  backends: [{upstream: up}]
`

func measureRevoke(ctx context.Context) ([]reading, error) {
	return revocationReadings(ctx, func(*fixture) error { return nil })
}

func measureRevokeWithoutBus(ctx context.Context) ([]reading, error) {
	return revocationReadings(ctx, func(f *fixture) error { return f.StopBus() })
}

// revocationReadings revokes 1,000 tokens that are in use, each at another moment
// and on another node, and takes the time from the call of the admin API to the
// first request that is denied. In the end every node is asked for every token.
func revocationReadings(ctx context.Context, cut func(*fixture) error) (readings []reading, err error) {
	f, err := newFixture(ctx, 3, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.apply(ctx, revokedRoute); err != nil {
		return nil, err
	}
	if err := cut(f); err != nil {
		return nil, wrap("cutting the bus", err)
	}
	nodes := f.clients()
	defer closeIdle(nodes)
	var all []time.Duration
	var bearers []string
	for i := range revocations {
		bearer, each, err := revokeOne(ctx, f, nodes[i%len(nodes)])
		if err != nil {
			return nil, fmt.Errorf("revocation %d: %w", i+1, err)
		}
		all, bearers = append(all, each), append(bearers, bearer)
	}
	lost, err := notDenied(ctx, nodes, bearers)
	if err != nil {
		return nil, err
	}
	slices.Sort(all)
	return []reading{
		took(quantile(all, 0.5), "seen over HTTP on each of 3 nodes in turn, asked every %v", pollPause),
		took(quantile(all, 0.99), "worst %s", printSeconds(all[len(all)-1].Seconds())),
		{float64(lost), fmt.Sprintf("each of %d nodes asked for each of %d tokens at the end", len(nodes), len(bearers))},
	}, nil
}

// revokeOne mints a token, sees it admitted, revokes it and waits for the first
// denial.
func revokeOne(ctx context.Context, f *fixture, node *client) (bearer string, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	minted, err := f.admin.MintToken(ctx, &adminv1.MintTokenRequest{Subject: "alice", Audiences: []string{audience}})
	if err != nil {
		return "", 0, err
	}
	bearer = "Bearer " + minted.Token
	if a, err := node.get(ctx, "/orders", "Authorization", bearer); err != nil || a.status != 204 {
		return "", 0, fmt.Errorf("a token that nobody revoked: %d %s: %w", a.status, a.reason, err)
	}
	var seen time.Time
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	group.Go(func() error {
		_, err := f.admin.Revoke(ctx, &adminv1.RevokeRequest{Jti: minted.Jti})
		return err
	})
	group.Go(func() (err error) {
		seen, err = node.pollUntil(ctx, isRevoked, "/orders", "Authorization", bearer)
		return err
	})
	err = group.Wait()
	return bearer, seen.Sub(began), err
}

func isRevoked(a answer) bool { return a.status == 401 && a.reason == "token_revoked" }

// notDenied counts tokens that some node still lets in.
func notDenied(ctx context.Context, nodes []*client, bearers []string) (lost int, err error) {
	for _, node := range nodes {
		for _, bearer := range bearers {
			a, err := node.get(ctx, "/orders", "Authorization", bearer)
			if err != nil {
				return 0, err
			}
			if !isRevoked(a) {
				lost++
			}
		}
	}
	return lost, nil
}
