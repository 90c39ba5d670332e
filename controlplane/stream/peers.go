package stream

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// nodesEvery is the least time between two lists to a peer, so that a thousand
// reports make a few lists.
const nodesEvery = 20 * time.Millisecond

func (h *Hub) peer(ctx context.Context) error {
	if h.cfg.Peer == nil {
		return status.Error(codes.PermissionDenied, "this control plane has no peers")
	}
	if err := h.cfg.Peer(ctx); err != nil {
		return refusal(err)
	}
	return nil
}

// WatchNodes implements controlv1.PeerServiceServer.
func (h *Hub) WatchNodes(_ *controlv1.WatchNodesRequest, stream grpc.ServerStreamingServer[controlv1.WatchNodesResponse]) error {
	ctx := stream.Context()
	if err := h.peer(ctx); err != nil {
		return err
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-pause.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-h.life.Done():
			return status.Error(codes.Unavailable, "control plane is shutting down")
		}
		nodes, changed := h.registry.local()
		if err := stream.Send(&controlv1.WatchNodesResponse{Nodes: nodes}); err != nil {
			return err
		}
		pause.Reset(nodesEvery)
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-h.life.Done():
			return status.Error(codes.Unavailable, "control plane is shutting down")
		}
	}
}

// Peer is another control-plane replica.
type Peer struct{ Name, Address string }

func (p Peer) compare(o Peer) int {
	return cmp.Or(cmp.Compare(p.Name, o.Name), cmp.Compare(p.Address, o.Address))
}

// PeersConfig says how to reach the peers.
type PeersConfig struct {
	Hub *Hub
	// Dial makes a connection to a peer's address; it must not block.
	Dial func(Peer) (*grpc.ClientConn, error)
	// Grace is how long a peer may be unreachable before its nodes count as not
	// connected; 0 means 5 s. Until then they are listed as last heard of.
	Grace time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

// Peers follows the other replicas' nodes, so that each replica answers for the
// whole cluster. Safe for concurrent use.
type Peers struct {
	cfg   PeersConfig
	woken chan struct{} // cap 1

	mu     sync.Mutex
	wanted map[Peer]bool
	conns  map[Peer]*grpc.ClientConn
}

// NewPeers makes a Peers that knows none yet.
func NewPeers(cfg PeersConfig) *Peers {
	def(&cfg.Grace, 5*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Peers{cfg: cfg, woken: make(chan struct{}, 1), wanted: map[Peer]bool{}, conns: map[Peer]*grpc.ClientConn{}}
}

// Set says which peers there are, without this replica itself.
func (p *Peers) Set(peers []Peer) {
	p.mu.Lock()
	clear(p.wanted)
	for _, peer := range peers {
		p.wanted[peer] = true
	}
	p.mu.Unlock()
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// Run follows the peers until ctx ends; then it returns nil.
func (p *Peers) Run(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	stops := map[Peer]context.CancelFunc{}
	for {
		p.mu.Lock()
		for peer, stop := range stops {
			if !p.wanted[peer] {
				stop()
				delete(stops, peer)
			}
		}
		for peer := range p.wanted {
			if stops[peer] == nil {
				peerCtx, stop := context.WithCancel(ctx)
				stops[peer] = stop
				running.Go(func() {
					defer stop()
					p.follow(peerCtx, peer)
				})
			}
		}
		p.mu.Unlock()
		select {
		case <-p.woken:
		case <-ctx.Done():
			for _, stop := range stops {
				stop()
			}
			return nil
		}
	}
}

// follow keeps a peer's list until ctx ends.
func (p *Peers) follow(ctx context.Context, peer Peer) {
	defer p.cfg.Hub.registry.dropPeer(peer)
	conn, err := p.cfg.Dial(peer)
	if err != nil {
		p.cfg.Logger.Error("dial peer", "peer", peer.Name, "address", peer.Address, "err", err)
		return
	}
	defer conn.Close()
	p.mu.Lock()
	p.conns[peer] = conn
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.conns, peer)
		p.mu.Unlock()
	}()
	failures := 0
	lost := time.AfterFunc(p.cfg.Grace, func() { p.cfg.Hub.registry.lostPeer(peer) })
	defer lost.Stop()
	for ctx.Err() == nil {
		heard, err := p.watch(ctx, conn, peer, lost)
		if heard {
			failures = 0
			lost.Reset(p.cfg.Grace)
		}
		if ctx.Err() != nil {
			return
		}
		p.cfg.Logger.Warn("peer does not answer", "peer", peer.Name, "err", err)
		// Full jitter: replicas that lost the same peer do not come back at once.
		pause := time.NewTimer(rand.N(min(50*time.Millisecond<<min(failures, 10), 2*time.Second)))
		failures++
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

// watch takes the peer's lists until the stream ends, and reports whether there
// was one.
func (p *Peers) watch(ctx context.Context, conn *grpc.ClientConn, peer Peer, lost *time.Timer) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := controlv1.NewPeerServiceClient(conn).WatchNodes(ctx, &controlv1.WatchNodesRequest{}, grpc.MaxCallRecvMsgSize(64<<20))
	if err != nil {
		return false, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return heard, err
		}
		heard = true
		lost.Stop()
		p.cfg.Hub.registry.setPeer(peer, m.GetNodes())
	}
}

// Why asks the nodes of all replicas for the decision on a request: nil when
// none has it. An error says that somebody did not answer and nobody else had
// it.
func (p *Peers) Why(ctx context.Context, requestID string) (*controlv1.DecisionRecord, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	asks := []func() (*controlv1.DecisionRecord, error){
		func() (*controlv1.DecisionRecord, error) { return p.cfg.Hub.WhyHere(ctx, requestID) },
	}
	for _, conn := range p.conns {
		asks = append(asks, func() (*controlv1.DecisionRecord, error) {
			m, err := controlv1.NewPeerServiceClient(conn).Why(ctx, &controlv1.WhyRequest{RequestId: requestID})
			return m.GetRecord(), err
		})
	}
	p.mu.Unlock()
	type answer struct {
		record *controlv1.DecisionRecord
		err    error
	}
	answers := make(chan answer, len(asks))
	for _, ask := range asks {
		go func() {
			r, err := ask()
			answers <- answer{r, err}
		}()
	}
	var errs []error
	var found *controlv1.DecisionRecord
	for range asks {
		a := <-answers
		switch {
		case a.record != nil && found == nil:
			found = a.record
			cancel()
		case a.err != nil:
			errs = append(errs, a.err)
		}
	}
	if found != nil {
		return found, nil
	}
	return nil, errors.Join(errs...)
}
