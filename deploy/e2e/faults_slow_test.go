//go:build slow

package e2e_test

import (
	"testing"

	"portcullis.dev/portcullis/deploy/cluster"
)

// A node behind a thin link gets a full state that takes far longer than a
// stream may be silent.
func TestSlowFullStateOnThinLink(t *testing.T) {
	between := newLinks(t)
	h := start(t, cluster.Config{Nodes: 2, Adjust: between.adjust})
	h.must("stopping", h.StopNode(1))
	h.apply(stamped("one", 300))
	between.control[1].toxin("bandwidth", "downstream", map[string]int{"rate": 60}) // KB/s
	h.must("starting", h.StartNode(within(t), 1))
	h.runs(1, h.Plane().Version())
	if got, err := stampOf(h.get(1, "/r7/x")); err != nil || got != "one" {
		t.Errorf("%q, %v", got, err)
	}
}
