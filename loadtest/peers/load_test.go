package main

import (
	"strings"
	"testing"
	"time"
)

const wrkSaid = `Running 1s test @ http://127.0.0.1:46125/x/100b
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    63.66us  150.06us   3.93ms   97.92%
    Req/Sec    69.36k    16.35k   95.90k    63.64%
  Latency Distribution
     50%   41.00us
     75%   72.00us
     90%   95.00us
     99%    1.57ms
  75800 requests in 1.10s, 13.01MB read
Requests/sec:  68925.70
Transfer/sec:     11.83MB
`

func TestParseWrk(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       outcome
		fails      bool
	}{
		{"as it is", wrkSaid, outcome{sample: sample{75800, 68925.70, 41 * time.Microsecond, 1570 * time.Microsecond, 0}}, false},
		{"slow", strings.Replace(wrkSaid, "1.57ms", "1.25s", 1), outcome{sample: sample{75800, 68925.70, 41 * time.Microsecond, 1250 * time.Millisecond, 0}}, false},
		{"refused", strings.Replace(wrkSaid, "Requests/sec", "  Non-2xx or 3xx responses: 12\nRequests/sec", 1),
			outcome{sample{75800, 68925.70, 41 * time.Microsecond, 1570 * time.Microsecond, 0}, "Non-2xx or 3xx responses: 12"}, false},
		{"cut off", strings.Replace(wrkSaid, "Requests/sec", "  Socket errors: connect 0, read 3, write 0, timeout 0\nRequests/sec", 1),
			outcome{sample{75800, 68925.70, 41 * time.Microsecond, 1570 * time.Microsecond, 0}, "Socket errors: connect 0, read 3, write 0, timeout 0"}, false},
		{"no latency", strings.Replace(wrkSaid, "99%", "98%", 1), outcome{}, true},
		{"no connection", "unable to connect to 127.0.0.1:1 Connection refused\n", outcome{}, true},
		{"empty", "", outcome{}, true},
	} {
		got, err := parseWrk(test.text)
		if (err != nil) != test.fails || err == nil && got != test.want {
			t.Errorf("%s: %+v %v, want %+v", test.name, got, err, test.want)
		}
	}
}

const h2loadSaid = `starting benchmark...
Main benchmark duration is over for thread #0. Stopping all clients.

finished in 1.00s, 75310.00 req/s, 12.93MB/s
requests: 75310 total, 75318 started, 75310 done, 75310 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 75310 2xx, 0 3xx, 0 4xx, 0 5xx
`

func TestParseH2load(t *testing.T) {
	got, err := parseH2load(h2loadSaid)
	if want := (outcome{sample: sample{requests: 75310, rate: 75310}}); err != nil || got != want {
		t.Errorf("%+v %v, want %+v", got, err, want)
	}
	refused := strings.Replace(h2loadSaid, "75310 succeeded, 0 failed", "75300 succeeded, 10 failed", 1)
	if got, err := parseH2load(refused); err != nil || got.requests != 75300 || !strings.Contains(got.failed, "10 failed") {
		t.Errorf("with refusals: %+v %v", got, err)
	}
	if got, err := parseH2load("starting benchmark...\n"); err == nil {
		t.Errorf("half an output: %+v", got)
	}
}

func TestParseH2loadTimes(t *testing.T) {
	var log strings.Builder
	for i := range 100 {
		log.WriteString("1795327182005606\t200\t")
		log.WriteString(strings.Repeat("1", 1+i/99))
		log.WriteString("\n")
	}
	// What had no answer has no latency.
	log.WriteString("1795327182005606\t-1\t999999\n")
	p50, p99, err := parseH2loadTimes(strings.NewReader(log.String()))
	if err != nil || p50 != time.Microsecond || p99 != 11*time.Microsecond {
		t.Errorf("%v %v %v", p50, p99, err)
	}
	for _, bad := range []string{"", "1\t200\n", "1\t200\tx\n"} {
		if _, _, err := parseH2loadTimes(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
