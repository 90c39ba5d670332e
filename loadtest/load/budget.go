package main

import (
	"fmt"
	"slices"
	"time"
)

// Verdict is one budget and what a run came to.
type Verdict struct {
	Budget string `json:"budget"`
	// Limit and Got are as people read them.
	Limit string `json:"limit"`
	Got   string `json:"got"`
	Kept  bool   `json:"kept"`
}

// judge holds a run's summary against the budgets, in a fixed order.
func judge(b Budgets, s Summary) []Verdict {
	var all []Verdict
	atMost := func(name string, limit *time.Duration, got time.Duration, measured bool) {
		if limit != nil {
			all = append(all, Verdict{name, "≤ " + limit.String(), text(got, measured), measured && got <= *limit})
		}
	}
	number := func(name string, limit *float64, least bool, got float64, measured bool) {
		if limit == nil {
			return
		}
		sign, kept := "≤ ", got <= *limit
		if least {
			sign, kept = "≥ ", got >= *limit
		}
		shown := "not measured"
		if measured {
			shown = fmt.Sprintf("%.4g", got)
		}
		all = append(all, Verdict{name, sign + fmt.Sprintf("%.4g", *limit), shown, measured && kept})
	}
	any := s.Offered > 0
	atMost("p50", b.P50, s.Latency.P50, any)
	atMost("p90", b.P90, s.Latency.P90, any)
	atMost("p99", b.P99, s.Latency.P99, any)
	atMost("p99.9", b.P999, s.Latency.P999, any)
	atMost("max", b.Max, s.Latency.Max, any)
	number("errors, share of requests", b.Errors, false, share(s.Errors, s.Offered), any)
	number("answered within a second, share of requests", b.Answered, true, share(s.Prompt, s.Offered), any)
	if b.Disturbed != nil {
		measured := s.Calm != nil && s.Disturbed != nil && s.Calm.P99 > 0
		got := 0.0
		if measured {
			got = float64(s.Disturbed.P99) / float64(s.Calm.P99)
		}
		number("p99 disturbed ÷ undisturbed", b.Disturbed, false, got, measured)
	}
	for _, p := range []struct {
		name   string
		budget *Propagation
		got    *Spread
	}{{"config propagation", b.Config, s.Config}, {"revocation propagation", b.Revocation, s.Revocation}} {
		if p.budget != nil {
			got := Spread{}
			if p.got != nil {
				got = *p.got
			}
			atMost(p.name+" p50", p.budget.P50, got.P50, got.Count > 0)
			atMost(p.name+" p99", p.budget.P99, got.P99, got.Count > 0)
		}
	}
	measured := s.Limiter != nil && s.Limiter.Admitted > 0
	var limiter LimiterOutcome
	if measured {
		limiter = *s.Limiter
	}
	number("limit: worst second's admitted ÷ allowed", b.LimitWorst, false, limiter.Worst, measured)
	number("limit: admitted of the allowed", b.LimitUsed, true, limiter.Used, measured)
	return all
}

func text(d time.Duration, measured bool) string {
	if !measured {
		return "not measured"
	}
	return d.Round(time.Microsecond).String()
}

func share(part, of int) float64 {
	if of == 0 {
		return 0
	}
	return float64(part) / float64(of)
}

// broken are the verdicts that were not kept.
func broken(all []Verdict) []Verdict {
	return slices.DeleteFunc(slices.Clone(all), func(v Verdict) bool { return v.Kept })
}
