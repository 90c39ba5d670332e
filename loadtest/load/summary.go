package main

import (
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report is all that is known of a run. Times count from its start; durations are
// nanoseconds in JSON.
type Report struct {
	Scenario *Scenario `json:"scenario"`
	Started  time.Time `json:"started"`
	// Where it ran, for people.
	Target   string    `json:"target"`
	Summary  Summary   `json:"summary"`
	Verdicts []Verdict `json:"verdicts"`
	Seconds  []Second  `json:"seconds"`
	// Each change's propagation.
	Config     []sample `json:"config,omitempty"`
	Revocation []sample `json:"revocation,omitempty"`
}

// Summary is of the time after warm.
type Summary struct {
	Offered int     `json:"offered"`
	Prompt  int     `json:"answeredWithinASecond"`
	Errors  int     `json:"errors"`
	Latency Latency `json:"latency"`
	// Before and after the disturbance began; nil without one.
	Calm       *Latency        `json:"undisturbed,omitempty"`
	Disturbed  *Latency        `json:"disturbed,omitempty"`
	Statuses   map[int]int     `json:"statuses"`
	Failures   map[string]int  `json:"failures,omitempty"`
	Config     *Spread         `json:"configPropagation,omitempty"`
	Revocation *Spread         `json:"revocationPropagation,omitempty"`
	Limiter    *LimiterOutcome `json:"limiter,omitempty"`
}

// Latency counts from when a request was due.
type Latency struct {
	P50  time.Duration `json:"p50"`
	P90  time.Duration `json:"p90"`
	P99  time.Duration `json:"p99"`
	P999 time.Duration `json:"p999"`
	Max  time.Duration `json:"max"`
}

// Spread is of how long changes took.
type Spread struct {
	Count int           `json:"count"`
	P50   time.Duration `json:"p50"`
	P99   time.Duration `json:"p99"`
	Max   time.Duration `json:"max"`
	// Late are the changes that were left out since the one before was not done.
	Late int `json:"late"`
}

// LimiterOutcome is what was admitted, against one bucket that saw everything.
type LimiterOutcome struct {
	Worst    float64 `json:"worstSecond"`
	Used     float64 `json:"ofAllowed"`
	Admitted int     `json:"admitted"`
	Offered  int     `json:"offered"`
}

// Second is what was due in one second.
type Second struct {
	Latency
	Offered  int `json:"offered"`
	Prompt   int `json:"answeredWithinASecond"`
	Errors   int `json:"errors"`
	Admitted int `json:"admitted,omitempty"`
	Refused  int `json:"refused,omitempty"`
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	return Latency{quantile(h, 50), quantile(h, 90), quantile(h, 99), quantile(h, 99.9), time.Duration(h.Max()) * time.Microsecond}
}

// summarise draws the report up.
func summarise(s *Scenario, r *recorder, d *disturbance) *Report {
	report := &Report{Scenario: s, Config: d.config.samples, Revocation: d.revocation.samples, Summary: Summary{
		Offered: r.offered, Prompt: r.prompt, Errors: r.errors, Latency: latencyOf(r.all), Statuses: r.statuses, Failures: r.failures,
	}}
	sum := &report.Summary
	if s.Disturb != nil {
		calm, disturbed := latencyOf(r.calm), latencyOf(r.disturbed)
		sum.Calm, sum.Disturbed = &calm, &disturbed
		if s.Disturb.Reload != nil {
			sum.Config = spreadOf(&d.config)
		}
		if s.Disturb.Revoke != nil {
			sum.Revocation = spreadOf(&d.revocation)
		}
	}
	if s.Limit != nil {
		o := r.judgeLimit(*s.Limit)
		sum.Limiter = &LimiterOutcome{o.Worst, o.OfAllowed, o.Admitted, o.Offered}
	}
	for _, one := range r.seconds {
		report.Seconds = append(report.Seconds, Second{latencyOf(one.latency), one.offered, one.prompt, one.errors, one.admitted, one.refused})
	}
	report.Verdicts = judge(s.Budgets, *sum)
	return report
}

// spreadOf takes the nearest rank: of few samples the p99 is the worst.
func spreadOf(p *propagation) *Spread {
	out := &Spread{Count: len(p.samples), Late: p.late}
	if out.Count == 0 {
		return out
	}
	took := make([]time.Duration, 0, out.Count)
	for _, s := range p.samples {
		took = append(took, s.Took)
	}
	slices.Sort(took)
	rank := func(q int) time.Duration { return took[(len(took)*q+99)/100-1] }
	out.P50, out.P99, out.Max = rank(50), rank(99), took[len(took)-1]
	return out
}
