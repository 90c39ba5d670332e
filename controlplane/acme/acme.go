// Package acme obtains and renews the certificates that a Certificate asks a
// certificate authority for (RFC 8555), for the whole cluster: what it gets, and
// what nodes must answer while it gets it, is written as an IssuedCertificate into
// the configuration, so that every node shows the same certificate and answers
// every challenge.
//
// It owns the schedule, the accounts and the orders. It must not know how nodes
// serve, how the store writes, or what else is configured: it is handed the
// Certificates and functions to write and to wait.
//
// It stands on acmez's protocol client and not on certmagic: what certmagic adds
// (a cache for handshakes, storage of certificates, a renewal loop and locks of its
// own) is here the configuration, the store and its claims, and two owners of that
// would have to be kept from disagreeing.
package acme

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	// orderTimeout bounds one order with everything in it.
	orderTimeout = 10 * time.Minute
	// maxOrders bounds the orders at once, in one replica.
	maxOrders = 4
	// maxBackoff bounds the time between orders that fail.
	maxBackoff = 12 * time.Hour
	// rateLimited is how long an authority is left alone that has said that it was
	// asked too often.
	rateLimited = time.Hour
	// idle is the longest time without a look at what expires.
	idle = time.Hour
)

// Source is a Certificate and what is known of it.
type Source struct {
	// Key of the Certificate.
	Key         config.Key
	Certificate *configv1.Certificate
	// Issued is nil before the first order.
	Issued *configv1.IssuedCertificate
}

// Config of a Keeper. The functions must be safe for concurrent use; all fields
// are required unless said otherwise.
type Config struct {
	// Replica is this control plane's name, for who looks at a claim.
	Replica string
	// Accounts keeps the keys of accounts, sealed; Locks keeps claims.
	Accounts, Locks store.ItemStore
	// Sources lists all Certificates as the configuration stands.
	Sources func() []Source
	// Find returns a Certificate as of the store's newest commit; false when it is
	// gone.
	Find func(ctx context.Context, key config.Key) (Source, bool, error)
	// Changed is ready when Sources may return something else.
	Changed <-chan struct{}
	// Write commits what belongs to a Certificate; false, and nothing written, when
	// it does not ask for what source says any more.
	Write func(ctx context.Context, source Source, issued *configv1.IssuedCertificate, reason string) (config.Version, bool, error)
	// Await returns when every connected node runs the version, or when ctx ends.
	Await func(ctx context.Context, version config.Version) *adminv1.Convergence
	// AllowLoopback lets directories be on loopback, for development and tests.
	AllowLoopback bool
	// Backoff is the time after a first failure, doubled with each further one up to
	// 12 h; 0 means 5 min, which leaves room under the limits that authorities set
	// to failed validations.
	Backoff time.Duration
	// Converge bounds the wait for the nodes; 0 means 1 min.
	Converge time.Duration
	// Claim is how long the claim of a replica that has crashed still stands, and how
	// long a certificate is left to whoever holds one; 0 means 15 s.
	Claim time.Duration
	// Log; nil discards.
	Log *slog.Logger
}

// Keeper keeps certificates issued. Several replicas may keep the same ones: a
// claim lets one of them order.
type Keeper struct {
	cfg Config
	// slots bounds the orders at once.
	slots chan struct{}
	// ended is ready when an order has ended.
	ended chan struct{}

	mu sync.Mutex
	// Guarded by mu: what this replica is at, and until when it leaves a certificate
	// to another or to better times.
	working map[config.Key]bool
	blocked map[config.Key]time.Time
	alarms  alarms
}

// New makes a Keeper; Run keeps.
func New(cfg Config) *Keeper {
	if cfg.Backoff <= 0 {
		cfg.Backoff = 5 * time.Minute
	}
	if cfg.Converge <= 0 {
		cfg.Converge = time.Minute
	}
	if cfg.Claim <= 0 {
		cfg.Claim = 15 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Keeper{
		cfg: cfg, slots: make(chan struct{}, maxOrders), ended: make(chan struct{}, 1),
		working: map[config.Key]bool{}, blocked: map[config.Key]time.Time{}, alarms: alarms{raised: map[config.Key]time.Time{}},
	}
}

// Run orders what is due until ctx ends, and returns when the last order has
// ended.
func (k *Keeper) Run(ctx context.Context) error {
	var orders sync.WaitGroup
	defer orders.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-k.cfg.Changed:
		case <-k.ended:
		}
		timer.Reset(k.round(ctx, &orders, time.Now()))
	}
}

// round starts an order for each certificate that is due and returns how long none
// will be.
func (k *Keeper) round(ctx context.Context, orders *sync.WaitGroup, now time.Time) time.Duration {
	next := idle
	sources := k.cfg.Sources()
	k.look(ctx, sources, now)
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, until := range k.blocked {
		if !until.After(now) {
			delete(k.blocked, key)
		}
	}
	for _, source := range sources {
		if source.Certificate.GetAcme() == nil || k.working[source.Key] {
			continue
		}
		wait := max(due(source, now), k.blocked[source.Key].Sub(now))
		if wait > 0 {
			next = min(next, wait)
			continue
		}
		k.working[source.Key] = true
		orders.Go(func() { k.work(ctx, source.Key) })
	}
	return max(next, 10*time.Millisecond)
}

// due returns how long it is until the certificate is to be ordered. What was
// ordered for something else than the Certificate says now is due at once.
func due(source Source, now time.Time) time.Duration {
	if source.Issued == nil || !proto.Equal(source.Issued.Ordered, source.Certificate.GetAcme()) {
		return 0
	}
	return source.Issued.RefreshAt.AsTime().Sub(now)
}

// work orders one certificate, unless another replica is at it.
func (k *Keeper) work(ctx context.Context, key config.Key) {
	var pause time.Duration
	defer func() {
		k.mu.Lock()
		delete(k.working, key)
		if pause > 0 {
			k.blocked[key] = time.Now().Add(pause)
		}
		k.mu.Unlock()
		select {
		case k.ended <- struct{}{}:
		default:
		}
	}()
	select {
	case k.slots <- struct{}{}:
		defer func() { <-k.slots }()
	case <-ctx.Done():
		return
	}
	log := k.cfg.Log.With("workspace", key.Workspace, "certificate", key.Name)
	mine, release, err := k.claim(ctx, key)
	if err != nil {
		if !errors.Is(err, store.ErrExists) && ctx.Err() == nil {
			log.Warn("acme: claiming the order failed; trying again", "error", err)
		}
		pause = k.cfg.Claim
		return
	}
	defer release()
	// As of now: what this replica saw last may be what another has just renewed.
	source, ok, err := k.cfg.Find(mine, key)
	if err == nil && ok && source.Certificate.GetAcme() != nil && due(source, time.Now()) <= 0 {
		err = k.renew(mine, source, log)
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("acme: an order was broken off; trying again", "error", err)
		pause = k.cfg.Claim
	}
}

// renew orders, and writes what came of it. Its error says that this could not be
// written, or that ctx ended.
func (k *Keeper) renew(ctx context.Context, source Source, log *slog.Logger) error {
	spec := source.Certificate.GetAcme()
	log.Info("acme: ordering a certificate", "hostnames", spec.Hostnames, "directory", directoryOf(spec))
	bounded, cancel := context.WithTimeout(ctx, orderTimeout)
	issued, err := (&order{Keeper: k, source: source}).run(bounded)
	cancel()
	switch {
	case errors.Is(err, errMoved):
		log.Info("acme: the Certificate has changed meanwhile; the order was given up")
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		issued = k.failed(source, err, time.Now())
		log.Error("acme: no certificate was issued; the last one stays", "problem", issued.Problem,
			"failures", issued.Failures, "again_at", issued.RefreshAt.AsTime())
		_, err = k.write(ctx, source, issued, "acme: failed")
	default:
		log.Info("acme: a certificate was issued", "hostnames", spec.Hostnames, "refresh_at", issued.RefreshAt.AsTime())
		_, err = k.write(ctx, source, issued, "acme: issued")
	}
	if errors.Is(err, errMoved) {
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
	issued.Problem, issued.Ordered, issued.Challenges = explain(cause), proto.CloneOf(spec), nil
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
