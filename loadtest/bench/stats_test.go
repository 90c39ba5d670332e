package main

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQuantile(t *testing.T) {
	values := make([]int, 1000)
	for i := range values {
		values[i] = i + 1
	}
	for q, want := range map[float64]int{0: 1, 0.5: 501, 0.99: 991, 1: 1000} {
		if got := quantile(values, q); got != want {
			t.Errorf("quantile %v: %d, want %d", q, got, want)
		}
	}
	if got := median([]time.Duration{3, 1, 2}); got != 2 {
		t.Errorf("median %v", got)
	}
}

func TestAllocations(t *testing.T) {
	var sink []byte
	if got := allocations(100, func() { sink = make([]byte, 100_000) }); got != 1 {
		t.Errorf("%v allocations of one slice", got)
	}
	if got := allocations(100, func() { sink[0]++ }); got != 0 {
		t.Errorf("%v allocations of nothing", got)
	}
}

func TestTable(t *testing.T) {
	rows := []row{
		judge("a", target{"figure a", below, 0.02, seconds}, reading{value: 0.0123}),
		judge("b", target{"figure b", atLeast, 0.98, ratio}, reading{value: 0.97, note: "noisy"}),
		unmeasured("c", target{"figure c", atMost, 100e6, memory}, errors.New("no\nbinary")),
	}
	var out bytes.Buffer
	if err := printTable(&out, rows); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"< 20 ms", "12.3 ms", "ok", "go run ./loadtest/bench -run '^a$'", ">= 0.980", "0.970", "SHORT", "noisy",
		"<= 100 MB", "not measured", "no binary", "3 figures: 1 ok, 1 short, 1 not measured",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if verdict(rows, false) != nil || verdict(rows, true) == nil || verdict(rows[:1], true) != nil {
		t.Error("only -strict makes a short row an error")
	}
}

// Every target names something that can be missed, and no two experiments have
// one name.
func TestExperiments(t *testing.T) {
	names := map[string]bool{}
	for _, e := range experiments(1000) {
		if names[e.name] || e.measure == nil || len(e.targets) == 0 {
			t.Errorf("experiment %q", e.name)
		}
		names[e.name] = true
		for _, target := range e.targets {
			worst := math.Inf(1)
			if target.relation == atLeast {
				worst = math.Inf(-1)
			}
			if target.figure == "" || judge(e.name, target, reading{value: worst}).Result != resultShort {
				t.Errorf("%s: %q cannot be missed", e.name, target.figure)
			}
		}
	}
}
