package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
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

func TestAnswerSize(t *testing.T) {
	for _, test := range []struct {
		have  string
		want  int
		fails bool
	}{
		{"HTTP/1.1 200 OK\r\nContent-Le", 0, false},
		{"HTTP/1.1 200 OK\r\nX: y\r\ncontent-length: 7\r\n\r\nabc", 44 + 7, false},
		{"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", 0, true},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 0, true},
		{"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 0, true},
	} {
		if got, err := answerSize([]byte(test.have)); (err != nil) != test.fails || got != test.want {
			t.Errorf("%q: %d %v, want %d", test.have, got, err, test.want)
		}
	}
}

// What is late counts from when it was due, though it was sent later.
func TestPaceHidesNoStall(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	const stall = 200 * time.Millisecond
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		// The first request waits, and with it all that are due behind it.
		time.Sleep(stall)
		answerAll(conn, func(string) []byte { return canned(smallSize) })
	}()
	var out bytes.Buffer
	if err := pace(t.Context(), []string{"-address", listener.Addr().String(), "-rate", "100", "-connections", "1", "-duration", "100ms"}, &out); err != nil {
		t.Fatal(err)
	}
	<-served
	var got paced
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Requests != 10 || got.P50 < stall-100*time.Millisecond {
		t.Errorf("%+v", got)
	}
}

func TestPaceFailsWithItsGateway(t *testing.T) {
	address := startTestUpstream(t)
	if err := pace(t.Context(), []string{"-address", address, "-path", largePath, "-rate", "10", "-connections", "1", "-duration", "100ms"}, io.Discard); err == nil {
		t.Error("an answer that is too long was taken")
	}
}
