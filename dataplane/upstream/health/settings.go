package health

import (
	"time"

	configv1 "portcullis.dev/portcullis/proto/config/v1"

	"google.golang.org/protobuf/types/known/durationpb"
)

// Settings are what an upstream says about the health of its endpoints; nil is
// none of it.
type Settings struct {
	Check   *Check
	Outlier *Outlier
}

// Protocol of a Check.
type Protocol uint8

// The protocols.
const (
	TCP Protocol = iota
	HTTP
	GRPC
)

// Check asks an endpoint whether it is well.
type Check struct {
	Protocol Protocol
	// Path and query of HTTP; Host is its Host field, "" for the endpoint's.
	Path, Host string
	// Statuses of HTTP that are well; none means 200 to 299.
	Statuses []uint32
	// Service of GRPC; "" asks for the server.
	Service string
	// Interval between the beginnings of two checks, give or take a tenth.
	Interval, Timeout time.Duration
	// Healthy and Unhealthy are how many in a row change the verdict.
	Healthy, Unhealthy uint32
}

// Defaults of HealthCheck and OutlierDetection.
const (
	defaultInterval        = 5 * time.Second
	defaultTimeout         = 2 * time.Second
	defaultHealthy         = 2
	defaultUnhealthy       = 3
	defaultConsecutive     = 5
	defaultRatio           = 0.5
	defaultMinRequests     = 20
	defaultOutlierInterval = 10 * time.Second
	defaultEjection        = 10 * time.Second
	defaultMaxEjection     = 5 * time.Minute
	defaultMaxEjected      = 0.5
)

// SettingsOf reads what a checked Upstream says.
func SettingsOf(spec *configv1.Upstream) Settings {
	var s Settings
	if h := spec.GetHealthCheck(); h != nil {
		s.Check = &Check{
			Interval: duration(h.Interval, defaultInterval), Timeout: duration(h.Timeout, defaultTimeout),
			Healthy: orElse(h.Healthy, defaultHealthy), Unhealthy: orElse(h.Unhealthy, defaultUnhealthy),
		}
		switch kind := h.Kind.(type) {
		case *configv1.HealthCheck_Http:
			s.Check.Protocol, s.Check.Host, s.Check.Statuses = HTTP, kind.Http.GetHost(), kind.Http.GetStatuses()
			s.Check.Path = orElse(kind.Http.GetPath(), "/")
		case *configv1.HealthCheck_Grpc:
			s.Check.Protocol, s.Check.Service = GRPC, kind.Grpc.GetService()
		}
	}
	if o := spec.GetOutlierDetection(); o != nil {
		s.Outlier = &Outlier{
			Consecutive: orElse(o.ConsecutiveFailures, defaultConsecutive),
			Ratio:       optional(o.FailureRatio, defaultRatio), MinRequests: orElse(o.MinRequests, defaultMinRequests),
			Interval: duration(o.Interval, defaultOutlierInterval),
			Ejection: duration(o.Ejection, defaultEjection), MaxEjection: duration(o.MaxEjection, defaultMaxEjection),
			MaxEjected: optional(o.MaxEjected, defaultMaxEjected),
		}
		// An ejection longer than the longest is the longest.
		s.Outlier.MaxEjection = max(s.Outlier.MaxEjection, s.Outlier.Ejection)
	}
	return s
}

func duration(d *durationpb.Duration, zero time.Duration) time.Duration {
	if d == nil || d.AsDuration() <= 0 {
		return zero
	}
	return d.AsDuration()
}

func orElse[T comparable](v, zero T) T {
	var none T
	if v == none {
		return zero
	}
	return v
}

func optional(v *float64, zero float64) float64 {
	if v == nil {
		return zero
	}
	return *v
}
