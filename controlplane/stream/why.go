package stream

import (
	"context"
	"fmt"
	"sync"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// asks matches the nodes' decisions with the questions. Safe for concurrent use.
type asks struct {
	mu   sync.Mutex
	last uint64
	open map[uint64]*question
}

// question is asked of several nodes; each answers once, or leaves.
type question struct {
	id      uint64
	asked   map[*node]bool
	answers chan *controlv1.Decision // room for all asked
}

func (a *asks) begin(nodes []*node) *question {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last++
	q := &question{id: a.last, asked: make(map[*node]bool, len(nodes)), answers: make(chan *controlv1.Decision, len(nodes))}
	for _, n := range nodes {
		q.asked[n] = true
	}
	a.open[q.id] = q
	return q
}

func (a *asks) end(q *question) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.open, q.id)
}

// answer hands n's decision over; nil when there is none to come. One that was
// not asked for is dropped.
func (a *asks) answer(n *node, id uint64, d *controlv1.Decision) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q := a.open[id]; q != nil && q.asked[n] {
		delete(q.asked, n)
		q.answers <- d
	}
}

// left answers every question for a node that is gone.
func (a *asks) left(n *node) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, q := range a.open {
		if q.asked[n] {
			delete(q.asked, n)
			q.answers <- nil
		}
	}
}

// WhyHere asks this replica's own nodes for the decision on a request: nil when
// none has it. An error is ctx's, with nodes that have not answered.
func (h *Hub) WhyHere(ctx context.Context, requestID string) (*controlv1.DecisionRecord, error) {
	nodes := h.connected()
	q := h.asks.begin(nodes)
	defer h.asks.end(q)
	f, err := freeze(&controlv1.FollowResponse{Kind: &controlv1.FollowResponse_Ask{Ask: &controlv1.Ask{Id: q.id, RequestId: requestID}}})
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if !n.ask(f) {
			h.asks.answer(n, q.id, nil)
		}
	}
	for range nodes {
		select {
		case d := <-q.answers:
			// The record must be about the request that was asked for.
			if r := d.GetRecord(); d.GetFound() && r.GetRequestId() == requestID {
				return r, nil
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("not every node has answered: %w", ctx.Err())
		}
	}
	return nil, nil
}

// Why implements controlv1.PeerServiceServer: it asks this replica's own nodes.
func (h *Hub) Why(ctx context.Context, m *controlv1.WhyRequest) (*controlv1.WhyResponse, error) {
	if err := h.peer(ctx); err != nil {
		return nil, err
	}
	r, err := h.WhyHere(ctx, m.GetRequestId())
	if err != nil {
		return nil, err
	}
	return &controlv1.WhyResponse{Found: r != nil, Record: r}, nil
}
