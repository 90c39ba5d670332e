package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// sample is how long one change took to the nodes, and when it was made.
type sample struct {
	At   time.Duration `json:"at"`
	Took time.Duration `json:"took"`
}

// propagation is what a disturbance has measured.
type propagation struct {
	mu      sync.Mutex
	samples []sample
	// late counts the times at which the one before was not done yet.
	late int
}

func (p *propagation) add(s sample) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.samples = append(p.samples, s)
}

// every calls f at once and then at each interval until ctx ends. What takes
// longer than the interval is counted as late, and its times are left out.
func (p *propagation) every(ctx context.Context, interval time.Duration, f func(ctx context.Context, round int) error) error {
	next := time.Now()
	for round := 1; ; round++ {
		if err := f(ctx, round); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		for next = next.Add(interval); next.Before(time.Now()); next = next.Add(interval) {
			p.mu.Lock()
			p.late++
			p.mu.Unlock()
		}
		if !pause(ctx, time.Until(next)) {
			return nil
		}
	}
}

// pause waits; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// disturbance is what happens to the cluster during a run.
type disturbance struct {
	config, revocation propagation
}

// prepare applies what a reload will change, so that the first one is like the
// others.
func (d *disturbance) prepare(ctx context.Context, s *Scenario, t *target) error {
	if s.Disturb == nil || s.Disturb.Reload == nil {
		return nil
	}
	_, err := t.apply(ctx, bulk(*s.Disturb.Reload, 0, t.upstream))
	return err
}

// run disturbs from when it is time until ctx ends; began is when the run did.
func (d *disturbance) run(ctx context.Context, s *Scenario, t *target, began time.Time) error {
	if s.Disturb == nil || !pause(ctx, time.Until(began.Add(s.Disturb.After))) {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	if reload := s.Disturb.Reload; reload != nil {
		group.Go(func() error {
			return d.config.every(ctx, reload.Every, func(ctx context.Context, round int) error {
				at := time.Since(began)
				took, err := t.apply(ctx, bulk(*reload, round, t.upstream))
				if err == nil {
					d.config.add(sample{at, took})
				}
				return err
			})
		})
	}
	if revoke := s.Disturb.Revoke; revoke != nil {
		client, closeIdle := newClient(4, s.Timeout)
		defer closeIdle()
		group.Go(func() error {
			return d.revocation.every(ctx, revoke.Every, func(ctx context.Context, round int) error {
				at := time.Since(began)
				took, err := t.revoke(ctx, client, *revoke, round)
				if err == nil {
					d.revocation.add(sample{at, took})
				}
				return err
			})
		})
	}
	return group.Wait()
}

// bulk returns the resources of a reload: routes that nobody asks for. Each round
// changes the next ones, and leaves the others as they were.
func bulk(r Reload, round int, upstream string) *adminv1.Change {
	const name = "load-bulk"
	meta := func(name string) *configv1.Metadata {
		return &configv1.Metadata{Workspace: config.DefaultWorkspace, Name: name}
	}
	change := &adminv1.Change{Upserts: []*configv1.Resource{{Metadata: meta(name), Spec: &configv1.Resource_Upstream{
		Upstream: &configv1.Upstream{Endpoints: []*configv1.Endpoint{{Url: upstream}}},
	}}}}
	groups := (r.Routes + r.Changed - 1) / r.Changed
	for i := range r.Routes {
		changes := round / groups
		if i/r.Changed < round%groups {
			changes++
		}
		change.Upserts = append(change.Upserts, &configv1.Resource{
			Metadata: meta(fmt.Sprintf("%s-%05d", name, i)),
			Spec: &configv1.Resource_Route{Route: &configv1.Route{
				Public:   true,
				Matches:  []*configv1.Match{{Path: &configv1.PathMatch{Kind: &configv1.PathMatch_Prefix{Prefix: fmt.Sprintf("/%s/%d", name, i)}}}},
				Timeouts: &configv1.Timeouts{Request: durationpb.New(time.Duration(10+changes%100) * time.Second)},
				Backends: []*configv1.Backend{{Upstream: name}},
			}},
		})
	}
	return change
}

const (
	// probePause is how often a node is asked whether it denies a token already.
	probePause = time.Millisecond
	// probeLimit bounds the wait for that.
	probeLimit = 20 * time.Second
)

// revoke mints a token, sees a node let it in, revokes it, and returns the time
// from the call of the admin API to the first denial.
func (t *target) revoke(ctx context.Context, client *http.Client, r Revoke, round int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	admin, err := t.operator()
	if err != nil {
		return 0, err
	}
	token, jti, err := t.mint(ctx, "load-revoked", r.Token)
	if err != nil {
		return 0, fmt.Errorf("minting a token: %w", err)
	}
	url := t.bases[round%len(t.bases)] + r.Path
	status, err := probe(ctx, client, url, token)
	if err != nil || status >= 400 {
		return 0, errors.Join(fmt.Errorf("%s answers a token that nobody revoked with %d", url, status), err)
	}
	var denied time.Time
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	group.Go(func() error {
		_, err := admin.Revoke(ctx, &adminv1.RevokeRequest{Jti: jti, Reason: "load test"})
		return err
	})
	group.Go(func() error {
		for {
			switch status, err := probe(ctx, client, url, token); {
			case err != nil:
				return err
			case status == http.StatusUnauthorized:
				denied = time.Now()
				return nil
			case !pause(ctx, probePause):
				return fmt.Errorf("%s still lets a revoked token in after %s", url, probeLimit)
			}
		}
	})
	err = group.Wait()
	return denied.Sub(began), err
}

// probe asks once.
func probe(ctx context.Context, client *http.Client, url, token string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, errors.Join(err, resp.Body.Close())
}
