package acme

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// due returns how long it is until the certificate is to be ordered. What was
// ordered for something else than the Certificate says now is due at once. What was
// issued is kept for as long as one waits after a failure, even when it does not last
// so long: an authority that issues for seconds would be asked all the time.
func (k *Keeper) due(source Source, now time.Time) time.Duration {
	if source.Issued == nil || !proto.Equal(source.Issued.Ordered, source.Certificate.GetAcme()) {
		return 0
	}
	wait := source.Issued.RefreshAt.AsTime().Sub(now)
	if at := source.Issued.IssuedAt; at != nil {
		wait = max(wait, at.AsTime().Add(k.cfg.Backoff).Sub(now))
	}
	return wait
}

// renew orders, and writes what came of it. Its error says that this could not be
// written, or that ctx ended.
func (k *Keeper) renew(ctx context.Context, source Source, log *slog.Logger) error {
	spec := source.Certificate.GetAcme()
	log.Info("acme: ordering a certificate", "hostnames", spec.Hostnames, "directory", directoryOf(spec))
	bounded, cancel := context.WithTimeout(ctx, orderTimeout)
	o := &order{Keeper: k, source: source}
	issued, err := o.run(bounded)
	cancel()
	if err == nil {
		_, err = k.write(ctx, source, issued, "acme: issued")
		switch {
		case err == nil:
			log.Info("acme: a certificate was issued", "hostnames", spec.Hostnames, "refresh_at", issued.RefreshAt.AsTime())
			k.appoint(ctx, Source{Key: source.Key, Issued: issued}, o.askIn)
			return nil
		case unfit(err):
			// It is not to be had in another way by asking again at once.
			err = fmt.Errorf("the certificate that was issued cannot be used: %w", err)
		case !errors.Is(err, errMoved):
			return err
		}
	}
	switch {
	case errors.Is(err, errMoved):
		log.Info("acme: the Certificate has changed meanwhile; the order was given up")
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	issued = k.failed(source, err, time.Now())
	log.Error("acme: no certificate was issued; the last one stays", "problem", issued.Problem,
		"failures", issued.Failures, "again_at", issued.RefreshAt.AsTime())
	if _, err = k.write(ctx, source, issued, "acme: failed"); errors.Is(err, errMoved) {
		return nil
	}
	return err
}

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
func refused(err error) bool { return unfit(err) || errors.Is(err, store.ErrClosed) }

// unfit says that what was to be written is refused for what it is.
func unfit(err error) bool {
	var problems config.Problems
	return errors.As(err, &problems) || errors.Is(err, store.ErrTooLarge)
}
