package config

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/pkg/httppath"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Bounds of what makes upstreams survive. Counts are bounded where more could only
// be a slip.
const (
	maxRetries     = 5
	maxHedges      = 3
	maxMirrors     = 8
	maxStatuses    = 100
	maxThreshold   = 1000
	maxConcurrency = 1_000_000
	maxRetryMin    = 10_000
)

// Defaults that rules of one field look at for another.
const (
	defaultRequestTimeout = 30 * time.Second
	defaultEjection       = 10 * time.Second
	defaultMaxEjection    = 5 * time.Minute
	defaultMinConcurrency = 10
	defaultMaxConcurrency = 1000
)

// upstreamResilience checks what an Upstream says about health and overload.
func (r *report) upstreamResilience(u *configv1.Upstream) {
	if h := u.GetHealthCheck(); h != nil {
		r.healthCheck("spec.healthCheck", h)
	}
	if o := u.GetOutlierDetection(); o != nil {
		r.outlierDetection("spec.outlierDetection", o)
	}
	if b := u.GetCircuitBreaker(); b != nil && b.GetMaxConnections() == 0 && b.GetMaxPending() == 0 && b.GetMaxRequests() == 0 {
		r.fail("spec.circuitBreaker", "bounds nothing: expected \"maxConnections\", \"maxPending\" or \"maxRequests\"")
	}
	if a := u.GetAdaptiveConcurrency(); a != nil {
		r.adaptiveConcurrency("spec.adaptiveConcurrency", a)
	}
	if b := u.GetRetryBudget(); b != nil {
		r.share("spec.retryBudget.ratio", b.Ratio)
		r.most("spec.retryBudget.min", b.GetMin(), maxRetryMin)
	}
	r.share("spec.panicThreshold", u.PanicThreshold)
}

func (r *report) healthCheck(path string, h *configv1.HealthCheck) {
	switch kind := h.GetKind().(type) {
	case *configv1.HealthCheck_Http:
		r.httpCheck(path+".http", kind.Http)
	case *configv1.HealthCheck_Grpc:
		if s := kind.Grpc.GetService(); len(s) > 256 || !printable(s) || strings.ContainsAny(s, " /") {
			r.fail(path+".grpc.service", "is %q: expected the full name of a gRPC service such as shop.v1.Orders", shorten(s))
		}
	case *configv1.HealthCheck_Tcp:
	default:
		r.fail(path, "says not how to ask: expected \"http\", \"grpc\" or \"tcp\"")
	}
	r.duration(path+".interval", h.GetInterval(), 100*time.Millisecond, time.Hour)
	r.duration(path+".timeout", h.GetTimeout(), time.Millisecond, time.Minute)
	r.most(path+".healthy", h.GetHealthy(), maxThreshold)
	r.most(path+".unhealthy", h.GetUnhealthy(), maxThreshold)
}

func (r *report) httpCheck(path string, h *configv1.HTTPCheck) {
	if p := h.GetPath(); p != "" {
		target, query, _ := strings.Cut(p, "?")
		if why := badPath(target); why != "" {
			r.fail(path+".path", "%s", why)
		} else if !isQuery(query) {
			r.fail(path+".path", "is %q: expected a path and a query without spaces and fragment", shorten(p))
		}
	}
	if host := h.GetHost(); host != "" {
		bare, port, named := strings.Cut(host, ":")
		if n, err := strconv.ParseUint(port, 10, 16); !isHost(bare) || named && (err != nil || n == 0) {
			r.fail(path+".host", "is %q: expected a lower-case host name, with or without a port", shorten(host))
		}
	}
	r.statuses(path+".statuses", h.GetStatuses(), 200)
}

// isQuery reports whether the text can stand in a request line (RFC 3986, 3.4).
func isQuery(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || strings.IndexByte("#\"<>\\^`{|}", s[i]) >= 0 {
			return false
		}
	}
	return len(s) <= maxPath
}

func (r *report) statuses(path string, statuses []uint32, least uint32) {
	if len(statuses) > maxStatuses {
		r.fail(path, "has %d entries: expected at most %d", len(statuses), maxStatuses)
		return
	}
	for i, s := range statuses {
		at := path + "[" + strconv.Itoa(i) + "]"
		if s < least || s > 599 {
			r.fail(at, "is %d: expected a status, %d to 599", s, least)
		} else if first := slices.Index(statuses, s); first < i {
			r.fail(at, "%d repeats [%d]: expected each once", s, first)
		}
	}
}

func (r *report) outlierDetection(path string, o *configv1.OutlierDetection) {
	r.most(path+".consecutiveFailures", o.GetConsecutiveFailures(), maxConcurrency)
	r.most(path+".minRequests", o.GetMinRequests(), maxConcurrency)
	r.share(path+".failureRatio", o.FailureRatio)
	if o.FailureRatio != nil && o.GetFailureRatio() == 0 {
		r.fail(path+".failureRatio", "is 0 and would take out every endpoint: expected more than 0, at most 1")
	}
	r.share(path+".maxEjected", o.MaxEjected)
	r.duration(path+".interval", o.GetInterval(), 100*time.Millisecond, time.Hour)
	r.duration(path+".ejection", o.GetEjection(), 100*time.Millisecond, 24*time.Hour)
	r.duration(path+".maxEjection", o.GetMaxEjection(), 100*time.Millisecond, 24*time.Hour)
	least, most := orDefault(o.GetEjection(), defaultEjection), orDefault(o.GetMaxEjection(), defaultMaxEjection)
	if least > most {
		r.fail(path+".maxEjection", "is %s, less than ejection, %s: expected at least as much", FormatDuration(most), FormatDuration(least))
	}
}

func (r *report) adaptiveConcurrency(path string, a *configv1.AdaptiveConcurrency) {
	r.most(path+".min", a.GetMin(), maxConcurrency)
	r.most(path+".max", a.GetMax(), maxConcurrency)
	low, high := a.GetMin(), a.GetMax()
	if low == 0 {
		low = defaultMinConcurrency
	}
	if high == 0 {
		high = defaultMaxConcurrency
	}
	if low > high {
		r.fail(path+".max", "is %d, less than min, %d: expected at least as much", high, low)
	}
}

// routeResilience checks what a Route says about retries, hedging, mirrors and
// timeouts.
func (r *report) routeResilience(t *configv1.Route) {
	request := orDefault(t.GetTimeouts().GetRequest(), defaultRequestTimeout)
	r.timeouts("spec.timeouts", t.GetTimeouts(), request)
	if p := t.GetRetries(); p != nil {
		r.retries("spec.retries", p, t.GetTimeouts().GetAttempt() != nil)
	}
	if h := t.GetHedging(); h != nil {
		r.most("spec.hedging.attempts", h.GetAttempts(), maxHedges)
		r.duration("spec.hedging.delay", h.GetDelay(), time.Millisecond, time.Minute)
		switch delay := h.GetDelay(); {
		case delay == nil:
			r.fail("spec.hedging.delay", "is missing: expected a duration such as 50ms, about the 95th percentile of the upstream's latency")
		case delay.AsDuration() >= request:
			r.fail("spec.hedging.delay", "is %s and has no effect: expected less than timeouts.request, %s",
				FormatDuration(delay.AsDuration()), FormatDuration(request))
		}
	}
	r.mirrors("spec.mirrors", t.GetMirrors())
}

func (r *report) timeouts(path string, t *configv1.Timeouts, request time.Duration) {
	r.duration(path+".attempt", t.GetAttempt(), time.Millisecond, time.Hour)
	if a := t.GetAttempt(); a != nil && a.AsDuration() > request {
		r.fail(path+".attempt", "is %s, longer than all attempts together: expected at most request, %s",
			FormatDuration(a.AsDuration()), FormatDuration(request))
	}
	r.duration(path+".idle", t.GetIdle(), 100*time.Millisecond, 24*time.Hour)
	name := t.GetDeadlineHeader()
	if name == "" {
		return
	}
	switch why := badHeaderName(name); {
	case why != "":
		r.fail(path+".deadlineHeader", "%s", why)
	case !httppath.SafeName(name):
		r.fail(path+".deadlineHeader", "is %q: expected letters, digits and '-' only", name)
	case oneOfHeaders(name, hopByHop()):
		r.fail(path+".deadlineHeader", "is %q, which belongs to a connection: expected a header of its own", name)
	case gatewayOwned(name) || oneOfHeaders(name, []string{
		"Host", "Authorization", "Cookie", "Content-Type", "Content-Encoding", "Content-Range", "Range", "Expect", "Grpc-Timeout", "Accept-Encoding",
	}):
		r.fail(path+".deadlineHeader", "is %q, which has a meaning of its own: expected a header such as X-Timeout-Ms", name)
	}
}

func (r *report) retries(path string, p *configv1.Retries, attempt bool) {
	r.most(path+".attempts", p.GetAttempts(), maxRetries)
	for i, on := range p.GetOn() {
		at := path + ".on[" + strconv.Itoa(i) + "]"
		switch {
		case on == configv1.RetryOn_RETRY_ON_UNSPECIFIED:
			r.fail(at, "is empty: expected %s", quoteList(enumNames(on.Descriptor())))
		case slices.Index(p.GetOn(), on) < i:
			r.fail(at, "repeats [%d]: expected each once", slices.Index(p.GetOn(), on))
		case on == configv1.RetryOn_RETRY_ON_TIMEOUT && !attempt:
			r.fail(at, "has no effect: expected timeouts.attempt, since after timeouts.request there is no time left to try again")
		}
	}
	r.statuses(path+".statuses", p.GetStatuses(), 400)
	r.duration(path+".backoff", p.GetBackoff(), time.Millisecond, 10*time.Second)
}

func (r *report) mirrors(path string, mirrors []*configv1.Mirror) {
	if len(mirrors) > maxMirrors {
		r.fail(path, "has %d entries: expected at most %d", len(mirrors), maxMirrors)
		return
	}
	seen := make(map[string]int, len(mirrors))
	for i, m := range mirrors {
		at := path + "[" + strconv.Itoa(i) + "]"
		if why := badName(m.GetUpstream()); why != "" {
			r.fail(at+".upstream", "%s", why)
		} else if first, ok := seen[m.GetUpstream()]; ok {
			r.fail(at+".upstream", "%q repeats mirrors[%d]: expected each upstream once", m.GetUpstream(), first)
		} else {
			seen[m.GetUpstream()] = i
		}
		r.share(at+".ratio", m.Ratio)
	}
}

// share checks a share that is set; one left out has its default.
func (r *report) share(path string, v *float64) {
	if v != nil && (math.IsNaN(*v) || *v < 0 || *v > 1) {
		r.fail(path, "is %v: expected 0 to 1", *v)
	}
}

// most checks a count; 0 is its default.
func (r *report) most(path string, n uint32, most uint32) {
	if n > most {
		r.fail(path, "is %d: expected at most %d", n, most)
	}
}

func orDefault(d *durationpb.Duration, zero time.Duration) time.Duration {
	if d == nil {
		return zero
	}
	return d.AsDuration()
}

// eachMirror calls f for every reference of a route's mirrors.
func eachMirror(t *configv1.Route, f func(ref)) {
	for i, m := range t.GetMirrors() {
		f(ref{"spec.mirrors[#].upstream", [2]int{i}, KindUpstream, m.GetUpstream()})
	}
}
