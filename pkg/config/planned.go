package config

import "google.golang.org/protobuf/reflect/protoreflect"

// planned are the fields that the protos have and this release does not act on:
// to take one and ignore it would be a silent hole.
func planned() []protoreflect.FullName {
	const v1 = "portcullis.config.v1."
	return []protoreflect.FullName{
		v1 + "Certificate.acme",
		v1 + "Listener.http3",
		v1 + "Route.retries",
		v1 + "Route.hedging",
		v1 + "Route.mirrors",
		v1 + "Route.criticality",
		v1 + "Timeouts.attempt",
		v1 + "Timeouts.idle",
		v1 + "Timeouts.deadline_header",
		v1 + "Upstream.protocol",
		v1 + "Upstream.health_check",
		v1 + "Upstream.outlier_detection",
		v1 + "Upstream.circuit_breaker",
		v1 + "Upstream.adaptive_concurrency",
		v1 + "Upstream.retry_budget",
		v1 + "Upstream.panic_threshold",
	}
}
