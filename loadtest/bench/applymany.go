package main

import (
	"context"
	"errors"
	"time"

	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	manyChanged = 10_000
	manyRounds  = 5
)

// measureManyChanged changes 100 and then all of 10,000 routes with policies at a
// time, and takes each change in as a node does, over gRPC in memory.
func measureManyChanged(ctx context.Context) (readings []reading, err error) {
	f, err := newFollowing(ctx, manyRoutes(manyChanged), credential.NewSet())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	priority := int32(0)
	for _, changed := range []int{100, manyChanged} {
		var rounds []time.Duration
		for range manyRounds {
			priority++
			each, err := f.many(ctx, changed, priority)
			if err != nil {
				return nil, err
			}
			rounds = append(rounds, each)
		}
		readings = append(readings, took(median(rounds), "%d of %d routes, median of %d; the whole process: encoding, gRPC, check, compile, swap, report, collector", changed, manyChanged, manyRounds))
	}
	return readings, nil
}

// many changes routes in one revision and returns the processor time from its
// message to its swap.
func (f *following) many(ctx context.Context, changed int, priority int32) (time.Duration, error) {
	change := stream.Change{Previous: f.version, Upserts: make([]*configv1.Resource, changed)}
	for i := range change.Upserts {
		change.Upserts[i] = oneRoute(i, priority)
	}
	next, _, err := f.checked.Apply(config.Delta{Upserts: change.Upserts})
	if err != nil {
		return 0, err
	}
	f.checked = next
	f.version.Revision++
	change.Version, change.Digest = f.version, f.digest()
	before, err := cpuTime()
	if err != nil {
		return 0, err
	}
	if err := errors.Join(f.hub.Publish(change), f.await(ctx)); err != nil {
		return 0, err
	}
	after, err := cpuTime()
	return after - before, err
}
