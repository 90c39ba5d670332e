package acme

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// failed is what is written when an order failed: the last certificate stays.
func (k *Keeper) failed(source Source, cause error, now time.Time) *configv1.IssuedCertificate {
	spec := source.Certificate.GetAcme()
	issued := &configv1.IssuedCertificate{}
	if source.Issued != nil {
		issued = proto.CloneOf(source.Issued)
	}
	if !proto.Equal(issued.Ordered, spec) {
		issued.Failures = 0
	}
	wait := k.cfg.Backoff
	for range issued.Failures {
		wait = min(2*wait, maxBackoff)
	}
	if limited(cause) {
		wait = max(wait, rateLimited)
	}
	issued.Failures++
	issued.Problem, issued.Ordered, issued.Challenges, issued.Suggested = explain(cause), proto.CloneOf(spec), nil, nil
	issued.RefreshAt = timestamppb.New(now.Add(jitter(wait)))
	return issued
}

// jitter spreads a time over ±20 %, so that what failed together is not tried
// together.
func jitter(d time.Duration) time.Duration { return d*4/5 + rand.N(d*2/5+1) }

// errMoved: the Certificate does not ask any more for what was ordered.
var errMoved = errors.New("acme: the Certificate has changed")

// writeTries is how often a write is tried: a certificate that was issued and is
// lost would count against the authority's limits.
const writeTries = 5

func (k *Keeper) write(ctx context.Context, source Source, issued *configv1.IssuedCertificate, reason string) (config.Version, error) {
	for try := 1; ; try++ {
		version, held, err := k.cfg.Write(ctx, source, issued, reason)
		switch {
		case err == nil && !held:
			return version, errMoved
		case err == nil || try == writeTries || refused(err):
			return version, err
		}
		select {
		case <-ctx.Done():
			return version, err
		case <-time.After(time.Second << (try - 1)):
		}
	}
}

// refused says that a write will not succeed by being tried again.
func refused(err error) bool {
	var problems config.Problems
	return errors.As(err, &problems) || errors.Is(err, store.ErrClosed) || errors.Is(err, store.ErrTooLarge)
}
