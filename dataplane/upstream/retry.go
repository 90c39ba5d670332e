package upstream

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Defaults of Retries and Hedging.
const (
	defaultRetries = 1
	defaultHedges  = 1
	defaultBackoff = 25 * time.Millisecond
)

// retries are a route's, compiled; nil: none.
type retries struct {
	attempts                                int
	reset, unavailable, serverError, waited bool
	statuses                                []uint32
	// anyMethod: also methods that are not idempotent.
	anyMethod bool
	backoff   time.Duration
}

func retriesOf(spec *configv1.Retries) *retries {
	if spec == nil {
		return nil
	}
	r := &retries{
		attempts: int(cmp.Or(spec.GetAttempts(), defaultRetries)), statuses: spec.GetStatuses(),
		anyMethod: spec.GetNonIdempotent(), backoff: duration(spec.GetBackoff(), defaultBackoff),
	}
	for _, on := range spec.GetOn() {
		r.reset = r.reset || on == configv1.RetryOn_RETRY_ON_RESET
		r.unavailable = r.unavailable || on == configv1.RetryOn_RETRY_ON_UNAVAILABLE
		r.serverError = r.serverError || on == configv1.RetryOn_RETRY_ON_SERVER_ERROR
		r.waited = r.waited || on == configv1.RetryOn_RETRY_ON_TIMEOUT
	}
	if len(spec.GetOn()) == 0 && len(spec.GetStatuses()) == 0 {
		r.reset, r.unavailable = true, true
	}
	return r
}

// allows tells whether a request of the method may be sent more than once.
func (r *retries) allows(method string) bool { return r != nil && (r.anyMethod || idempotent(method)) }

// wants tells whether what came of an attempt is a reason for another one.
func (r *retries) wants(resp *exchange.Response, err error) bool {
	if r == nil {
		return false
	}
	if err != nil {
		switch {
		case errors.Is(err, ErrTimeout):
			return r.waited
		case errors.Is(err, errDial), errors.Is(err, http1.ErrUnsent), errors.Is(err, http1.ErrNoAnswer), errors.Is(err, http1.ErrAnswer):
			return r.reset
		}
		return false
	}
	s := resp.Status
	return r.serverError && s >= 500 && s <= 599 ||
		r.unavailable && (s == 502 || s == 503 || s == 504 || s == 200 && grpcUnavailable(resp)) ||
		len(r.statuses) > 0 && slices.Contains(r.statuses, uint32(s))
}

// grpcUnavailable tells whether the answer is trailers only with the status
// UNAVAILABLE (14): then the head has it.
func grpcUnavailable(resp *exchange.Response) bool {
	status, ok := resp.Header.Lookup("Grpc-Status")
	return ok && status == "14"
}

// pause draws how long to wait before a retry, the first being 0, with full jitter.
func (r *retries) pause(retry int) time.Duration { return rand.N(r.backoff<<retry + 1) }

// hedging is a route's, compiled; nil: none.
type hedging struct {
	delay    time.Duration
	attempts int
}

func hedgingOf(spec *configv1.Hedging) *hedging {
	if spec == nil {
		return nil
	}
	return &hedging{spec.GetDelay().AsDuration(), int(cmp.Or(spec.GetAttempts(), defaultHedges))}
}

// allows tells whether the request may be hedged: it can be sent twice at once.
func (h *hedging) allows(r *exchange.Request) bool {
	return h != nil && idempotent(r.Method) && r.Body.Reader == nil && r.Upgrade == ""
}
