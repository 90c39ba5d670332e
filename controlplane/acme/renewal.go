package acme

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
)

const (
	// askTimeout bounds one question with its repetitions.
	askTimeout = time.Minute
	// maxQuestions bounds the questions at once, in one replica.
	maxQuestions = 4
	// spread is over what time the first questions are spread about certificates of
	// which nobody knows when they were asked about last.
	spread = time.Hour
	// askAgain is when an authority is asked again whose answer could not be written,
	// and at the earliest when it was: each has every node told.
	askAgain = 10 * time.Minute
)

// appointment is when a replica asks an authority again whether a certificate is to
// be renewed early (RFC 9773, 4.3). It is kept in the store, so that neither a
// restart nor the number of replicas has anything asked more often, and remembered
// by each replica.
type appointment struct {
	// Certificate is its identifier (RFC 9773, 4.1).
	Certificate string    `json:"certificate"`
	At          time.Time `json:"at"`
}

// remembered is an appointment as a replica keeps it in mind: found again without
// reading a certificate.
type remembered struct {
	chain string
	at    time.Time
}

// untilAsk returns how long it is until the authority is to be asked about a
// certificate that is not due; 0 also when this replica does not know. Nothing is
// asked about a certificate whose renewal has failed: it is due. k.mu is held.
func (k *Keeper) untilAsk(source Source, now time.Time) time.Duration {
	if source.Issued.Certificate == "" || source.Issued.Failures > 0 {
		return idle
	}
	if asked := k.asked[source.Key]; asked.chain == source.Issued.Certificate {
		return asked.at.Sub(now)
	}
	return 0
}

// settled says whether another moment than now is appointed for the question, by
// whichever replica.
func (k *Keeper) settled(ctx context.Context, source Source) (bool, error) {
	at, err := k.appointed(ctx, source)
	return at.After(time.Now()), err
}

// appointed returns, and remembers, when the authority is to be asked about a
// certificate; zero when the store keeps nothing of it.
func (k *Keeper) appointed(ctx context.Context, source Source) (time.Time, error) {
	item, err := k.cfg.Locks.Get(ctx, appointmentName(source.Key))
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	var found appointment
	if json.Unmarshal(item.Value, &found) != nil || found.Certificate != identifier(leafOf(source.Issued.GetCertificate())) {
		return time.Time{}, nil
	}
	// Whatever the clock said that it was written by, it is not put off for longer.
	if limit := time.Now().Add(2 * maxAsk); found.At.After(limit) {
		found.At = limit
	}
	k.remember(source, found.At)
	return found.At, nil
}

// appoint has the next question asked after a time. What cannot be stored is still
// remembered, so that this replica keeps to it.
func (k *Keeper) appoint(ctx context.Context, source Source, wait time.Duration) {
	at := time.Now().Add(wait)
	k.remember(source, at)
	value, err := json.Marshal(appointment{Certificate: identifier(leafOf(source.Issued.GetCertificate())), At: at})
	if err == nil {
		// The caller's context may be about to end, what was asked is asked all the same.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		// It outlives its time, so that who was away for a while knows that the question
		// is due; and goes by itself when the Certificate is deleted.
		_, err = k.cfg.Locks.Put(ctx, appointmentName(source.Key), value, store.Write{At: store.Overwrite, TTL: wait + maxAsk})
	}
	if err != nil && !errors.Is(err, store.ErrClosed) {
		k.cfg.Log.Warn("acme: when the authority is asked next was not stored; other replicas may ask earlier",
			"workspace", source.Key.Workspace, "certificate", source.Key.Name, "error", err)
	}
}

func (k *Keeper) remember(source Source, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asked[source.Key] = remembered{source.Issued.GetCertificate(), at}
}

func appointmentName(key config.Key) string { return "renewal/" + key.Workspace + "/" + key.Name }

// identifier names a certificate to its authority; empty when it cannot be named.
func identifier(leaf *x509.Certificate) string {
	if leaf == nil {
		return ""
	}
	id, err := acme.ARIUniqueIdentifier(leaf)
	if err != nil {
		return ""
	}
	return id
}

// ask asks when the authority would have a certificate renewed, and writes it when
// that has changed. Only under the claim, for a certificate as it is now.
func (k *Keeper) ask(ctx context.Context, source Source, log *slog.Logger) error {
	leaf := leafOf(source.Issued.Certificate)
	if leaf == nil || len(leaf.AuthorityKeyId) == 0 {
		// It has no name to ask by.
		k.appoint(ctx, source, maxAsk)
		return nil
	}
	at, err := k.appointed(ctx, source)
	switch {
	case err != nil:
		return err
	case at.IsZero():
		k.appoint(ctx, source, minAsk+rand.N(spread))
		return nil
	case at.After(time.Now()):
		return nil
	}
	client, closeIdle, err := k.connect(source.Certificate.GetAcme())
	if err != nil {
		k.appoint(ctx, source, lostAsk)
		return err
	}
	defer closeIdle()
	return k.askAt(ctx, client, source, leaf, log)
}

// askAt is ask with the protocol's client.
func (k *Keeper) askAt(ctx context.Context, client *acme.Client, source Source, leaf *x509.Certificate, log *slog.Logger) error {
	bounded, cancel := context.WithTimeout(ctx, askTimeout)
	info, err := client.GetRenewalInfo(bounded, leaf)
	cancel()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	usable := err == nil && lifeOf(leaf, source.Issued.IssuedAt).window(&info) != nil
	wait := askIn(&info, err, usable, time.Now())
	switch {
	case errors.Is(err, acme.ErrUnsupported):
	case err != nil:
		log.Warn("acme: the authority does not say when to renew; what is planned stands", "problem", explain(err), "again_in", wait)
	case !usable:
		log.Warn("acme: the authority suggests a time of no use to renew at; what is planned stands",
			"start", info.SuggestedWindow.Start, "end", info.SuggestedWindow.End, "again_in", wait)
	default:
		next := reschedule(source.Issued, leaf, &info)
		if next == nil {
			break
		}
		log.Info("acme: the authority suggests when to renew", "refresh_at", next.RefreshAt.AsTime(),
			"start", next.Suggested.Start.AsTime(), "end", next.Suggested.End.AsTime(), "explanation", next.Suggested.ExplanationUrl)
		switch _, err := k.write(ctx, source, next, "acme: renewal moved by the authority"); {
		case errors.Is(err, errMoved):
			return nil
		case err != nil:
			k.appoint(ctx, source, askAgain)
			return err
		}
		wait = max(wait, askAgain)
	}
	k.appoint(ctx, source, wait)
	return nil
}
