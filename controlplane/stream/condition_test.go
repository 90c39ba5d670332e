package stream

import (
	"strings"
	"testing"
	"time"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// What a node says of how it is stands in its status, bounded, until it connects
// anew.
func TestConditionIsKept(t *testing.T) {
	p := newPlane(t, nil)
	p.start(t, 1)
	c := p.node(t, "n1", &controlv1.Hello{})
	c.applied(c.whole())
	p.await(t, at(1), 1)
	m := &controlv1.Condition{EndpointsOut: 1000}
	for range 1000 {
		m.Endpoints = append(m.Endpoints, &controlv1.EndpointCondition{Upstream: "orders", Detail: strings.Repeat("é", 1000)})
	}
	c.send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Condition{Condition: m}})
	condition := func(want func(*controlv1.Condition) bool) {
		t.Helper()
		for deadline := time.After(patience); ; {
			changed := p.Changed()
			if nodes := p.Nodes(); len(nodes) == 1 && want(nodes[0].GetCondition()) {
				return
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("%v", p.Nodes())
			}
		}
	}
	condition(func(c *controlv1.Condition) bool {
		return len(c.GetEndpoints()) == maxConditions && c.GetEndpointsOut() == 1000 && len(c.Endpoints[0].Detail) <= maxConditionLen
	})
	c.send(&controlv1.FollowRequest{Kind: &controlv1.FollowRequest_Condition{Condition: &controlv1.Condition{Overload: "x"}}})
	condition(func(c *controlv1.Condition) bool { return len(c.GetEndpoints()) == 0 && c.GetOverload() == "x" })
	again := p.node(t, "n1", &controlv1.Hello{})
	again.applied(again.whole())
	condition(func(c *controlv1.Condition) bool { return c == nil })
}
