package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

const (
	applies = 300
	// probeLimit bounds how long one change is waited for.
	probeLimit = 15 * time.Second
)

// appliedRoute refuses whoever has no key, and says in each answer which change
// it is: what is measured is the gateway, not an upstream.
const appliedRoute = `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: "%[1]s"}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: applied}
spec:
  matches: [{path: {prefix: /applied}}]
  policies: [{apiKey: {}}, {headers: {response: {set: {X-Change: "0"}}}}]
  backends: [{upstream: up}]
`

// measureApply takes the time from the call of the admin API to the first answer
// under the new configuration, on the last of three nodes to give it.
func measureApply(ctx context.Context) (readings []reading, err error) {
	f, err := newFixture(ctx, 3, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	if err := f.apply(ctx, appliedRoute); err != nil {
		return nil, err
	}
	nodes := f.clients()
	defer closeIdle(nodes)
	route, err := decode(fmt.Sprintf(appliedRoute, f.url))
	if err != nil {
		return nil, err
	}
	route = route[1:]
	var all []time.Duration
	for i := range applies {
		want := strconv.Itoa(i + 1)
		route[0].GetRoute().Policies[1].GetHeaders().Response.Set["X-Change"] = want
		each, err := enforced(ctx, nodes, "X-Change", want, func(ctx context.Context) error {
			_, err := f.admin.Apply(ctx, &adminv1.ApplyRequest{Change: &adminv1.Change{Upserts: route}})
			return err
		})
		if err != nil {
			return nil, wrap("change "+want, err)
		}
		all = append(all, each)
	}
	slices.Sort(all)
	return []reading{
		took(quantile(all, 0.5), "%d applies, seen over HTTP, each node asked every %v", applies, pollPause),
		took(quantile(all, 0.99), "worst %s", printSeconds(all[len(all)-1].Seconds())),
	}, nil
}

// enforced calls change and returns how long after the call's begin every node
// answered with the field's value.
func enforced(ctx context.Context, nodes []*client, field, value string, change func(context.Context) error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	seen := make([]time.Time, len(nodes))
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	group.Go(func() error { return change(ctx) })
	for i, node := range nodes {
		group.Go(func() (err error) {
			seen[i], err = node.pollUntil(ctx, func(a answer) bool { return a.header.Get(field) == value }, "/applied")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return slices.MaxFunc(seen, time.Time.Compare).Sub(began), nil
}
