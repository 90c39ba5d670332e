package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// printConditions shows what nodes that are connected find wrong beside their
// configuration, when there is anything.
func printConditions(w io.Writer, nodes []*controlv1.NodeStatus, now time.Time) {
	heading := func(columns ...any) func() {
		return sync.OnceFunc(func() {
			fmt.Fprintln(w)
			row(w, columns...)
		})
	}
	endpoints := heading("ENDPOINT", "UPSTREAM", "NODE", "OUT BY", "SINCE", "SEEN LAST")
	for _, node := range nodes {
		if !node.Connected {
			continue
		}
		listed := node.GetCondition().GetEndpoints()
		for _, e := range listed {
			endpoints()
			row(w, e.Address, e.Workspace+"/"+e.Upstream, node.Name, e.Reason, ago(e.Since.AsTime(), now), e.Detail)
		}
		if more := int(node.GetCondition().GetEndpointsOut()) - len(listed); more > 0 {
			endpoints()
			row(w, fmt.Sprintf("and %d more", more), "", node.Name, "", "", "")
		}
	}
	problems := heading("NODE", "LISTENER", "PROBLEM")
	for _, node := range nodes {
		if !node.Connected {
			continue
		}
		for _, l := range node.GetCondition().GetListeners() {
			if l.Problem != "" {
				problems()
				row(w, node.Name, strings.TrimSpace(l.Name+" "+l.Address), l.Problem)
			}
		}
		if overload := node.GetCondition().GetOverload(); overload != "" {
			problems()
			row(w, node.Name, "-", overload)
		}
	}
}

// conditionJSON is a condition for scripts.
func conditionJSON(c *controlv1.Condition) map[string]any {
	endpoints, listeners := []map[string]any{}, []map[string]any{}
	for _, e := range c.GetEndpoints() {
		endpoints = append(endpoints, map[string]any{
			"workspace": e.Workspace, "upstream": e.Upstream, "address": e.Address, "reason": e.Reason, "detail": e.Detail, "since": e.Since.AsTime(),
		})
	}
	for _, l := range c.GetListeners() {
		listeners = append(listeners, map[string]any{"name": l.Name, "address": l.Address, "problem": l.Problem})
	}
	return map[string]any{
		"endpointsOut": c.GetEndpointsOut(), "endpoints": endpoints, "listeners": listeners, "overload": c.GetOverload(),
	}
}
