// Package acme obtains and renews the certificates that a Certificate asks a
// certificate authority for (RFC 8555), for the whole cluster: what it gets, and
// what nodes must answer while it gets it, is written as an IssuedCertificate into
// the configuration, so that every node shows the same certificate and answers
// every challenge.
//
// It owns the schedule, by the authority's suggestions (RFC 9773) where it makes
// some, the accounts and the orders. It must not know how nodes
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
	"fmt"
	"log/slog"
	"sync"
	"time"

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
	// maxShare is how many of them, and of the questions, are one workspace's: whose
	// authority keeps it waiting must not keep the others.
	maxShare = maxOrders / 2
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
	// orders and questions bound what runs at once: an authority that is slow to say
	// when to renew keeps no order waiting.
	orders, questions chan struct{}
	// ended is ready when an order has ended.
	ended chan struct{}

	mu sync.Mutex
	// Guarded by mu: what this replica is at, and until when it leaves a certificate
	// to another or to better times.
	working map[config.Key]bool
	turns   map[turn]int
	blocked map[config.Key]time.Time
	// When the authority is asked about a certificate again.
	asked  map[config.Key]remembered
	alarms alarms
}

// turn is what a workspace has its share of.
type turn struct {
	workspace string
	ask       bool
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
		cfg: cfg, orders: make(chan struct{}, maxOrders), questions: make(chan struct{}, maxQuestions), ended: make(chan struct{}, 1),
		working: map[config.Key]bool{}, turns: map[turn]int{}, blocked: map[config.Key]time.Time{}, asked: map[config.Key]remembered{},
		alarms: alarms{raised: map[config.Key]time.Time{}},
	}
}

// Run orders what is due until ctx ends, and returns when the last order has
// ended.
func (k *Keeper) Run(ctx context.Context) error {
	var work sync.WaitGroup
	defer work.Wait()
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
		timer.Reset(k.round(ctx, &work, time.Now()))
	}
}

// round starts an order for each certificate that is due, and a question for each
// about which the authority is to be asked, and returns how long there will be
// neither.
func (k *Keeper) round(ctx context.Context, work *sync.WaitGroup, now time.Time) time.Duration {
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
	for key, asked := range k.asked {
		// What is not remembered is due: so is a question whose time has come.
		if !asked.at.After(now) {
			delete(k.asked, key)
		}
	}
	for _, source := range sources {
		if source.Certificate.GetAcme() == nil || k.working[source.Key] {
			continue
		}
		wait := k.due(source, now)
		ask := wait > 0
		if ask {
			wait = min(wait, k.untilAsk(source, now))
		}
		if wait = max(wait, k.blocked[source.Key].Sub(now)); wait > 0 {
			next = min(next, wait)
			continue
		}
		mine := turn{source.Key.Workspace, ask}
		if k.turns[mine] == maxShare {
			continue // one that ends begins another round
		}
		k.turns[mine]++
		k.working[source.Key] = true
		work.Go(func() { k.work(ctx, source, ask) })
	}
	return max(next, 10*time.Millisecond)
}

// work orders one certificate or asks when to, unless another replica is at it.
func (k *Keeper) work(ctx context.Context, source Source, ask bool) {
	var pause time.Duration
	defer func() {
		k.mu.Lock()
		delete(k.working, source.Key)
		mine := turn{source.Key.Workspace, ask}
		if k.turns[mine]--; k.turns[mine] == 0 {
			delete(k.turns, mine)
		}
		if pause > 0 {
			k.blocked[source.Key] = time.Now().Add(pause)
		}
		k.mu.Unlock()
		select {
		case k.ended <- struct{}{}:
		default:
		}
	}()
	slots := k.orders
	if ask {
		slots = k.questions
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return
	}
	log := k.cfg.Log.With("workspace", source.Key.Workspace, "certificate", source.Key.Name)
	err := k.claimed(ctx, source, ask, log)
	if err == nil || ctx.Err() != nil {
		return
	}
	pause = k.cfg.Claim
	if !errors.Is(err, store.ErrExists) {
		log.Warn("acme: what was to be done was broken off; trying again", "error", err)
	}
}

// claimed does the work under the claim; store.ErrExists when that is another's.
func (k *Keeper) claimed(ctx context.Context, source Source, ask bool, log *slog.Logger) error {
	if ask {
		// Most of what a replica does not know has been settled by another, or before it
		// was started: no claim is needed to see that.
		if settled, err := k.settled(ctx, source); settled || err != nil {
			return err
		}
	}
	mine, release, err := k.claim(ctx, source.Key)
	if err != nil {
		return fmt.Errorf("claiming it: %w", err)
	}
	defer release()
	// As of now: what this replica saw last may be what another has just renewed.
	// Not for ever: a replica that cannot follow the store leaves it to one that can.
	soon, cancel := context.WithTimeout(mine, k.cfg.Claim)
	source, ok, err := k.cfg.Find(soon, source.Key)
	cancel()
	switch {
	case err != nil || !ok || source.Certificate.GetAcme() == nil:
		return err
	case k.due(source, time.Now()) <= 0:
		return k.renew(mine, source, log)
	case ask && source.Issued.Failures == 0:
		return k.ask(mine, source, log)
	}
	return nil
}
