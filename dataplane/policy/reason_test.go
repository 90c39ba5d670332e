package policy

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"portcullis.dev/portcullis/dataplane/token"
)

func TestReasons(t *testing.T) {
	statuses := []int{400, 401, 403, 404, 413, 421, 429, 499, 500, 502, 503, 504}
	titles := map[string]Reason{}
	for _, r := range Reasons() {
		if !slices.Contains(statuses, r.Status()) || (r.Status() == 500) != (r == InternalError) {
			t.Errorf("%s: %d", r, r.Status())
		}
		if other, twice := titles[r.Title()]; twice {
			t.Errorf("%s and %s have one title", r, other)
		}
		titles[r.Title()] = r
	}
	if Reason("x").Status() != 500 || Reason("x").Title() != InternalError.Title() {
		t.Error("an unknown reason")
	}
	for _, r := range token.Refusals() {
		if !slices.Contains(Reasons(), Reason(r.Reason)) {
			t.Errorf("package token refuses for %q, which is no reason", r.Reason)
		}
		if strings.ContainsAny(r.Detail, "\"\\") {
			t.Errorf("%q cannot stand in a challenge", r.Detail)
		}
	}
}

func TestDenialResponse(t *testing.T) {
	d := &Denial{Reason: LimitExceeded, Detail: `a "detail"`, Challenges: []string{"A", "B"}, RetryAfter: 1500 * time.Millisecond}
	r := d.Response("r-1", "t-1")
	var got map[string]any
	text := body(t, r)
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"type": "https://portcullis.dev/problems/limit_exceeded", "title": "A rate limit is exceeded", "status": 429.0,
		"detail": `a "detail"`, "reason": "limit_exceeded", "request_id": "r-1", "trace_id": "t-1",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if r.Status != 429 || r.Body.Length != int64(len(text)) || r.Header.Get("Retry-After") != "2" || r.Header.Count("WWW-Authenticate") != 2 ||
		r.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%+v", r)
	}
	if d := (&Denial{Reason: RequestTooLarge, Status: 431}); d.StatusCode() != 431 || d.Response("", "").Status != 431 {
		t.Error("the status is not overridden")
	}
}
