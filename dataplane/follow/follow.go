// Package follow is a node's side of the stream between the planes: it follows
// one control plane out of several, takes updates in at the door, hands what
// passed to the Applier, reports, and keeps a last-known-good copy on disk. It
// owns what the node holds. It must not know how a state is compiled or served,
// nor how a connection is secured.
package follow

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Features are the protocol features that this release understands.
var features = []string{"deny-lane", "chunked-delta"}

// Config of a Follower. What has no stated zero value is required.
type Config struct {
	// Addresses of the control planes; each attempt goes to the next one, in an
	// order drawn at random.
	Addresses []string
	// Dial makes a connection; it must not block.
	Dial func(address string) (*grpc.ClientConn, error)
	// Release, Boot and Address are what the node says of itself.
	Release string
	Boot    uint64
	Address string

	Applier Applier
	// Credentials, Revocations and Freshness are kept by the follower; the bus may
	// add to the latter two as well.
	Credentials *credential.Set
	Revocations *revocation.Set
	Freshness   *revocation.Freshness
	// Decisions returns this node's decision on a request; nil: none is kept. It
	// must not block.
	Decisions func(requestID string) (*controlv1.DecisionRecord, bool)
	// Welcome hears what the control plane says first, and again when keys rotate;
	// may be nil. It must not block.
	Welcome func(*controlv1.Welcome)
	// SigningKeys (PKIX DER) may sign versions, besides those of the last Welcome.
	SigningKeys [][]byte
	// Store keeps the last-known-good copy; nil: none is kept.
	Store *Store
	// SaveEvery is the least time between two copies; 0 means 1 s. A copy that is
	// slow to write is also written at most a twentieth of the time.
	SaveEvery time.Duration

	// Silence ends a stream on which nothing came for so long, or on which the
	// control plane stayed behind this node for so long; 0 means 3 s.
	Silence time.Duration
	// MinBackoff and MaxBackoff bound the pause after a failed attempt, drawn
	// uniformly from 0 to a bound that doubles each time; 0 means 50 ms and 5 s.
	MinBackoff, MaxBackoff time.Duration
	// MaxUpdate bounds an update in bytes; 0 means 1 GiB.
	MaxUpdate int
	// Logger; nil discards.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	def(&c.SaveEvery, time.Second)
	def(&c.Silence, 3*time.Second)
	def(&c.MinBackoff, 50*time.Millisecond)
	def(&c.MaxBackoff, 5*time.Second)
	def(&c.MaxUpdate, 1<<30)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Status is how a follower is.
type Status struct {
	// Version that the node runs; zero for none.
	Version config.Version
	// Connected says that a control plane is being followed, Address which.
	Connected bool
	Address   string
	// Sought says that since Run began every control plane has been tried, or has
	// had seekTime to answer: whoever is not connected then has nobody to wait for.
	Sought bool
}

// seekTime is how long a node that starts waits for control planes that do not
// even refuse it.
const seekTime = 2 * time.Second

// Follower keeps a node at the newest version. Its methods are safe for
// concurrent use.
type Follower struct {
	cfg   Config
	dirty chan struct{} // cap 1: there is something to save
	// committing is held while an update goes live, config and then credentials.
	// It is taken before mu, and never by what reads the stream.
	committing sync.Mutex

	// mu guards what the node holds together with what it says of it, so that
	// reports leave in the order of what they tell. The door's check runs without
	// it, in the one goroutine that applies.
	mu      sync.Mutex
	door    door
	welcome *controlv1.Welcome
	outbox  outbox
	// saving is held for every write to the Store, and while held is set.
	saving sync.Mutex
	held   atomic.Bool
	status Status
	// asked is the newest question after revocations; again is how long it may stay
	// without effect until it is asked once more.
	asked asked
	again time.Duration
}

type asked struct {
	epoch uint64
	held  int64
	at    time.Time
}

// New makes a follower and starts what is on disk: with every other part of the
// cluster down the node serves what it last ran. It never fails for what the
// disk holds; an error is one of the Config.
func New(ctx context.Context, cfg Config) (*Follower, error) {
	cfg = cfg.withDefaults()
	if len(cfg.Addresses) == 0 || cfg.Dial == nil || cfg.Applier == nil ||
		cfg.Credentials == nil || cfg.Revocations == nil || cfg.Freshness == nil {
		return nil, errors.New("follow: Addresses, Dial, Applier, Credentials, Revocations and Freshness are required")
	}
	f := &Follower{cfg: cfg, dirty: make(chan struct{}, 1)}
	f.outbox.woken = make(chan struct{}, 1)
	f.door = door{applier: cfg.Applier, credentials: cfg.Credentials}
	if len(cfg.SigningKeys) > 0 {
		keys, err := identity.ParseVerifyKeys(cfg.SigningKeys)
		if err != nil {
			return nil, fmt.Errorf("follow: %w", err)
		}
		f.door.keys = keys
	}
	if cfg.Store != nil {
		f.restore(ctx)
	}
	return f, nil
}

// Status returns how the follower is.
func (f *Follower) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	s.Version = f.door.held.version
	return s
}

// Run follows the control planes until ctx ends; then it saves what has not been
// saved and returns nil.
func (f *Follower) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	if f.cfg.Store != nil {
		running.Go(func() { f.save(ctx) })
	}
	order := rand.Perm(len(f.cfg.Addresses))
	defer time.AfterFunc(seekTime, f.sought).Stop()
	failures := 0
	for i := 0; ctx.Err() == nil; i++ {
		address := f.cfg.Addresses[order[i%len(order)]]
		worked, err := f.session(ctx, address)
		if ctx.Err() != nil {
			break
		}
		if i+1 >= len(order) {
			f.sought()
		}
		f.cfg.Logger.Warn("stream from the control plane ended", "address", address, "err", err)
		if worked {
			// The first attempt elsewhere need not wait long.
			failures = 0
		}
		wait := backoff(f.cfg.MinBackoff, f.cfg.MaxBackoff, failures)
		if f.held.Load() {
			// A control plane follows one stream of a node: the two would end each other's
			// without end, and neither get anything that takes long.
			wait = f.cfg.MaxBackoff
		}
		pause := time.NewTimer(wait)
		failures++
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
	return nil
}

func (f *Follower) sought() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Sought = true
}

// backoff draws a pause with full jitter, so that a thousand nodes that lost one
// control plane do not come to the next at once.
func backoff(least, most time.Duration, failures int) time.Duration {
	bound := most
	if failures < 30 && least<<failures < most {
		bound = least << failures
	}
	return rand.N(bound + 1)
}

// KeyMissing asks the control plane to fetch an issuer's keys anew. It never
// blocks; asking again before the question has left adds nothing.
func (f *Follower) KeyMissing(workspace, issuer string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outbox.keyMissing(workspace, issuer)
}

// Condition tells the control plane how the node is, when that is news, and each
// control plane that is followed later. It never blocks; the newest is what is
// sent. c belongs to the follower from then on.
func (f *Follower) Condition(c *controlv1.Condition) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.outbox.tell(c)
}

// Bounds of how long a question after revocations may stay without effect until
// it is asked again.
const (
	minAgain = 250 * time.Millisecond
	maxAgain = 8 * time.Second
)

// Missed asks the control plane for the revocations after the last that the node
// is certain to hold. The stream carries every one anyway; this is for whoever
// sees a gap on the bus and does not want to rely on what is under way. Until the
// node holds more it asks again after 250 ms at the earliest, and each time after
// twice as long, since each answer is all that it lacks.
func (f *Follower) Missed() {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	held := f.door.held.version
	if !f.status.Connected || held.IsZero() {
		return
	}
	epoch, revision := f.cfg.Freshness.Held()
	if epoch != f.asked.epoch || revision != f.asked.held {
		f.again = 0
	}
	if f.again > 0 && now.Sub(f.asked.at) < f.again {
		return
	}
	f.asked = asked{epoch, revision, now}
	f.again = min(max(minAgain, 2*f.again), maxAgain)
	f.outbox.ask()
}

// missed is the question after revocations, as of what the node holds when it
// leaves; f.mu is held.
func (f *Follower) missed() *controlv1.FollowRequest {
	held := f.door.held.version
	denied := config.Version{Epoch: held.Epoch, Revision: 1}
	if epoch, revision := f.cfg.Freshness.Held(); epoch == held.Epoch {
		denied.Revision = max(1, revision)
	}
	return &controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Report{Report: &controlv1.Report{
		Running: held.Proto(), Digest: f.door.digest(), Revocations: denied.Proto(),
	}}}
}
