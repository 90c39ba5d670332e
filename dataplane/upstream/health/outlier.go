package health

import "time"

// Outlier says when live traffic takes an endpoint out.
type Outlier struct {
	// Consecutive failures that do; at least 1.
	Consecutive uint32
	// Ratio of failures within an Interval that has MinRequests; 0 to 1.
	Ratio       float64
	MinRequests uint32
	Interval    time.Duration
	// Ejection is how long an endpoint is out, times how often it was lately, at
	// most MaxEjection.
	Ejection, MaxEjection time.Duration
	// MaxEjected is the share of an upstream's endpoints that may be out at once;
	// one always may.
	MaxEjected float64
}

// room says how many of so many endpoints may be out at once.
func (s *Outlier) room(endpoints int) int { return max(1, int(s.MaxEjected*float64(endpoints))) }

// record is what live traffic shows of one endpoint: a state machine that is told
// the time. Its rules are Envoy's outlier detection's (consecutive_5xx,
// failure_percentage, base_ejection_time times the ejections that have not been
// forgiven), with the ratio looked at on each failure instead of at the
// interval's end.
type record struct {
	// The open interval.
	opened             time.Time
	requests, failures uint32
	// consecutive failures up to now.
	consecutive uint32
	// ejections that are not forgiven, and until when the endpoint is out; zero
	// when it is in.
	ejections uint32
	until     time.Time
	// readmitted is when it came back last; each interval since forgives one.
	readmitted time.Time
}

// roll opens another interval when the open one is over, and says whether it did.
func (r *record) roll(s *Outlier, now time.Time) bool {
	if !r.opened.IsZero() && now.Sub(r.opened) < s.Interval {
		return false
	}
	r.opened, r.requests, r.failures = now, 0, 0
	return true
}

// succeed notes so many requests without a failure since it was told last. Those
// of an interval that is over do not count in the next one: a day of success must
// not hide what fails now.
func (r *record) succeed(s *Outlier, now time.Time, requests uint32) {
	if !r.roll(s, now) {
		r.requests += requests
	}
	r.consecutive = 0
}

// fail notes a failure and says whether the endpoint should go out.
func (r *record) fail(s *Outlier, now time.Time) bool {
	r.roll(s, now)
	r.requests++
	r.failures++
	r.consecutive++
	if !r.until.IsZero() {
		return false
	}
	return r.consecutive >= s.Consecutive ||
		r.requests >= s.MinRequests && float64(r.failures) >= s.Ratio*float64(r.requests)
}

// eject takes the endpoint out.
func (r *record) eject(s *Outlier, now time.Time) {
	if !r.readmitted.IsZero() {
		forgiven := uint32(min(int64(r.ejections), int64(now.Sub(r.readmitted)/s.Interval)))
		r.ejections -= forgiven
	}
	r.ejections++
	out := s.MaxEjection
	if s.Ejection <= s.MaxEjection/time.Duration(r.ejections) {
		out = s.Ejection * time.Duration(r.ejections)
	}
	r.until = now.Add(out)
}

// readmit takes the endpoint in again and forgets what led to its ejection, but
// not that there was one.
func (r *record) readmit(now time.Time) {
	r.until, r.readmitted = time.Time{}, now
	r.opened, r.requests, r.failures, r.consecutive = time.Time{}, 0, 0, 0
}
