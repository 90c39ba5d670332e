package acme

import (
	"context"
	"errors"
	"fmt"
	"time"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
)

// errLost: the claim could not be kept, so that another replica may be at it.
var errLost = errors.New("acme: the claim was lost")

// releaseTimeout bounds giving a claim back; it goes by itself otherwise.
const releaseTimeout = 2 * time.Second

// claim lets this replica alone work on a certificate: while the context that it
// returns lasts, no other does. store.ErrExists when another is at it. release ends
// the context and gives the claim back.
func (k *Keeper) claim(ctx context.Context, key config.Key) (mine context.Context, release func(), err error) {
	name := "acme/" + key.Workspace + "/" + key.Name
	revision, err := k.cfg.Locks.Put(ctx, name, []byte(k.cfg.Replica), store.Write{TTL: k.cfg.Claim})
	if err != nil {
		return nil, nil, err
	}
	mine, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.hold(mine, cancel, name, revision)
	}()
	return mine, func() {
		lost := errors.Is(context.Cause(mine), errLost)
		cancel(nil)
		<-done
		if lost {
			return
		}
		// The caller's context may be why the work ended.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		if _, err := k.cfg.Locks.Delete(ctx, name); err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrClosed) {
			k.cfg.Log.Warn("acme: a claim was not given back; it ends by itself", "claim", name, "error", err)
		}
	}, nil
}

// hold prolongs the claim until ctx ends. When it cannot before the claim runs
// out, it cancels.
func (k *Keeper) hold(ctx context.Context, cancel context.CancelCauseFunc, name string, revision int64) {
	ticker := time.NewTicker(k.cfg.Claim / 5)
	defer ticker.Stop()
	for good := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		began := time.Now()
		next, err := k.prolong(ctx, name, revision)
		switch {
		case err == nil:
			revision, good = next, began
		case ctx.Err() != nil:
			return
		case errors.Is(err, store.ErrConflict), time.Since(good) > k.cfg.Claim*3/5:
			cancel(fmt.Errorf("%w: %w", errLost, err))
			return
		}
	}
}

func (k *Keeper) prolong(ctx context.Context, name string, revision int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Claim/5)
	defer cancel()
	return k.cfg.Locks.Put(ctx, name, []byte(k.cfg.Replica), store.Write{At: revision, TTL: k.cfg.Claim})
}
