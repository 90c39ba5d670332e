package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// maxWorkers bounds the requests in flight. What is due when all are is sent late,
// and its latency counts from when it was due.
const maxWorkers = 20_000

// shot is one kind of request, ready to be sent.
type shot struct {
	Request
	header http.Header
	// bearers are sent in turn.
	bearers []string
	next    atomic.Uint64
}

// volley is all kinds of requests of a scenario, and where they go.
type volley struct {
	shots []*shot
	// order has each shot as often as its weight says.
	order []*shot
	bases []string
	sent  atomic.Uint64
}

// prepare mints what tokens the scenario's requests need.
func prepare(ctx context.Context, s *Scenario, t *target) (*volley, error) {
	v := &volley{bases: t.bases}
	for i, r := range s.Requests {
		one := &shot{Request: r, header: http.Header{}}
		for name, value := range r.Headers {
			one.header.Set(name, value)
		}
		if r.Host != "" {
			one.header.Set("Host", r.Host)
		}
		if r.Token != nil {
			for n := range r.Token.Count {
				token, _, err := t.mint(ctx, fmt.Sprintf("load-%d-%d", i, n), *r.Token)
				if err != nil {
					return nil, fmt.Errorf("requests[%d]: minting a token: %w", i, err)
				}
				one.bearers = append(one.bearers, "Bearer "+token)
			}
		}
		v.shots = append(v.shots, one)
		for range r.Weight {
			v.order = append(v.order, one)
		}
	}
	return v, nil
}

// target implements vegeta.Targeter: nodes and kinds of requests in turn. The
// fragment, which is not sent, tells the kinds apart in the results.
func (v *volley) target(t *vegeta.Target) error {
	n := v.sent.Add(1) - 1
	one := v.order[n%uint64(len(v.order))]
	// Each node gets every kind, whatever their numbers.
	base := v.bases[(n/uint64(len(v.order))+n)%uint64(len(v.bases))]
	t.Method, t.URL = one.Method, base+one.Path+"#"+strconv.Itoa(slices.Index(v.shots, one))
	t.Header, t.Body = one.header, []byte(one.Body)
	if len(one.bearers) > 0 {
		t.Header = one.header.Clone()
		t.Header.Set("Authorization", one.bearers[(one.next.Add(1)-1)%uint64(len(one.bearers))])
	}
	return nil
}

// kind returns the request that a result is of.
func (v *volley) kind(url string) *shot {
	_, fragment, _ := strings.Cut(url, "#")
	if i, err := strconv.Atoi(fragment); err == nil && i >= 0 && i < len(v.shots) {
		return v.shots[i]
	}
	return nil
}

// pacer notes when the run began, by vegeta's own clock.
type pacer struct {
	schedule
	began atomic.Pointer[time.Time]
}

func (p *pacer) Pace(elapsed time.Duration, hits uint64) (time.Duration, bool) {
	if p.began.Load() == nil {
		began := time.Now().Add(-elapsed)
		p.began.Store(&began)
	}
	return p.schedule.Pace(elapsed, hits)
}

// attack sends what is due, when it is due, and records the answers. It returns
// when the last has come, or when ctx ends.
func attack(ctx context.Context, s *Scenario, v *volley, r *recorder) {
	p := &pacer{schedule: schedule{s.Stages}}
	client, closeIdle := newClient(s.Connections, s.Timeout)
	defer closeIdle()
	attacker := vegeta.NewAttacker(vegeta.Client(client), vegeta.Workers(64), vegeta.MaxWorkers(maxWorkers), vegeta.MaxBody(0))
	stop := context.AfterFunc(ctx, func() { attacker.Stop() })
	defer stop()
	for result := range attacker.Attack(v.target, p, 0, "") {
		began := *p.began.Load()
		a := answer{due: p.due(result.Seq), sent: result.Timestamp.Sub(began), status: int(result.Code)}
		a.done = a.sent + result.Latency
		kind := v.kind(result.URL)
		if result.Code == 0 {
			a.failed = failure(result.Error)
		}
		limited := s.Limit != nil && kind != nil && slices.Contains(kind.Expect, http.StatusTooManyRequests)
		a.expected = a.failed == "" && kind != nil && slices.Contains(kind.Expect, a.status)
		r.add(a, limited)
	}
}

// newClient opens and keeps up to so many connections to each node and follows no
// redirects. What finds none free waits for one: a generator that opened more and
// more when a cluster is slow would measure its own collapse.
func newClient(connections int, timeout time.Duration) (*http.Client, func()) {
	transport := &http.Transport{
		MaxConnsPerHost: connections, MaxIdleConnsPerHost: connections, DisableCompression: true, IdleConnTimeout: 90 * time.Second,
	}
	return &http.Client{Transport: transport, Timeout: timeout, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}, transport.CloseIdleConnections
}

// failure is an error without what makes each one different.
func failure(text string) string {
	if _, after, ok := strings.Cut(text, "\": "); ok {
		text = after
	}
	if i := strings.LastIndex(text, ": "); i >= 0 && strings.Contains(text, "->") {
		text = text[i+2:]
	}
	return text
}
