package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCountApplies(t *testing.T) {
	const said = `{"ended":"2026-01-01T00:00:01Z","took_ns":900000000}
{"ended":"2026-01-01T00:00:02Z","took_ns":300000000}
{"ended":"2026-01-01T00:00:03.5Z","took_ns":400000000}
{"ended":"2026-01-01T00:00:05Z","took_ns":800000000}
`
	began := time.Date(2026, 1, 1, 0, 0, 2, 0, time.UTC)
	n, slowest, err := countApplies(said, began, began.Add(2*time.Second))
	if err != nil || n != 2 || slowest != 400*time.Millisecond {
		t.Errorf("%d %v %v", n, slowest, err)
	}
	if n, _, err := countApplies("", began, began); n != 0 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if _, _, err := countApplies("peers: not converged\n", began, began); err == nil || !strings.Contains(err.Error(), "not converged") {
		t.Error(err)
	}
}

func applyWindows(p99 ...time.Duration) (all []applyWindow) {
	for _, each := range p99 {
		all = append(all, applyWindow{paced: paced{P99: each}, CPU: 1500 * time.Millisecond, Applies: 3, Slowest: 700 * time.Millisecond})
	}
	return all
}

func TestJudgeApply(t *testing.T) {
	a := &applyReading{Rate: 20_000, Calm: applyWindows(1000, 2000, 1000), Applying: applyWindows(1100, 2200, 1500)}
	if got := a.ratios(); !slices.Equal(got, []float64{1.1, 1.1, 1.5}) {
		t.Error(got)
	}
	v := judgeApply(a)
	if v.Result != resultOK || v.Measured.Median != 1.1 || !strings.Contains(v.Note, "9 applies in 9 s") || !strings.HasPrefix(v.Note, "the target lies within the spread") {
		t.Errorf("%+v", v)
	}
	a.Applying[0].Applies = 1
	if note := a.note(); !strings.HasPrefix(note, "NOT EVERY SECOND: ") || !strings.Contains(note, "7 applies in 9 s") || !strings.Contains(note, "node busy 50 %, 50 % while applied") {
		t.Error(note)
	}
	a.err = errNoPortcullis
	if v := judgeApply(a); v.Result != resultNone || v.Note != "no portcullis" {
		t.Errorf("%+v", v)
	}
}
