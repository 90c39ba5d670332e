package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/loadtest/bucket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const scenarios = "../scenarios"

func TestEveryScenarioOfTheTreeIsValid(t *testing.T) {
	files, err := filepath.Glob(scenarios + "/*.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d scenarios, %v", len(files), err)
	}
	for _, file := range files {
		s, err := readScenario(scenarios, strings.TrimSuffix(filepath.Base(file), ".yaml"))
		if err != nil {
			t.Error(err)
			continue
		}
		if s.Description == "" || len(judge(s.Budgets, Summary{})) == 0 {
			t.Errorf("%s: without description or budget", s.Name)
		}
	}
}

const small = `
description: small
stages: [{for: 4s, rate: 10}, {for: 2s, rate: 10, to: 30}]
requests: [{path: /a}, {path: /b, weight: 3, method: POST, expect: [201, 204], token: {audiences: [x]}}]
`

func TestScenarioDefaults(t *testing.T) {
	s, err := decodeScenario([]byte(small))
	if err != nil {
		t.Fatal(err)
	}
	if s.Nodes != 3 || s.Timeout != 10*time.Second || s.Connections != 128 || s.Upstream.Bytes != 100 || s.span() != 6*time.Second {
		t.Errorf("%+v", s)
	}
	if a, b := s.Requests[0], s.Requests[1]; a.Weight != 1 || a.Method != "GET" || a.Expect[0] != 200 || b.Weight != 3 || b.Token.Count != 1 {
		t.Errorf("%+v", s.Requests)
	}
	s.scale(0.5, 2)
	if s.span() != 3*time.Second || s.Stages[0].Rate != 20 || *s.Stages[1].To != 60 {
		t.Errorf("scaled: %+v", s.Stages)
	}
}

func TestScenarioMistakesAreSaid(t *testing.T) {
	for mistake, want := range map[string]string{
		"stagez: []":                                  "stagez",
		"warm: 6s":                                    "warm",
		"nodes: -1":                                   "nodes",
		"budgets: {p99: 5}":                           "Duration",
		"budgets: {p42: 5ms}":                         "p42",
		"budgets: {limitWorst: 1.02}":                 "need limit",
		"budgets: {disturbed: 1.2}":                   "disturbance",
		"budgets: {configPropagation: {p99: 1s}}":     "disturb.reload",
		"budgets: {revocationPropagation: {p99: 1s}}": "disturb.revoke",
		"disturb: {after: 7s}":                        "disturb.after",
		"disturb: {reload: {routes: 1}}":              "disturb.reload",
		"disturb: {reload: {every: 1s, routes: 1, changed: 2}}": "changed at most",
		"disturb: {revoke: {every: 1s, path: x}}":               "disturb.revoke",
		"limit: {rate: 1}": "burst",
	} {
		if _, err := decodeScenario([]byte(small + mistake)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want one that says %q", mistake, err, want)
		}
	}
	for _, nothing := range []string{"", "description: x", "stages: [{for: 1s, rate: 0}]\nrequests: [{path: a}]", "- a list", "a: [", "requests: [{path: '/a#b'}]"} {
		if _, err := decodeScenario([]byte(nothing)); err == nil {
			t.Errorf("%q was taken", nothing)
		}
	}
	if _, err := readScenario(scenarios, "nope"); err == nil || !strings.Contains(err.Error(), "plain") {
		t.Errorf("%v does not say what there is", err)
	}
}

func drawSchedule(t *rapid.T) schedule {
	return schedule{rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Stage {
		s := Stage{For: time.Duration(rapid.Int64Range(int64(10*time.Millisecond), int64(20*time.Second)).Draw(t, "for")), Rate: rapid.Float64Range(0, 2000).Draw(t, "rate")}
		if rapid.Bool().Draw(t, "ramp") {
			to := rapid.Float64Range(0, 2000).Draw(t, "to")
			s.To = &to
		}
		return s
	}), 1, 4).Draw(t, "stages")}
}

// What is due by a time is the integral of the rate: by summing small steps.
func TestScheduleIsTheIntegralOfTheRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawSchedule(t)
		total := s.total()
		span := time.Duration(0)
		for _, stage := range s.stages {
			span += stage.For
		}
		if total == 0 {
			return
		}
		n := rapid.Uint64Range(0, total-1).Draw(t, "n")
		at := s.due(n)
		if at < 0 || at > span || n > 0 && s.due(n-1) > at {
			t.Fatalf("request %d of %d is due at %s of %s", n, total, at, span)
		}
		const steps = 20_000
		sum, step := 0.0, at/steps
		for i := range steps {
			sum += s.Rate(time.Duration(i)*step+step/2) * step.Seconds()
		}
		if math.Abs(sum-float64(n)) > 1+float64(n)*0.01 {
			t.Fatalf("by %s there are %.1f due, want %d", at, sum, n)
		}
		if wait, stop := s.Pace(at, n); stop || wait != 0 {
			t.Fatalf("request %d waits %s at its time, stop %v", n, wait, stop)
		}
		if _, stop := s.Pace(0, total); !stop {
			t.Fatal("goes on after the last")
		}
	})
}

// A stall counts for all that was due meanwhile, not only for who was being served:
// the omission that closed loops make.
func TestLatencyCountsFromWhenARequestWasDue(t *testing.T) {
	var served atomic.Int64
	var gate atomic.Pointer[chan struct{}]
	open := make(chan struct{})
	gate.Store(&open)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if served.Add(1) == 20 {
			time.AfterFunc(500*time.Millisecond, func() { close(open) })
		}
		if served.Load() >= 20 {
			<-*gate.Load()
		}
		_, _ = io.WriteString(w, "ok")
	}))
	defer server.Close()
	s, err := decodeScenario([]byte("stages: [{for: 1s, rate: 200}]\nrequests: [{path: /a}, {path: /b, expect: [404]}]"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := prepare(t.Context(), s, &target{bases: []string{server.URL}})
	if err != nil {
		t.Fatal(err)
	}
	r := newRecorder(s)
	attack(t.Context(), s, v, r)
	if r.offered != 200 || r.statuses[200] != 200 {
		t.Errorf("%d offered, %v, %v", r.offered, r.statuses, r.failures)
	}
	if r.errors != 100 {
		t.Errorf("%d errors, want those of /b, 100", r.errors)
	}
	// 100 were due while it stalled; half of them waited for more than 200 ms.
	if p75 := quantile(r.all, 75); p75 < 150*time.Millisecond {
		t.Errorf("p75 %s hides the stall", p75)
	}
}

func TestFailuresAreTold(t *testing.T) {
	s, err := decodeScenario([]byte("stages: [{for: 100ms, rate: 100}]\nrequests: [{path: /a}]\nbudgets: {errors: 0}"))
	if err != nil {
		t.Fatal(err)
	}
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	v, err := prepare(t.Context(), s, &target{bases: []string{closed.URL}})
	if err != nil {
		t.Fatal(err)
	}
	r := newRecorder(s)
	attack(t.Context(), s, v, r)
	report := summarise(s, r, &disturbance{})
	if report.Summary.Errors != 10 || len(report.Summary.Failures) != 1 || len(broken(report.Verdicts)) != 1 {
		t.Errorf("%+v, %+v", report.Summary, report.Verdicts)
	}
}

func TestTokensNeedTheAdminAPI(t *testing.T) {
	s, err := decodeScenario([]byte(small))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := prepare(t.Context(), s, &target{bases: []string{"http://x"}}); err == nil || !strings.Contains(err.Error(), "-context") {
		t.Errorf("%v", err)
	}
}

func TestBudgets(t *testing.T) {
	ms := func(n int) *time.Duration { d := time.Duration(n) * time.Millisecond; return &d }
	num := func(v float64) *float64 { return &v }
	got := Summary{
		Offered: 1000, Prompt: 990, Errors: 2,
		Latency: Latency{P50: *ms(1), P90: *ms(2), P99: *ms(10), P999: *ms(20), Max: *ms(30)},
		Calm:    &Latency{P99: *ms(10)}, Disturbed: &Latency{P99: *ms(13)},
		Config: &Spread{Count: 3, P50: *ms(100), P99: *ms(200)}, Revocation: &Spread{},
		Limiter: &LimiterOutcome{Worst: 1.01, Used: 0.97, Admitted: 10},
	}
	for name, c := range map[string]struct {
		budget Budgets
		kept   bool
	}{
		"p50 at its limit": {Budgets{P50: ms(1)}, true}, "p90": {Budgets{P90: ms(1)}, false}, "p99": {Budgets{P99: ms(9)}, false},
		"p999": {Budgets{P999: ms(20)}, true}, "max": {Budgets{Max: ms(29)}, false},
		"errors": {Budgets{Errors: num(0.002)}, true}, "fewer errors": {Budgets{Errors: num(0.001)}, false},
		"answered": {Budgets{Answered: num(0.99)}, true}, "all answered": {Budgets{Answered: num(1)}, false},
		"disturbed": {Budgets{Disturbed: num(1.3)}, true}, "hardly disturbed": {Budgets{Disturbed: num(1.2)}, false},
		"config": {Budgets{Config: &Propagation{P50: ms(100), P99: ms(200)}}, true}, "faster config": {Budgets{Config: &Propagation{P99: ms(199)}}, false},
		"what was not measured": {Budgets{Revocation: &Propagation{P50: ms(1000)}}, false},
		"limit":                 {Budgets{LimitWorst: num(1.02)}, true}, "limit not used": {Budgets{LimitUsed: num(0.98)}, false},
	} {
		bad := broken(judge(c.budget, got))
		if (len(bad) == 0) != c.kept {
			t.Errorf("%s: %+v", name, bad)
		}
	}
	if len(judge(Budgets{}, got)) != 0 {
		t.Error("no budget is a budget")
	}
	if bad := broken(judge(Budgets{P50: ms(1), Errors: num(1)}, Summary{})); len(bad) != 2 {
		t.Errorf("a run without a request keeps budgets: %+v", bad)
	}
}

// Each round of a reload changes so many routes, the next ones each time.
func TestReloadChangesWhatItSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		routes := rapid.IntRange(1, 50).Draw(t, "routes")
		r := Reload{Routes: routes, Changed: rapid.IntRange(1, routes).Draw(t, "changed")}
		round := rapid.IntRange(0, 60).Draw(t, "round")
		before, after := bulk(r, round, "http://u"), bulk(r, round+1, "http://u")
		changed := 0
		for i := range before.Upserts {
			if before.Upserts[i].GetRoute().GetTimeouts().GetRequest().GetSeconds() != after.Upserts[i].GetRoute().GetTimeouts().GetRequest().GetSeconds() {
				changed++
			}
		}
		if len(after.Upserts) != routes+1 || changed < 1 || changed > r.Changed || routes%r.Changed == 0 && changed != r.Changed {
			t.Fatalf("%d of %d changed, want %d", changed, routes, r.Changed)
		}
	})
}

func sampleReport() *Report {
	s := &Scenario{Name: "x", Description: "<script>alert(1)</script>", Warm: time.Second, Stages: []Stage{{For: 4 * time.Second, Rate: 1}},
		Disturb: &Disturb{After: 2 * time.Second, Reload: &Reload{Every: time.Second, Routes: 1, Changed: 1}, Revoke: &Revoke{Every: time.Second}},
		Limit:   &Limit{Rate: 10, Burst: 1}}
	most := 5 * time.Millisecond
	s.Budgets.P99 = &most
	r := newRecorder(s)
	for i := range 400 {
		due := time.Duration(i) * 10 * time.Millisecond
		r.add(answer{due: due, sent: due, done: due + time.Duration(i)*time.Millisecond, status: 200 + 229*(i%2), expected: i%100 > 0}, true)
	}
	r.add(answer{due: 3 * time.Second, sent: 3 * time.Second, done: 4 * time.Second, failed: "refused <b>"}, false)
	d := &disturbance{}
	d.config.add(sample{2 * time.Second, 30 * time.Millisecond})
	d.revocation.add(sample{3 * time.Second, 3 * time.Millisecond})
	report := summarise(s, r, d)
	report.Started = time.Unix(0, 0)
	return report
}

func TestReportIsOnePageThatNeedsNothing(t *testing.T) {
	report := sampleReport()
	if report.Summary.Limiter.Admitted == 0 || report.Summary.Calm == nil || report.Summary.Config.Count != 1 || len(report.Seconds) != 4 {
		t.Errorf("%+v", report.Summary)
	}
	page, data, err := writeReport(filepath.Join(t.TempDir(), "new"), report)
	if err != nil {
		t.Fatal(err)
	}
	html, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"<script", "http://", "https://", "src=", "@import", "url(", "NaN", "Inf", "<b>"} {
		if bytes.Contains(html, []byte(bad)) {
			t.Errorf("the page has %q", bad)
		}
	}
	for _, title := range []string{"Latency", "Throughput", "Errors", "Config propagation", "Revocation propagation", "Limiter", "1 of 1 broken"} {
		if !bytes.Contains(html, []byte(title)) {
			t.Errorf("the page lacks %q", title)
		}
	}
	encoded, err := os.ReadFile(data)
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Summary  Summary   `json:"summary"`
		Verdicts []Verdict `json:"verdicts"`
	}
	if err := json.Unmarshal(encoded, &back); err != nil || back.Summary.Offered != report.Summary.Offered || len(back.Verdicts) != 1 {
		t.Errorf("%v, %+v", err, back)
	}
}

// Whatever is measured, a plot is well-formed and stays in its frame.
func TestPlotsStayInTheirFrame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := plot{title: rapid.StringMatching(`[ -~äöü<>&"']{0,20}`).Draw(t, "title"), span: time.Duration(rapid.Int64Range(1, int64(2*time.Hour)).Draw(t, "span")),
			log: rapid.Bool().Draw(t, "log"), format: seconds, line: rapid.Float64Range(0, 10).Draw(t, "line")}
		s := series{name: "a<b", color: 1, dots: rapid.Bool().Draw(t, "dots")}
		for range rapid.IntRange(0, 20).Draw(t, "n") {
			s.at = append(s.at, time.Duration(rapid.Int64Range(0, int64(p.span)).Draw(t, "at")))
			s.value = append(s.value, rapid.Float64Range(0, 1e6).Draw(t, "value"))
		}
		p.series = []series{s}
		a := newAxis(p)
		for _, v := range append(s.value, a.ticks...) {
			if y := a.y(v); math.IsNaN(y) || y < topMargin-0.1 || y > plotHeight-below+0.1 {
				t.Fatalf("%g is drawn at %g", v, y)
			}
		}
		if len(a.ticks) < 2 || len(a.ticks) > 20 {
			t.Fatalf("%d ticks", len(a.ticks))
		}
		for decoder := xml.NewDecoder(strings.NewReader(string(p.SVG()))); ; {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestHelpAndMistakesOfTheCommandLine(t *testing.T) {
	var told bytes.Buffer
	if err := run(t.Context(), []string{"-h"}, io.Discard, &told); err == nil || !strings.Contains(told.String(), "-scenarios") {
		t.Errorf("%v: %s", err, told.String())
	}
	for _, args := range [][]string{{}, {"a", "b"}, {"-time", "0", "plain"}, {"-nope", "plain"}} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
	o, err := parse([]string{"-address", "127.0.0.1:1, https://b.example/", "plain"}, io.Discard)
	if err != nil || len(o.addresses) != 2 || o.addresses[0] != "http://127.0.0.1:1" || o.addresses[1] != "https://b.example" {
		t.Errorf("%v, %v", o.addresses, err)
	}
}

// bucket.Judge wants its attempts in order of time, and answers come in any.
func TestLimitIsJudgedInOrderOfTime(t *testing.T) {
	r := newRecorder(&Scenario{Stages: []Stage{{For: 10 * time.Second}}})
	for i := 999; i >= 0; i-- {
		at := time.Duration(i) * 10 * time.Millisecond
		r.add(answer{due: at, sent: at, done: at, status: 200 + 229*min(1, i%10), expected: true}, true)
	}
	var want []bucket.Attempt
	for i := range 1000 {
		want = append(want, bucket.Attempt{At: time.Duration(i) * 10 * time.Millisecond, Admitted: i%10 == 0})
	}
	if got, want := r.judgeLimit(Limit{10, 1}), bucket.Judge(want, 10, 1, 0); got != want || got.Admitted != 100 {
		t.Errorf("%+v, want %+v", got, want)
	}
}
