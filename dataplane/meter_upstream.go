package dataplane

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"portcullis.dev/portcullis/dataplane/upstream"
	"portcullis.dev/portcullis/dataplane/upstream/guard"
)

// upstreamMeter reads one number of an upstream.
type upstreamMeter struct {
	name, unit, about string
	counts            bool // it never falls
	// by, when set, distinguishes several readings.
	by   attribute.Set
	read func(*upstream.Status) int64
}

func upstreamMeters() []upstreamMeter {
	refusal := func(kind string, k guard.Kind) upstreamMeter {
		return upstreamMeter{"portcullis.upstream.refused", "{request}", "Requests and connections that the circuit breaker or the concurrency limit refused, by what was exhausted.", true,
			attribute.NewSet(attribute.String("portcullis.limit", kind)), func(s *upstream.Status) int64 { return int64(s.Refused[k]) }}
	}
	shed := refusal("concurrency", 0)
	shed.read = func(s *upstream.Status) int64 { return int64(s.Shed) }
	plain := attribute.NewSet()
	return []upstreamMeter{
		{"portcullis.upstream.endpoints", "{endpoint}", "Endpoints of the upstream.", false, plain, func(s *upstream.Status) int64 { return int64(s.Endpoints) }},
		{"portcullis.upstream.endpoints.usable", "{endpoint}", "Endpoints that get traffic from this node.", false, plain, func(s *upstream.Status) int64 { return int64(s.Usable()) }},
		{"portcullis.upstream.ejections", "{ejection}", "Endpoints taken out because live traffic failed.", true, plain, func(s *upstream.Status) int64 { return int64(s.Ejections) }},
		{"portcullis.upstream.active_requests", "{request}", "Requests in flight to the upstream.", false, plain, func(s *upstream.Status) int64 { return s.Requests }},
		{"portcullis.upstream.retries", "{request}", "Requests sent once more.", true, plain, func(s *upstream.Status) int64 { return int64(s.Retries) }},
		{"portcullis.upstream.hedges", "{request}", "Requests sent to another endpoint because the first was slow.", true, plain, func(s *upstream.Status) int64 { return int64(s.Hedges) }},
		{"portcullis.upstream.retry_budget.exhausted", "{request}", "Retries and hedges not sent for want of budget.", true, plain, func(s *upstream.Status) int64 { return int64(s.Exhausted) }},
		{"portcullis.upstream.mirrored", "{request}", "Copies of requests sent to the upstream as a mirror.", true, plain, func(s *upstream.Status) int64 { return int64(s.Mirrored) }},
		{"portcullis.upstream.mirror.dropped", "{request}", "Copies that were not sent because too many were under way.", true, plain, func(s *upstream.Status) int64 { return int64(s.Unmirrored) }},
		{"portcullis.upstream.concurrency_limit", "{request}", "Requests at once that the upstream bears, as found from its latency; 0 when it is not limited.", false, plain, func(s *upstream.Status) int64 { return s.Limit }},
		refusal("connections", guard.Connections), refusal("pending", guard.Pending), refusal("requests", guard.Requests), shed,
	}
}

// meterUpstreams exports how upstreams are, all read at once.
func (n *Node) meterUpstreams(meter metric.Meter) error {
	instruments := map[string]metric.Int64Observable{}
	var all []metric.Observable
	meters := upstreamMeters()
	for _, m := range meters {
		if instruments[m.name] != nil {
			continue
		}
		var one metric.Int64Observable
		var err error
		if m.counts {
			one, err = meter.Int64ObservableCounter(m.name, metric.WithUnit(m.unit), metric.WithDescription(m.about))
		} else {
			one, err = meter.Int64ObservableGauge(m.name, metric.WithUnit(m.unit), metric.WithDescription(m.about))
		}
		if err != nil {
			return err
		}
		instruments[m.name] = one
		all = append(all, one)
	}
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		status := n.pool.Status()
		for i := range status {
			of := []attribute.KeyValue{
				attribute.String("portcullis.workspace", status[i].Key.Workspace), attribute.String("portcullis.upstream", status[i].Key.Name),
			}
			for _, m := range meters {
				o.ObserveInt64(instruments[m.name], m.read(&status[i]), metric.WithAttributes(append(of[:2:2], m.by.ToSlice()...)...))
			}
		}
		return nil
	}, all...)
	return err
}
