package keys

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Source is an issuer whose keys are fetched, and what is known of them.
type Source struct {
	Workspace, Name string
	Issuer          *configv1.Issuer
	// Keys is nil before the first fetch.
	Keys *configv1.KeySet
}

// Keeper keeps the key sets of issuers with a jwksUri fresh. Several replicas
// may keep the same issuers: Claim lets one of them fetch. The fields are set
// before Run and not changed.
type Keeper struct {
	Client *Client
	// Sources lists the issuers as the config stands. Called from Run.
	Sources func() []Source
	// Changed is ready when Sources may return something else.
	Changed <-chan struct{}
	// Claim says whether this replica may fetch the issuer now; at most one may
	// within the interval, in the whole cluster.
	Claim func(ctx context.Context, workspace, name string, interval time.Duration) (bool, error)
	// Write commits a key set that was fetched for a source.
	Write func(ctx context.Context, source Source, keys *configv1.KeySet) error
	Log   *slog.Logger

	// Guarded by mu: issuers whose tokens named a kid that no node holds.
	mu      sync.Mutex
	missing map[[2]string]bool
	wake    chan struct{}
	once    sync.Once
	// Guarded by mu: when this replica last tried an issuer, and until when what it
	// fetched then, and did not write since nothing was new, holds.
	tried, holds map[[2]string]time.Time
}

// Missing asks for a refetch, because a node saw an unknown kid. It never
// blocks; refetches are at most one per issuer per 30 s, cluster-wide.
func (k *Keeper) Missing(workspace, name string) {
	k.init()
	k.mu.Lock()
	k.missing[[2]string{workspace, name}] = true
	k.mu.Unlock()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

func (k *Keeper) init() {
	k.once.Do(func() {
		k.missing, k.tried, k.holds = map[[2]string]bool{}, map[[2]string]time.Time{}, map[[2]string]time.Time{}
		k.wake = make(chan struct{}, 1)
	})
}

// Run fetches what is due until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	k.init()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-k.Changed:
		case <-k.wake:
		}
		timer.Reset(k.round(ctx, time.Now()))
	}
}

// maxFetches bounds the fetches at once.
const maxFetches = 16

// round fetches every source that is due and returns how long nothing will be.
func (k *Keeper) round(ctx context.Context, now time.Time) time.Duration {
	next := retryAfter
	k.mu.Lock()
	missing := k.missing
	k.missing = map[[2]string]bool{}
	k.mu.Unlock()
	var running errgroup.Group
	running.SetLimit(maxFetches)
	for _, source := range k.Sources() {
		if source.Issuer.JwksUri == "" {
			continue
		}
		if wait := k.due(source, missing, now); wait > 0 {
			next = min(next, wait)
			continue
		}
		running.Go(func() error { k.refresh(ctx, source, now); return nil })
	}
	_ = running.Wait()
	return max(next, time.Second)
}

// due returns how long it is until the source is to be fetched. This replica
// tries a source once in an interval; the claim keeps the others to the same.
func (k *Keeper) due(source Source, missing map[[2]string]bool, now time.Time) time.Duration {
	id := [2]string{source.Workspace, source.Name}
	k.mu.Lock()
	defer k.mu.Unlock()
	wait := time.Duration(0)
	if source.Keys != nil && !missing[id] {
		refresh := source.Keys.RefreshAt.AsTime()
		if holds := k.holds[id]; holds.After(refresh) {
			refresh = holds
		}
		wait = refresh.Sub(now)
	}
	if source.Keys != nil {
		wait = max(wait, retryAfter-now.Sub(k.tried[id]))
	}
	if wait <= 0 {
		k.tried[id] = now
	}
	return wait
}

func (k *Keeper) refresh(ctx context.Context, source Source, now time.Time) {
	log := k.Log.With("workspace", source.Workspace, "issuer", source.Name)
	mine, err := k.Claim(ctx, source.Workspace, source.Name, retryAfter)
	if err != nil {
		log.Warn("keys: claiming the fetch failed; trying again", "error", err)
		return
	}
	if !mine {
		return
	}
	set, err := k.Client.Fetch(ctx, source.Issuer, source.Keys, now)
	if err != nil {
		log.Warn("keys: fetch failed; the last good keys stay until they are stale", "error", err, "stale_at", set.StaleAt.AsTime())
	}
	if old := source.Keys; old != nil && proto.Equal(&configv1.KeySet{Keys: set.Keys, Problem: set.Problem}, &configv1.KeySet{Keys: old.Keys, Problem: old.Problem}) &&
		(err != nil || old.StaleAt.AsTime().Sub(now) > staleLimit/2) {
		// Nothing that a node would do otherwise: no revision for it, so that those of
		// people stay in the history.
		k.mu.Lock()
		k.holds[[2]string{source.Workspace, source.Name}] = set.RefreshAt.AsTime()
		k.mu.Unlock()
		return
	}
	if err := k.Write(ctx, source, set); err != nil && ctx.Err() == nil {
		log.Warn("keys: writing the key set failed; trying again", "error", err)
	}
}
