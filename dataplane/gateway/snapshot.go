// Package gateway is a node's heart: it compiles what the control plane sends
// into a snapshot, swaps it in whole, and handles each exchange on the one
// snapshot that it found. It owns the order of things in a request's life and
// the record of what was decided. It knows no wire protocol: front ends fill an
// Exchange and write its Response.
package gateway

import (
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/dataplane/route"
	"portcullis.dev/portcullis/dataplane/upstream"
	"portcullis.dev/portcullis/dataplane/upstream/balance"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/telemetry"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Snapshot is one version, compiled. It is immutable.
type Snapshot struct {
	Version  config.Version
	checked  config.Checked
	routes   route.Table[*target]
	settings *configv1.Gateway
}

// Route is one route, compiled. It is immutable but for its pickers' turns.
type Route struct {
	info exchange.RouteInfo
	// pattern is the first path pattern, for the http.route attribute.
	pattern  string
	pipeline *policy.Pipeline
	backends []*upstream.Backend
	picker   *balance.Wheel
	timeout  time.Duration
	counters *telemetry.RouteCounters
	// criticality says when the route is shed.
	criticality configv1.Criticality
	// patterns are the route's entries in the table.
	patterns []route.Pattern
	targets  []*target
}

// target is one entry of the table: a route, and what of it the table does not
// test.
type target struct {
	route      *Route
	predicates []predicate
}

// accepts says whether the request passes what the table does not test.
func (t *target) accepts(r *exchange.Request) bool {
	for i := range t.predicates {
		if !t.predicates[i].holds(r) {
			return false
		}
	}
	return true
}
