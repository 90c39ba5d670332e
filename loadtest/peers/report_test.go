package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestSpreadOf(t *testing.T) {
	for _, test := range []struct {
		values []float64
		want   spread
	}{
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{5, 1, 3}, spread{3, 1, 5}},
		{[]float64{4, 1, 3, 2}, spread{2.5, 1, 4}},
	} {
		before := slices.Clone(test.values)
		if got := spreadOf(test.values); got != test.want || !slices.Equal(before, test.values) {
			t.Errorf("%v: %v, want %v; afterwards %v", before, got, test.want, test.values)
		}
	}
}

// The median has as many values below as above, and nothing lies outside.
func TestSpreadProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0.1, 1e6), 1, 20).Draw(t, "values")
		s := spreadOf(values)
		below, above := 0, 0
		for _, v := range values {
			if v < s.Median {
				below++
			}
			if v > s.Median {
				above++
			}
			if v < s.Min || v > s.Max {
				t.Fatalf("%v lies outside of %v", v, s)
			}
		}
		if half := len(values) / 2; below > half || above > half {
			t.Fatalf("%v: %d below and %d above", s, below, above)
		}
	})
}

func TestRatiosAreWithinARound(t *testing.T) {
	// The machine was twice as slow in the second round: no ratio shows it.
	if got := ratios([]float64{10, 20, 10}, []float64{20, 40, 20}); !slices.Equal(got, []float64{0.5, 0.5, 0.5}) {
		t.Error(got)
	}
	if got := ratios([]float64{10, 0, math.NaN(), 4}, []float64{20, 40, 20}); !slices.Equal(got, []float64{0.5}) {
		t.Error(got)
	}
}

func TestDecide(t *testing.T) {
	for _, test := range []struct {
		values []float64
		result string
	}{
		{[]float64{0.9, 1.0, 1.3}, resultOK},
		{[]float64{0.9, 1.01, 1.02}, resultShort},
		{nil, resultNone},
	} {
		v := decide(verdict{Result: resultNone}, test.values, 1.0)
		if v.Result != test.result || (v.Measured == nil) != (test.values == nil) || test.values == nil && v.Note == "" {
			t.Errorf("%v: %+v", test.values, v)
		}
	}
}

// measured is a run with figures by "group/scenario/peer".
func measured(cells map[string][]float64) *run {
	m := newRun(&rig{options: options{scenarios: regexp.MustCompile(""), proxyCPUs: []int{0}, loadCPUs: []int{1}, rounds: 2, passes: 3, duration: time.Second}})
	for key, values := range cells {
		names := strings.Split(key, "/")
		for _, v := range values {
			one := m.seriesOf(seriesKey{names[0], cellName{names[1], names[2]}})
			one.cells = append(one.cells, cell{CPU: v, Busy: 0.9})
		}
	}
	return m
}

func TestJudge(t *testing.T) {
	// Its own plain beside jwt is not that of the group of plain.
	m := measured(map[string][]float64{
		"plain/plain/portcullis": {20, 22}, "plain/plain/nginx": {20, 20}, "jwt/jwt/portcullis": {20, 24}, "jwt/plain/portcullis": {20, 20},
		"plain/plain/nginx-twin": {25, 16},
	})
	m.absent["envoy"] = "not installed"
	m.seriesOf(seriesKey{"tls", cellName{"tls", "portcullis"}}).problem = "no TLS"
	own := cellName{"plain", "portcullis"}
	for _, test := range []struct {
		goal   goal
		result string
		note   string
	}{
		{goal{"", "plain", own, cellName{"plain", "nginx"}, 1.2}, resultOK, ""},
		{goal{"", "plain", own, cellName{"plain", "nginx"}, 1.05}, resultOK, "the target lies within the spread"},
		{goal{"", "plain", own, cellName{"plain", "nginx"}, 1.0}, resultShort, "the target lies within the spread"},
		{goal{"", "plain", own, cellName{"plain", "nginx"}, 0.9}, resultShort, ""},
		{goal{"", "jwt", cellName{"jwt", "portcullis"}, own, 1.1}, resultOK, "the target lies within the spread"},
		{goal{"", "plain", cellName{"plain", "nginx"}, cellName{"plain", "nginx-twin"}, 0}, resultOpen, ""},
		{goal{"", "plain", own, cellName{"plain", "envoy"}, 1.0}, resultNone, "envoy: not installed"},
		{goal{"", "tls", cellName{"tls", "portcullis"}, cellName{"tls", "nginx"}, 1.0}, resultNone, "portcullis: no TLS"},
		{goal{"", "plain", own, cellName{"plain", "caddy"}, 1.0}, resultNone, "plain/caddy was not measured"},
	} {
		if v := m.judge(test.goal); v.Result != test.result || v.Note != test.note {
			t.Errorf("%+v: %+v", test.goal, v)
		}
	}
}

var errNoPortcullis = errors.New("no portcullis")

func TestReport(t *testing.T) {
	m := measured(map[string][]float64{"plain/plain/portcullis": {20, 22}, "plain/plain/nginx": {25, 25}, "plain/plain/nginx-twin": {25, 20}, "jwt/plain/portcullis": {19, 19}})
	m.absent["envoy"] = "not installed"
	m.seriesOf(seriesKey{"tls", cellName{"tls", "portcullis"}}).problem = "no TLS"
	m.windows = windows{Kept: 12, Stolen: 2, Foreign: 1, Repeated: 5}
	m.idle = []idleReading{{Peer: "portcullis", Each: 11 * 1024, Note: "heap 5"}, {Peer: "nginx", Each: 512}, {Peer: "caddy", err: errNoPortcullis}}
	m.apply = &applyReading{Calm: applyWindows(1000, 1000), Applying: applyWindows(1100, 1500)}
	m.profiles = []profile{{Scenario: "plain", SystemCalls: 0.7, Top: "top"}}
	r := m.report()
	var out bytes.Buffer
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`NOT MEASURED: envoy: not installed`, `NOT MEASURED: TLS 1.3 \+ HTTP/2, portcullis: no TLS`,
		`2 of 12 windows were disturbed by the hypervisor .*, 1 by other processes .*; 5 were thrown away`,
		`(?m)^plain HTTP/1.1 +portcullis +21.0 \(20.0-22.0\) +0.0 +90 `, `(?m)^ +\(plain beside jwt\) +portcullis +19.0 `,
		`(?m)^plain: of nginx +<= 1.00 x +0.84 \(0.80-0.88\) +ok`, `(?m)^resolution, plain: nginx of a second instance of it +- +1.12 \(1.00-1.25\) +- `,
		`(?m)^10000 idle connections, KiB each: portcullis +<= 12 KiB +11.00 +ok .*heap 5`, `(?m)^10000 idle connections, KiB each: nginx +- +0.50 +-`,
		`(?m)^10000 idle connections, KiB each: caddy +- +- +- +no portcullis`, `(?m)^p99 at half .* <= 1.20 x +1.30 \(1.10-1.50\) +SHORT`,
		`PROFILE of portcullis, plain: 70 % in system calls\ntop`, `\d+ targets: 2 ok, 1 short, \d+ not measured`,
	} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %s in\n%s", want, &out)
		}
	}
	if r.verdict(false) != nil || r.verdict(true) == nil {
		t.Error("only -strict makes a short figure an error")
	}
	file := filepath.Join(t.TempDir(), "out.json")
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(data, &back); err != nil || len(back.Lines) != 5 || len(back.Verdicts) != len(r.Verdicts) || len(back.Lines[0].Rounds) != 2 || back.Windows != r.Windows {
		t.Errorf("%v %+v", err, back)
	}
}

func TestParseTop(t *testing.T) {
	const text = `File: portcullis
Type: cpu
Showing nodes accounting for 2.52s, 100% of 2.52s total
      flat  flat%   sum%        cum   cum%
     1.71s 67.86% 67.86%      1.71s 67.86%  internal/runtime/syscall/linux.Syscall6
     0.08s  3.17% 71.03%      0.08s  3.17%  time.runtimeNow
     0.05s  2.14% 73.02%      0.05s  1.98%  runtime.futex
         0     0% 73.02%      0.70s 27.78%  portcullis.dev/portcullis/dataplane/http1.(*conn).respond
`
	p, err := parseTop(text)
	if err != nil || math.Abs(p.SystemCalls-0.70) > 1e-9 || strings.Count(p.Top, "\n") != 4 || !strings.HasPrefix(strings.TrimSpace(p.Top), "flat") {
		t.Errorf("%+v %v", p, err)
	}
	if _, err := parseTop("no samples\n"); err == nil {
		t.Error("nothing was taken for a profile")
	}
}

func TestParseOptions(t *testing.T) {
	o, err := parseOptions([]string{"-run", "^plain$", "-peer", "nginx", "-rounds", "1", "-duration", "2s", "-proxy-cpus", "0", "-load-cpus", "1,2", "-cache", "x"})
	if err != nil || !o.scenarios.MatchString("plain") || o.scenarios.MatchString("plainer") || o.rounds != 1 || !slices.Equal(o.loadCPUs, []int{1, 2}) {
		t.Errorf("%+v %v", o, err)
	}
	for _, bad := range [][]string{{"-run", "("}, {"-peer", "("}, {"-rounds", "0"}, {"-passes", "0"}, {"-duration", "1500ms"}, {"-proxy-cpus", "x"}, {"-load-cpus", "-1"}, {"extra"}} {
		if _, err := parseOptions(append([]string{"-load-cpus", "1", "-cache", "x"}, bad...)); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}
