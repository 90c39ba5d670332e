package identity

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"
)

// Renewer keeps a Live fresh: it asks for a new certificate, with a new key, when
// two thirds of the old one's life have passed, and tries again with backoff
// while that fails.
type Renewer struct {
	// Live is what is renewed. Required.
	Live *Live
	// Renew has a request (PKCS #10, DER) signed. Required.
	Renew func(ctx context.Context, csr []byte) (Issued, error)
	// Save keeps a new state, before it is used; nil keeps nothing. An error is
	// logged and the state is used all the same: a full disk must not end an
	// identity.
	Save func(State) error
	// Hosts go into the requests of a control plane.
	Hosts []string
	// Log is where failures go; nil: nowhere.
	Log *slog.Logger
}

const (
	// Clocks are set and machines sleep: look at the wall clock this often.
	renewCheck   = 10 * time.Minute
	renewRetry   = time.Second
	renewBackoff = 5 * time.Minute
)

// Run renews until ctx ends, and then returns nil.
func (r *Renewer) Run(ctx context.Context) error {
	log := r.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	failures := 0
	// So that members that started together do not renew together.
	early := rand.Float64() / 20
	for {
		wait := time.Until(r.due(early))
		if failures > 0 {
			wait = backoff(failures)
		}
		if !sleep(ctx, min(wait, renewCheck)) {
			return nil
		}
		if time.Now().Before(r.due(early)) {
			continue
		}
		switch err := r.Once(ctx); {
		case err == nil:
			failures, early = 0, rand.Float64()/20
			_, until := r.Live.Validity()
			log.Info("certificate renewed", "identity", r.Live.Identity().String(), "until", until)
		case ctx.Err() != nil:
			return nil
		default:
			failures++
			_, until := r.Live.Validity()
			log.Warn("certificate not renewed", "error", err, "expires", until, "failures", failures)
		}
	}
}

// due is at two thirds of the certificate's life, less the share `early` of it.
func (r *Renewer) due(early float64) time.Time {
	from, until := r.Live.Validity()
	from = from.Add(ClockSkew)
	return from.Add(time.Duration(float64(until.Sub(from)) * (2.0/3 - early)))
}

// Once renews now.
func (r *Renewer) Once(ctx context.Context) error {
	key, csr, err := NewRequest(r.Live.Identity(), r.Hosts...)
	if err != nil {
		return err
	}
	issued, err := r.Renew(ctx, csr)
	if err != nil {
		return err
	}
	s := State{Key: key, Issued: issued}
	if _, err := r.Live.check(s); err != nil {
		return err
	}
	if r.Save != nil {
		if err := r.Save(s); err != nil && r.Log != nil {
			r.Log.Error("renewed certificate not saved", "error", err)
		}
	}
	return r.Live.Set(s)
}

// backoff is exponential with full jitter.
func backoff(failures int) time.Duration {
	ceiling := min(renewRetry<<min(failures, 16), renewBackoff)
	return renewRetry/10 + rand.N(ceiling)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
