package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestPrintConditions(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	out := &controlv1.EndpointCondition{
		Workspace: "shop", Upstream: "orders", Address: "10.0.0.7:8080", Reason: "health_check", Detail: "connection refused",
		Since: timestamppb.New(now.Add(-90 * time.Second)),
	}
	nodes := []*controlv1.NodeStatus{
		{Name: "n1", Connected: true},
		{Name: "n2", Connected: true, Condition: &controlv1.Condition{
			Endpoints: []*controlv1.EndpointCondition{out}, EndpointsOut: 3, Overload: "refuses sheddable requests",
			Listeners: []*controlv1.ListenerCondition{{Name: "https", Address: ":443", Problem: "no certificate yet"}, {Name: "http"}},
		}},
		{Name: "n3", Condition: &controlv1.Condition{Endpoints: []*controlv1.EndpointCondition{out}, EndpointsOut: 1}},
	}
	var b strings.Builder
	printConditions(&b, nodes, now)
	want := `
ENDPOINT	UPSTREAM	NODE	OUT BY	SINCE	SEEN LAST
10.0.0.7:8080	shop/orders	n2	health_check	1m30s ago	connection refused
and 2 more	-	n2	-	-	-

NODE	LISTENER	PROBLEM
n2	https :443	no certificate yet
n2	-	refuses sheddable requests
`
	if b.String() != want {
		t.Errorf("%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	if printConditions(&b, nodes[:1], now); b.Len() != 0 {
		t.Errorf("%q for nodes that are well", b.String())
	}
	data, err := json.Marshal(conditionJSON(nodes[1].Condition))
	if err != nil || !strings.Contains(string(data), `"reason":"health_check"`) || !strings.Contains(string(data), `"endpointsOut":3`) {
		t.Errorf("%s, %v", data, err)
	}
}
