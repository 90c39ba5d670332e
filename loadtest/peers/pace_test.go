package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"
)

// startTestUpstream returns the address of an upstream that ends with the test.
func startTestUpstream(t *testing.T) string {
	ctx, cancel := context.WithCancel(t.Context())
	in, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- serveUpstream(ctx, out) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	said := make([]byte, 64)
	n, err := in.Read(said)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(said[:n]))[1]
}

func TestUpstreamAnswersBySize(t *testing.T) {
	address := startTestUpstream(t)
	for path, size := range map[string]int{smallPath: smallSize, mediumPath: mediumSize, largePath: largeSize} {
		if err := probe(t.Context(), address, "/plain"+path, setupPlain, "", 200, size); err != nil {
			t.Error(err)
		}
	}
	if err := probe(t.Context(), address, "/plain"+smallPath, setupPlain, "", 401, -1); err == nil {
		t.Error("an answer with another status has passed the probe")
	}
}

func TestPaceSendsAtItsRate(t *testing.T) {
	address := startTestUpstream(t)
	var out bytes.Buffer
	began := time.Now()
	err := pace(t.Context(), []string{"-address", address, "-path", smallPath, "-rate", "500", "-connections", "5", "-duration", "400ms"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	var got paced
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Requests != 200 || got.P50 <= 0 || got.P99 < got.P50 || time.Since(began) < 300*time.Millisecond {
		t.Errorf("%+v in %v", got, time.Since(began))
	}
}

func TestPaceRefuses(t *testing.T) {
	if err := pace(t.Context(), []string{"-rate", "0"}, io.Discard); err == nil {
		t.Error("a rate of nothing was taken")
	}
}
