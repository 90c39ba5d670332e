package main

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"portcullis.dev/portcullis/loadtest/bucket"
)

// Latencies are kept in microseconds, up to maxLatency, with three digits.
const maxLatency = 2 * time.Minute

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, maxLatency.Microseconds(), 3)
}

func record(h *hdrhistogram.Histogram, d time.Duration) {
	// Within bounds, RecordValue does not fail.
	_ = h.RecordValue(min(max(d.Microseconds(), 1), maxLatency.Microseconds()))
}

func quantile(h *hdrhistogram.Histogram, q float64) time.Duration {
	return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond
}

// answer is what became of one request. Times count from the start of the run.
type answer struct {
	due, sent, done time.Duration
	status          int
	expected        bool
	// failed is why there is no status.
	failed string
}

// second is what was due in one second of the run.
type second struct {
	latency *hdrhistogram.Histogram
	offered int
	// prompt were answered within the second after they were due.
	prompt, errors int
	// admitted and refused are the answers to requests that a limit may refuse.
	admitted, refused int
}

// recorder sums answers up. Safe for concurrent use.
type recorder struct {
	warm, after time.Duration

	mu      sync.Mutex
	seconds []*second
	// After warm: of all, and before and after the disturbance began.
	all, calm, disturbed *hdrhistogram.Histogram
	offered, prompt      int
	statuses             map[int]int
	failures             map[string]int
	errors               int
	attempts             []bucket.Attempt
	// last is when the last answer came.
	last time.Duration
}

func newRecorder(s *Scenario) *recorder {
	r := &recorder{
		warm: s.Warm, after: s.span() + s.Timeout + time.Hour, statuses: map[int]int{}, failures: map[string]int{},
		all: newHistogram(), calm: newHistogram(), disturbed: newHistogram(),
	}
	if s.Disturb != nil {
		r.after = s.Disturb.After
	}
	return r
}

// maxFailures bounds the kinds of failures that are told apart.
const maxFailures = 20

// add counts an answer; limited says that a limit may refuse the request.
func (r *recorder) add(a answer, limited bool) {
	latency := a.done - a.due
	prompt := a.failed == "" && latency <= time.Second
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.seconds) <= int(a.due/time.Second) {
		r.seconds = append(r.seconds, &second{latency: newHistogram()})
	}
	s := r.seconds[a.due/time.Second]
	record(s.latency, latency)
	s.offered++
	s.prompt += count(prompt)
	s.errors += count(!a.expected)
	if limited && a.failed == "" {
		admitted := a.status < 400
		s.admitted += count(admitted)
		s.refused += count(!admitted)
		// Decided somewhere between the two.
		r.attempts = append(r.attempts, bucket.Attempt{At: (a.sent + a.done) / 2, Admitted: admitted})
	}
	r.last = max(r.last, a.done)
	if a.due < r.warm {
		return
	}
	record(r.all, latency)
	if a.due < r.after {
		record(r.calm, latency)
	} else {
		record(r.disturbed, latency)
	}
	r.offered++
	r.prompt += count(prompt)
	r.errors += count(!a.expected)
	switch {
	case a.failed == "":
		r.statuses[a.status]++
	case len(r.failures) < maxFailures || r.failures[a.failed] > 0:
		r.failures[a.failed]++
	default:
		r.failures["others"]++
	}
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// progress is what a run has come to, for people who watch.
type progress struct {
	offered, errors int
	p99             time.Duration
}

func (r *recorder) progress() progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := progress{p99: quantile(r.all, 99), errors: r.errors}
	for _, s := range r.seconds {
		p.offered += s.offered
	}
	return p
}

// judgeLimit judges what was admitted by the one bucket.
func (r *recorder) judgeLimit(l Limit) bucket.Outcome {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.SortStableFunc(r.attempts, func(a, b bucket.Attempt) int { return cmp.Compare(a.At, b.At) })
	return bucket.Judge(r.attempts, l.Rate, l.Burst, r.warm)
}
