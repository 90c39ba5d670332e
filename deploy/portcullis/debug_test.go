package main

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestDebugIsForLoopbackAlone(t *testing.T) {
	for _, address := range []string{"0.0.0.0:0", ":0", "192.0.2.1:6060", "localhost:0", "127.0.0.1"} {
		if err := loopbackOnly("--debug-listen", address); err == nil || !strings.Contains(err.Error(), "--debug-listen") {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestDebugServesProfiles(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	stop, err := serveDebug(listener)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, test := range []struct {
		method, host, path string
		status             int
	}{
		{"GET", "", "/debug/pprof/goroutine?debug=1", 200},
		{"GET", "", "/debug/pprof/", 200},
		{"GET", "", "/metrics", 404},
		{"POST", "", "/debug/pprof/heap", 405},
		{"GET", "attacker.example", "/debug/pprof/heap", 403},
	} {
		req, err := http.NewRequest(test.method, "http://"+address+test.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = test.host
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != test.status {
			t.Errorf("%s %s of %q: %d, want %d", test.method, test.path, test.host, resp.StatusCode, test.status)
		}
	}
}
