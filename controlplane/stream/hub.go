package stream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"portcullis.dev/portcullis/pkg/config"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// State is the whole state at one version.
type State struct {
	Head
	// Resources yields all resources without credentials; it must stay valid after
	// Release, as that of a config.Checked does.
	Resources iter.Seq[*configv1.Resource]
	// Credentials yields packed records of at most maxBytes; see credential.Set.
	Credentials func(maxBytes int) iter.Seq[*controlv1.CredentialRecords]
	Revocations iter.Seq[*controlv1.Revocation]
	// Release is called once Credentials and Revocations have been read, which
	// must yield the state of exactly this version until then; may be nil.
	Release func()
}

// Config of a Hub. Durations and sizes have documented zero values; functions
// are required unless said otherwise and must be safe for concurrent use.
type Config struct {
	// Replica names this control plane in NodeStatus.
	Replica string
	// Node authorises a stream and returns the node's name. Its error is returned
	// to the node as PermissionDenied unless it carries a gRPC status.
	Node func(context.Context) (string, error)
	// Peer authorises another replica; nil refuses all.
	Peer func(context.Context) error
	// Full returns the whole state, at the head or newer.
	Full func(context.Context) (State, error)
	// Sign signs a version and its digest; see identity.SigningKey.SignVersion.
	Sign func(config.Version, Digest) []byte
	// KeyMissing hears that a node lacks a key; it must not block. May be nil.
	KeyMissing func(node string, m *controlv1.KeyMissing)
	// Requires are the protocol features that a node must have.
	Requires []string

	// Heartbeat is the time between heartbeats; 0 means 250 ms.
	Heartbeat time.Duration
	// DigestEvery is the time between heartbeats with digest; 0 means 30 s.
	DigestEvery time.Duration
	// MaxFull caps the full states being sent at once; 0 means 4.
	MaxFull int
	// MaxChanges and MaxBytes bound the ring; 0 means 4096 and 64 MiB.
	MaxChanges, MaxBytes int
	// ChunkBytes is the size of a chunk; 0 means 64 KiB. A node takes a stream on
	// which no message ends for 3 s for dead, so a chunk must pass a thin link in
	// less.
	ChunkBytes int
	// SendTimeout ends the stream of a node that takes no data for so long: it would
	// keep a full state's slot from others, and what waits for it is out of date;
	// 0 means 30 s.
	SendTimeout time.Duration
	// HelloTimeout is how long a node has for its Hello; 0 means 10 s.
	HelloTimeout time.Duration
	// Forget is how long a node that is gone is still listed; 0 means 10 min.
	Forget time.Duration
	// Grace is how long a node that is gone still counts as one that has to follow,
	// and how long Expected ones are waited for after a start; 0 means 10 s.
	Grace time.Duration
	// Expected returns the names of the nodes that there should be; it must not
	// block. nil when nobody knows.
	Expected func() []string
	// Logger; nil discards.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	def(&c.Heartbeat, 250*time.Millisecond)
	def(&c.DigestEvery, 30*time.Second)
	def(&c.MaxFull, 4)
	def(&c.MaxChanges, 4096)
	def(&c.MaxBytes, 64<<20)
	def(&c.ChunkBytes, 64<<10)
	def(&c.SendTimeout, 30*time.Second)
	def(&c.HelloTimeout, 10*time.Second)
	def(&c.Forget, 10*time.Minute)
	def(&c.Grace, 10*time.Second)
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

// ProofAge is how old the newest proof of being current may be for a heartbeat to
// be sent. A replica that is cut off from the store's quorum falls silent, so that
// its nodes grow stale and follow another.
const ProofAge = time.Second

// ErrStale says that a published version is not newer than the head.
var ErrStale = errors.New("version is not newer than the head")

// Hub keeps all nodes of one control-plane replica at the newest version. It
// implements controlv1.ControlServiceServer and controlv1.PeerServiceServer.
// Safe for concurrent use; streams are served while Run runs.
type Hub struct {
	controlv1.UnimplementedControlServiceServer
	controlv1.UnimplementedPeerServiceServer
	cfg      Config
	born     time.Time
	registry *registry
	asks     asks
	slots    *slots

	// What nodes are sent. Written by Publish, Reset, Welcome and Run.
	mu        sync.RWMutex
	head      Head
	signature []byte
	progress  int64
	proved    time.Time // as of when the newest proof of progress holds
	ring      ring
	welcome   *frame
	deltas    map[config.Version]*lazyTransfer // by from, to the head
	denials   map[config.Version]*lazyTransfer // by from, to the head

	// The full state, encoded; see full.go.
	full fullState

	// Who is connected.
	nodesMu sync.Mutex
	nodes   map[string]*node
	closed  bool
	running sync.WaitGroup
	// life ends with Run.
	life context.Context
	end  context.CancelFunc
}

// NewHub makes a hub that knows no version: nodes wait until Reset.
func NewHub(cfg Config) *Hub {
	cfg = cfg.withDefaults()
	life, end := context.WithCancel(context.Background())
	return &Hub{
		life:     life,
		end:      end,
		cfg:      cfg,
		born:     time.Now(),
		registry: newRegistry(cfg.Replica),
		asks:     asks{open: map[uint64]*question{}},
		slots:    &slots{free: cfg.MaxFull},
		ring:     ring{maxCount: cfg.MaxChanges, maxBytes: cfg.MaxBytes},
		deltas:   map[config.Version]*lazyTransfer{},
		denials:  map[config.Version]*lazyTransfer{},
		nodes:    map[string]*node{},
	}
}

// Reset makes a loaded state the head and empties the ring: nodes that hold
// another version get the full state. It is how a hub starts and how it goes on
// after a gap. ErrStale when the head is newer.
func (h *Hub) Reset(head Head) error {
	h.mu.Lock()
	if head.Version.Compare(h.head.Version) < 0 {
		defer h.mu.Unlock()
		return fmt.Errorf("reset to %v at %v: %w", head.Version, h.head.Version, ErrStale)
	}
	h.ring.reset(head)
	h.advance(head)
	h.mu.Unlock()
	h.wakeAll()
	return nil
}

// Publish makes a change the head and wakes every node. A change that does not
// follow the head is a gap: the ring starts anew with it. ErrStale when it is
// not newer than the head.
func (h *Hub) Publish(c Change) error {
	h.mu.Lock()
	at := h.head.Version
	if c.Version.Compare(at) <= 0 {
		defer h.mu.Unlock()
		return fmt.Errorf("publish %v at %v: %w", c.Version, at, ErrStale)
	}
	if c.Previous != at || c.Version.Epoch != at.Epoch {
		h.cfg.Logger.Warn("gap between versions: nodes get the full state", "from", at, "to", c.Version)
		h.ring.reset(c.head())
	} else {
		h.ring.add(&c)
	}
	h.advance(c.head())
	h.mu.Unlock()
	h.wakeAll()
	return nil
}

// advance sets the head; h.mu is held.
func (h *Hub) advance(head Head) {
	if head.Version.Epoch != h.head.Version.Epoch {
		h.progress, h.proved = 0, time.Time{} // revisions start anew
	}
	h.head = head
	h.progress = max(h.progress, head.Version.Revision)
	h.signature = h.cfg.Sign(head.Version, head.Digest)
	clear(h.deltas)
	clear(h.denials)
}

// Progress notes a proof: the store has been seen up to a revision of the head's
// epoch, and had nothing newer as of a moment. Heartbeats carry the revision, and
// are sent only while the newest proof is less than a second old.
func (h *Hub) Progress(revision int64, asOf time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.progress = max(h.progress, revision)
	if asOf.After(h.proved) {
		h.proved = asOf
	}
}

// SetWelcome sets what each node is told first; connected nodes are told at
// once. Call it again when keys rotate.
func (h *Hub) SetWelcome(w *controlv1.Welcome) error {
	f, err := freeze(&controlv1.FollowResponse{Kind: &controlv1.FollowResponse_Welcome{Welcome: w}})
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.welcome = &f
	h.mu.Unlock()
	h.wakeAll()
	return nil
}

func (h *Hub) currentWelcome() *frame {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.welcome
}

// Head returns the newest version.
func (h *Hub) Head() Head {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.head
}

// Run sends heartbeats until ctx ends, then ends all streams and returns nil
// when the last has ended.
func (h *Hub) Run(ctx context.Context) error {
	beat := time.NewTicker(h.cfg.Heartbeat)
	defer beat.Stop()
	digest := time.Now()
	for {
		select {
		case <-ctx.Done():
			h.nodesMu.Lock()
			h.closed = true
			h.end()
			h.nodesMu.Unlock()
			h.running.Wait()
			return nil
		case now := <-beat.C:
			withDigest := now.Sub(digest) >= h.cfg.DigestEvery
			if h.beat(now, withDigest) && withDigest {
				digest = now
			}
			h.registry.forget(now.Add(-h.cfg.Forget))
			h.full.expire(now)
		}
	}
}

// start counts n goroutines that Run waits for; false when Run has ended.
func (h *Hub) start(n int) bool {
	h.nodesMu.Lock()
	defer h.nodesMu.Unlock()
	if h.closed {
		return false
	}
	h.running.Add(n)
	return true
}

// beat puts one heartbeat into each node's slot, in place of an unsent one. False
// when there is no fresh proof that the head is the newest, hence no heartbeat.
func (h *Hub) beat(now time.Time, withDigest bool) bool {
	h.mu.RLock()
	m := &controlv1.Heartbeat{
		Head: h.head.Version.Proto(), Revocations: h.head.Revocations, Progress: h.progress,
		Age: durationpb.New(max(0, now.Sub(h.proved))),
	}
	if withDigest {
		m.Digest = h.head.Digest[:]
	}
	current := !h.head.Version.IsZero() && !h.proved.IsZero() && now.Sub(h.proved) <= ProofAge
	h.mu.RUnlock()
	if !current {
		return false
	}
	f, err := freeze(&controlv1.FollowResponse{Kind: &controlv1.FollowResponse_Heartbeat{Heartbeat: m}})
	if err != nil {
		h.cfg.Logger.Error("heartbeat", "err", err)
		return false
	}
	for _, n := range h.connected() {
		// A heartbeat with digest must not be lost to one without.
		for {
			old := n.beat.Load()
			if old != nil && old.digest && !withDigest {
				break
			}
			if n.beat.CompareAndSwap(old, &beatFrame{f, withDigest}) {
				break
			}
		}
		n.wake()
	}
	return true
}

func (h *Hub) connected() []*node {
	h.nodesMu.Lock()
	defer h.nodesMu.Unlock()
	all := make([]*node, 0, len(h.nodes))
	for _, n := range h.nodes {
		all = append(all, n)
	}
	return all
}

func (h *Hub) wakeAll() {
	for _, n := range h.connected() {
		n.wake()
	}
}

// view is what sessions decide on.
func (h *Hub) view() View {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return View{
		Head: h.head.Version, Revocations: h.head.Revocations, Oldest: h.ring.base.Version,
		DigestAt: func(v config.Version) (Digest, bool) {
			h.mu.RLock()
			defer h.mu.RUnlock()
			return h.ring.digestAt(v)
		},
	}
}
