package stream

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"portcullis.dev/portcullis/pkg/config"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// registry is what is known of the nodes, of this replica's and of its peers'.
// The messages in it are never modified, only replaced. Safe for concurrent use.
type registry struct {
	replica string

	mu      sync.Mutex
	own     map[string]*entry
	peers   map[Peer]map[string]*controlv1.NodeStatus // by replica, by node
	left    map[string]*controlv1.NodeStatus          // nodes of replicas that are none any more
	changed chan struct{}
}

type entry struct {
	status *controlv1.NodeStatus
	stream *node
	gone   time.Time
}

func newRegistry(replica string) *registry {
	return &registry{
		replica: replica,
		own:     map[string]*entry{},
		peers:   map[Peer]map[string]*controlv1.NodeStatus{},
		left:    map[string]*controlv1.NodeStatus{},
		changed: make(chan struct{}),
	}
}

// signal tells those who wait that something changed; r.mu is held.
func (r *registry) signal() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *registry) connected(n *node, m *controlv1.Hello, held config.Version) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := timestamppb.Now()
	s := &controlv1.NodeStatus{
		Name: n.name, Address: m.GetAddress(), Release: m.GetRelease(), Boot: m.GetBoot(),
		Version: held.Proto(), ConnectedAt: now, ReportedAt: now, Replica: r.replica, Connected: true,
	}
	r.own[n.name] = &entry{status: s, stream: n}
	r.signal()
}

// update replaces the status of n's node, unless a newer stream has it.
func (r *registry) update(n *node, change func(*controlv1.NodeStatus)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.own[n.name]
	if e == nil || e.stream != n {
		return
	}
	s := proto.CloneOf(e.status)
	change(s)
	e.status = s
	if !s.GetConnected() {
		e.gone = time.Now()
	}
	r.signal()
}

func (r *registry) reported(n *node, m *controlv1.Report, held config.Version) {
	r.update(n, func(s *controlv1.NodeStatus) {
		s.Version = held.Proto()
		s.ReportedAt = timestamppb.Now()
		switch {
		case len(m.GetProblems()) > 0:
			s.Rejected, s.Problems = m.GetVersion(), m.GetProblems()
		case held.Compare(config.VersionOf(s.GetRejected())) >= 0:
			s.Rejected, s.Problems = nil, nil
		}
		if m.GetApplyTime() != nil {
			s.ApplyTime = m.GetApplyTime()
		}
	})
}

func (r *registry) disconnected(n *node) {
	r.update(n, depart)
}

// depart marks a node as not connected from now on.
func depart(s *controlv1.NodeStatus) { s.Connected, s.DisconnectedAt = false, timestamppb.Now() }

// forget drops nodes that went before t.
func (r *registry) forget(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	before := len(r.own) + len(r.left)
	maps.DeleteFunc(r.own, func(_ string, e *entry) bool { return !e.status.GetConnected() && e.gone.Before(t) })
	maps.DeleteFunc(r.left, func(_ string, s *controlv1.NodeStatus) bool { return s.GetDisconnectedAt().AsTime().Before(t) })
	if len(r.own)+len(r.left) != before {
		r.signal()
	}
}

// setPeer replaces what a replica said of its nodes.
func (r *registry) setPeer(replica Peer, nodes []*controlv1.NodeStatus) {
	byName := make(map[string]*controlv1.NodeStatus, len(nodes))
	for _, s := range nodes {
		byName[s.GetName()] = s
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers[replica] = byName
	r.signal()
}

// lostPeer marks a replica's nodes as not connected: what they run is not known
// any more.
func (r *registry) lostPeer(replica Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lose(replica)
	r.signal()
}

func (r *registry) lose(replica Peer) {
	for name, s := range r.peers[replica] {
		if s.GetConnected() {
			s = proto.CloneOf(s)
			depart(s)
			r.peers[replica][name] = s
		}
	}
}

// dropPeer forgets a replica. Its nodes serve on and are on their way to another.
func (r *registry) dropPeer(replica Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lose(replica)
	maps.Copy(r.left, r.peers[replica])
	delete(r.peers, replica)
	r.signal()
}

// local returns this replica's own nodes, and a channel that closes with the
// next change.
func (r *registry) local() ([]*controlv1.NodeStatus, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]*controlv1.NodeStatus, 0, len(r.own))
	for _, e := range r.own {
		all = append(all, e.status)
	}
	sortNodes(all)
	return all, r.changed
}

// all returns every node once, as the replica knows it that it follows, and a
// channel that closes with the next change.
func (r *registry) all() ([]*controlv1.NodeStatus, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := slices.Collect(r.each())
	sortNodes(all)
	return all, r.changed
}

// each yields every node once, in no order; r.mu is held.
func (r *registry) each() iter.Seq[*controlv1.NodeStatus] {
	return func(yield func(*controlv1.NodeStatus) bool) {
		if len(r.peers)+len(r.left) == 0 {
			for _, e := range r.own {
				if !yield(e.status) {
					return
				}
			}
			return
		}
		best := make(map[string]*controlv1.NodeStatus, len(r.own))
		add := func(s *controlv1.NodeStatus) {
			if old := best[s.GetName()]; old == nil || newer(s, old) {
				best[s.GetName()] = s
			}
		}
		for _, e := range r.own {
			add(e.status)
		}
		for _, replica := range slices.SortedFunc(maps.Keys(r.peers), Peer.compare) {
			for _, s := range r.peers[replica] {
				add(s)
			}
		}
		for _, s := range r.left {
			add(s)
		}
		maps.Values(best)(yield)
	}
}

func sortNodes(all []*controlv1.NodeStatus) {
	slices.SortFunc(all, func(a, b *controlv1.NodeStatus) int { return cmp.Compare(a.GetName(), b.GetName()) })
}

// newer says which of two replicas' words on a node counts.
func newer(a, b *controlv1.NodeStatus) bool {
	if a.GetConnected() != b.GetConnected() {
		return a.GetConnected()
	}
	if c := a.GetConnectedAt().AsTime().Compare(b.GetConnectedAt().AsTime()); c != 0 {
		return c > 0
	}
	return a.GetReportedAt().AsTime().After(b.GetReportedAt().AsTime())
}

// Nodes returns what is known of every node of the cluster, by name. The
// messages are shared: do not modify them.
func (h *Hub) Nodes() []*controlv1.NodeStatus {
	all, _ := h.registry.all()
	return all
}

// Changed returns a channel that closes when the next thing about any node
// changes. Take it before reading Nodes or Convergence, so that no change is
// missed.
func (h *Hub) Changed() <-chan struct{} {
	h.registry.mu.Lock()
	defer h.registry.mu.Unlock()
	return h.registry.changed
}
