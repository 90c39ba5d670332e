package main

import (
	"errors"
	"testing"
	"time"
)

const (
	statBefore = "cpu  20 0 20 160 0 0 0 0 0 0\ncpu0 10 1 9 70 5 2 3 0 0 0\ncpu1 10 0 10 80 0 0 0 0 0 0\nintr 5 1\n"
	// A second later; the fields after steal are part of the first two.
	statAfter = "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 50 1 29 100 10 2 3 5 7 7\ncpu1 80 0 40 80 0 0 0 0 0 0\nintr 9 1\n"
)

func TestParseHost(t *testing.T) {
	got, err := parseHost(statBefore)
	want := hostTime{busy: 250 * time.Millisecond, total: time.Second}
	if err != nil || len(got) != 2 || got[0] != want {
		t.Errorf("%+v %v", got, err)
	}
	for _, bad := range []string{"", "cpu  1 2 3 4 5 6 7 8\n", "cpu0 1 2 3 4 5 6 7\n", "cpu0 1 2 3 x 5 6 7 8\n"} {
		if got, err := parseHost(bad); err == nil {
			t.Errorf("%q was taken: %+v", bad, got)
		}
	}
	if here, err := readHost(); err != nil || len(here) == 0 {
		t.Errorf("%+v %v", here, err)
	}
}

func TestDisturbance(t *testing.T) {
	before, err := parseHost(statBefore)
	if err != nil {
		t.Fatal(err)
	}
	after, err := parseHost(statAfter)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		known time.Duration
		want  disturbance
	}{
		{1600 * time.Millisecond, disturbance{Stolen: 0.05, Foreign: 0}},
		{1000 * time.Millisecond, disturbance{Stolen: 0.05, Foreign: 0.6}},
		// Sampled time may be less than exact time.
		{1610 * time.Millisecond, disturbance{Stolen: 0.05, Foreign: 0}},
	} {
		if got, err := before.between(after, test.known); err != nil || got != test.want {
			t.Errorf("%v known: %+v %v, want %+v", test.known, got, err, test.want)
		}
	}
	if got, err := before.between(before, 0); err != nil || got != (disturbance{}) {
		t.Errorf("of no time at all: %+v %v", got, err)
	}
	if _, err := before.between(after[:1], 0); err == nil {
		t.Error("a processor has gone, and nobody has noticed")
	}
}

func TestQuietest(t *testing.T) {
	calm, stolen, less, foreign := disturbance{Stolen: 0.01, Foreign: 0.05}, disturbance{Stolen: 0.3}, disturbance{Stolen: 0.02}, disturbance{Foreign: 0.5}
	for _, test := range []struct {
		name  string
		seen  []disturbance
		spare int
		// kept is which try counts.
		kept int
		want windows
	}{
		{"calm at once", []disturbance{calm}, 9, 0, windows{spare: 9, Kept: 1}},
		{"calm in the end", []disturbance{stolen, foreign, calm}, 9, 2, windows{spare: 7, Kept: 1, Repeated: 2}},
		{"never calm", []disturbance{stolen, stolen, less, stolen, foreign}, 9, 2, windows{spare: 5, Kept: 1, Repeated: 4, Stolen: 1}},
		{"never alone", []disturbance{foreign, stolen, stolen, stolen, stolen}, 9, 0, windows{spare: 5, Kept: 1, Repeated: 4, Foreign: 1}},
		{"nothing to spare", []disturbance{stolen}, 0, 0, windows{Kept: 1, Stolen: 1}},
		{"the last to spare", []disturbance{less, stolen}, 1, 0, windows{Kept: 1, Repeated: 1, Stolen: 1}},
	} {
		w, at := windows{spare: test.spare}, 0
		kept, least, err := quietest(&w, func() (int, disturbance, error) {
			at++
			return at - 1, test.seen[at-1], nil
		})
		if err != nil || kept != test.kept || least != test.seen[test.kept] || w != test.want || at != len(test.seen) {
			t.Errorf("%s: %d %+v %+v %v after %d tries", test.name, kept, least, w, err, at)
		}
	}
	var w windows
	broken := errors.New("broken")
	if _, _, err := quietest(&w, func() (int, disturbance, error) { return 0, calm, broken }); !errors.Is(err, broken) || w.Kept != 0 {
		t.Errorf("%v %+v", err, w)
	}
}
