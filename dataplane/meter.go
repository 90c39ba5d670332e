package dataplane

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"

	"portcullis.dev/portcullis/dataplane/exchange"
)

func splitName(name string) (workspace, rest string) {
	workspace, rest, _ = strings.Cut(name, "/")
	return workspace, rest
}

func (n *Node) servedStale(exchange.RouteInfo) { n.stale.Add(1) }

// meter exports the node's own state: what an SRE asks first when something is
// wrong. All instruments are asynchronous: they cost nothing until they are read.
func (n *Node) meter() error {
	meter := n.telemetry.Meter("portcullis.dev/portcullis/dataplane")
	gauge := func(name, unit, about string, read func() float64) error {
		_, err := meter.Float64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(about),
			metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error {
				o.Observe(read())
				return nil
			}))
		return err
	}
	for _, g := range []struct {
		name, unit, about string
		read              func() float64
	}{
		{"portcullis.config.revision", "1", "Revision that the node runs.", func() float64 { return float64(n.Version().Revision) }},
		{"portcullis.control.connected", "1", "1 while a control plane is being followed.", func() float64 {
			return boolean(n.follower.Status().Connected)
		}},
		{"portcullis.revocation.staleness", "s", "Time since the node last was certain to hold every revocation.", func() float64 {
			return min(n.freshness.Staleness(time.Now()), 366*24*time.Hour).Seconds()
		}},
		{"portcullis.revocation.entries", "{entry}", "Revocations held.", func() float64 { return float64(n.revocations.Len()) }},
		{"portcullis.revocation.served_stale", "{request}", "Requests served although revocations were staler than the route's bound.", func() float64 {
			return float64(n.stale.Load())
		}},
		{"portcullis.credential.entries", "{credential}", "API keys held.", func() float64 { return float64(n.credentials.Len()) }},
		{"portcullis.limit.keys", "{key}", "Limit keys held.", func() float64 { return float64(n.limiter.Stats().Keys) }},
		{"portcullis.limit.nodes", "{node}", "Nodes whose totals are heard, this one included.", func() float64 { return float64(n.limiter.Stats().Nodes) }},
		{"portcullis.bus.connected", "1", "1 while the bus is connected.", func() float64 {
			b := n.wire.bus.Load()
			return boolean(b != nil && (*b).Connected())
		}},
		{"portcullis.bus.dropped", "{message}", "Messages that were forged, replayed, malformed or under an unknown key.", func() float64 {
			b := n.wire.bus.Load()
			if b == nil {
				return 0
			}
			s := (*b).Stats()
			return float64(s.Forged + s.Replayed + s.Malformed + s.UnknownKey)
		}},
		{"portcullis.memory.share", "1", "Share of the memory limit that is in use; 0 without a limit.", func() float64 { return n.overload.Share() }},
		{"portcullis.memory.overload", "1", "What is refused for want of memory: 0 nothing, 1 connections, 2 to 4 requests by criticality.", func() float64 {
			return float64(n.overload.Level())
		}},
		{"portcullis.access_log.dropped", "{line}", "Access-log lines that did not fit.", func() float64 {
			if n.access == nil {
				return 0
			}
			return float64(n.access.Stats().Dropped)
		}},
	} {
		if err := gauge(g.name, g.unit, g.about, g.read); err != nil {
			return err
		}
	}
	return n.meterUpstreams(meter)
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
