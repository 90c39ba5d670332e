package dataplane

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	// conditionEvery is how often the node looks at itself.
	conditionEvery = time.Second
	// maxEndpointConditions bounds the endpoints that are told of one by one.
	maxEndpointConditions = 100
)

// tellCondition tells the control plane how the node is, whenever that is news,
// until ctx ends.
func (n *Node) tellCondition(ctx context.Context) error {
	tick := time.NewTicker(conditionEvery)
	defer tick.Stop()
	for {
		n.follower.Condition(n.condition())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// condition is how the node is beside its configuration: what is not in it is well.
func (n *Node) condition() *controlv1.Condition {
	c := &controlv1.Condition{Listeners: n.listenerConditions(), Overload: n.overload.Level().String()}
	n.endpointConditions(c)
	return c
}

// endpointConditions lists the endpoints that get no traffic.
func (n *Node) endpointConditions(c *controlv1.Condition) {
	for _, u := range n.pool.Status() {
		for _, out := range u.Out {
			if c.EndpointsOut++; len(c.Endpoints) >= maxEndpointConditions {
				continue
			}
			c.Endpoints = append(c.Endpoints, &controlv1.EndpointCondition{
				Workspace: u.Key.Workspace, Upstream: u.Key.Name, Address: out.Address,
				Reason: string(out.Reason), Detail: out.Detail, Since: timestamppb.New(out.Since),
			})
		}
	}
}
