package policy

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// problemType precedes the reason in a problem's type.
const problemType = "https://portcullis.dev/problems/"

// problem is the body of a refusal (RFC 9457).
type problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Reason    Reason `json:"reason"`
	RequestID string `json:"request_id"`
	TraceID   string `json:"trace_id"`
}

// StatusCode returns the HTTP status of the refusal.
func (d *Denial) StatusCode() int {
	if d.Status != 0 {
		return d.Status
	}
	return d.Reason.Status()
}

// Problem returns the body of the refusal, application/problem+json (RFC 9457).
func (d *Denial) Problem(requestID, traceID string) []byte {
	p := problem{
		Type: problemType + string(d.Reason), Title: d.Reason.Title(), Status: d.StatusCode(),
		Detail: d.Detail, Reason: d.Reason, RequestID: requestID, TraceID: traceID,
	}
	if p.Detail == "" {
		p.Detail = p.Title + "."
	}
	body, err := json.Marshal(p)
	if err != nil {
		return []byte(`{}`) // strings and a number always marshal
	}
	return append(body, '\n')
}

// Response returns the whole answer: status, problem, challenges, Retry-After.
// It does not set X-Request-Id, which every answer has.
func (d *Denial) Response(requestID, traceID string) *exchange.Response {
	body := d.Problem(requestID, traceID)
	r := &exchange.Response{
		Status: d.StatusCode(),
		Header: exchange.HeaderOf(
			exchange.Field{Name: "Content-Type", Value: "application/problem+json"},
			exchange.Field{Name: "Cache-Control", Value: "no-store"},
		),
		Body: exchange.Body{Reader: io.NopCloser(bytes.NewReader(body)), Length: int64(len(body))},
	}
	d.addTo(&r.Header)
	return r
}

// addTo adds what a refusal says in the head, whatever its form.
func (d *Denial) addTo(h *exchange.Header) {
	for _, c := range d.Challenges {
		h.Add("WWW-Authenticate", c)
	}
	if d.RetryAfter > 0 {
		h.Add("Retry-After", strconv.FormatInt(seconds(d.RetryAfter), 10))
	}
}

// seconds rounds up to whole seconds.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// The challenges of RFC 6750 section 3 and their like for API keys. A parameter's
// value holds no quote and no backslash: scopes cannot (RFC 6749 section 3.3), and
// descriptions are ours.
const realm = `realm="portcullis"`

func bearerChallenge(code, description, scope string) string {
	var b strings.Builder
	b.WriteString("Bearer " + realm)
	for _, p := range [...][2]string{{"error", code}, {"error_description", description}, {"scope", scope}} {
		if p[1] != "" {
			b.WriteString(", " + p[0] + `="` + p[1] + `"`)
		}
	}
	return b.String()
}

func apiKeyChallenge(header string) string { return "ApiKey " + realm + `, header="` + header + `"` }
