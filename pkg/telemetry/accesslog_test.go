package telemetry

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

func entry() *AccessEntry {
	return &AccessEntry{
		Time: time.Date(2026, 5, 4, 3, 2, 1, 5e6, time.FixedZone("x", 3600)), RequestID: "r-1", TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
		Node: "n1", Peer: netip.MustParseAddr("192.0.2.1"), Method: "GET", Scheme: "https", Host: "api.shop.example", Path: "/orders/1",
		Protocol: "HTTP/1.1", Status: 403, Reason: "scope_missing", Cut: "client_gone", Workspace: "shop", Route: "orders", Epoch: 2, Revision: 42,
		AuthMethod: "jwt", Consumer: "web", Subject: "alice", Issuer: "local", Upstream: "orders", Duration: 1500 * time.Microsecond,
		UpstreamDuration: time.Millisecond, BytesSent: 20,
	}
}

func TestAccessEntry(t *testing.T) {
	const want = `{"time":"2026-05-04T02:02:01.005Z","request_id":"r-1","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","node":"n1","peer":"192.0.2.1",` +
		`"method":"GET","scheme":"https","host":"api.shop.example","path":"/orders/1","protocol":"HTTP/1.1","status":403,"reason":"scope_missing","cut":"client_gone",` +
		`"workspace":"shop","route":"orders","epoch":2,"revision":42,"auth_method":"jwt","consumer":"web","subject":"alice","issuer":"local",` +
		`"upstream":"orders","duration":0.0015,"upstream_duration":0.001,"bytes_sent":20}` + "\n"
	if got := string(entry().Append(nil)); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	// No field is forgotten: each one, changed alone, changes the line.
	v := reflect.ValueOf(entry()).Elem()
	for i := range v.NumField() {
		e := entry()
		f := reflect.ValueOf(e).Elem().Field(i)
		f.Set(reflect.Zero(f.Type()))
		if string(e.Append(nil)) == want {
			t.Errorf("%s is not written", v.Type().Field(i).Name)
		}
	}
	const least = `{"time":"0001-01-01T00:00:00Z","status":0,"duration":0}` + "\n"
	if got := string(new(AccessEntry).Append(nil)); got != least {
		t.Errorf("empty: %s", got)
	}
}

// FuzzAccessEntry's oracle is encoding/json: it must read back what went in.
func FuzzAccessEntry(f *testing.F) {
	f.Add("/a\"b\\c\n\r\t\x00\x7f", "fe80::1%eth0\n", int64(-5), "\xff\xfe\u2028é\U0001f600")
	f.Fuzz(func(t *testing.T, path, peer string, n int64, subject string) {
		addr, _ := netip.ParseAddr(peer)
		e := AccessEntry{Path: path, Peer: addr, Subject: subject, BytesSent: n, Duration: time.Duration(n)}
		line := e.Append(nil)
		if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
			t.Fatalf("%q is more than a line", line)
		}
		for _, r := range string(line[:len(line)-1]) {
			if r < 0x20 || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q holds a control character", line)
			}
		}
		if !utf8.Valid(line) {
			t.Fatalf("%q is no UTF-8", line)
		}
		var back struct {
			Path, Subject, Peer string
			BytesSent           int64 `json:"bytes_sent"`
			Duration            float64
		}
		if err := json.Unmarshal(line, &back); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		// encoding/json makes of each byte that is no UTF-8 one U+FFFD, as we do.
		valid := func(s string) string { return string([]rune(s)) }
		if back.Path != valid(path) || back.Subject != valid(subject) || back.BytesSent != n ||
			math.Abs(back.Duration-time.Duration(n).Seconds()) > 1e-9*math.Abs(back.Duration) {
			t.Fatalf("%q comes back as %+v", line, back)
		}
	})
}

func TestAccessLogWritesAll(t *testing.T) {
	r, w := io.Pipe()
	l := NewAccessLog(AccessLogConfig{Writer: w})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		err := l.Run(ctx)
		w.Close()
		done <- err
	}()
	const writers, each = 4, 200
	lines := make(chan int, 1)
	go func() {
		n := 0
		for s := bufio.NewScanner(r); s.Scan(); n++ {
			if !json.Valid(s.Bytes()) {
				t.Errorf("torn line %q", s.Text())
			}
		}
		lines <- n
	}()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				l.Log(entry())
			}
		})
	}
	wg.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := <-lines; n != writers*each || l.Stats() != (AccessLogStats{}) {
		t.Errorf("%d of %d lines, %+v", n, writers*each, l.Stats())
	}
}

// blocked is a sink that takes nothing until it is let go.
type blocked struct {
	entered, letGo chan struct{}
	once           sync.Once
	b              syncBuffer
}

func (w *blocked) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.entered) })
	<-w.letGo
	return w.b.Write(p)
}

func TestAccessLogDropsWhenSlow(t *testing.T) {
	w := &blocked{entered: make(chan struct{}), letGo: make(chan struct{})}
	line := len(entry().Append(nil))
	l := NewAccessLog(AccessLogConfig{Writer: w, Buffer: 10*line + 1})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	l.Log(entry())
	<-w.entered
	// The sink hangs. Nobody waits: this loop would not end.
	for range 1000 {
		l.Log(entry())
	}
	if got := l.Stats().Dropped; got != 990 {
		t.Errorf("%d dropped", got)
	}
	close(w.letGo)
	cancel()
	<-done
	out := w.b.String()
	if n := strings.Count(out, "\n"); n != 1+10+1 {
		t.Errorf("%d lines", n)
	}
	if !strings.HasSuffix(out, `"event":"access_log_dropped","dropped":990}`+"\n") {
		t.Errorf("the log does not say what is missing: %q", out[max(0, len(out)-200):])
	}
}

func TestAccessLogSurvivesAWriter(t *testing.T) {
	l := NewAccessLog(AccessLogConfig{Writer: failing{}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l.Log(entry())
	if err := l.Run(ctx); err != nil {
		t.Error(err)
	}
	l.Log(entry())
	l.Run(ctx)
	if s := l.Stats(); s.FailedWrites < 1 || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestAccessEntryAllocatesNothing(t *testing.T) {
	e, b := entry(), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(1000, func() { b = e.Append(b[:0]) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkAccessLog(b *testing.B) {
	l := NewAccessLog(AccessLogConfig{Writer: io.Discard, Buffer: 16 << 20})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	e := entry()
	b.ReportAllocs()
	for b.Loop() {
		l.Log(e)
	}
	cancel()
	<-done
}
