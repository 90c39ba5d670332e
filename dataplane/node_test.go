package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/pkg/bus"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestBootsOnlyGoUp(t *testing.T) {
	dir := t.TempDir()
	boot := func() uint64 {
		t.Helper()
		n, err := nextBoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := uint64(time.Now().UnixNano())
	first := boot()
	if second := boot(); first < before || second <= first {
		t.Errorf("%d, then %d", first, second)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "boot"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The clock has been set back by ten years.
	ahead := uint64(time.Now().AddDate(10, 0, 0).UnixNano())
	write(strconv.FormatUint(ahead, 10))
	if got := boot(); got != ahead+1 {
		t.Errorf("%d after %d", got, ahead)
	}
	if got := boot(); got != ahead+2 {
		t.Errorf("%d after %d", got, ahead+1)
	}
	for _, text := range []string{"", "nonsense", "-1", "99999999999999999999999"} {
		write(text)
		if got := boot(); got < before || got >= ahead {
			t.Errorf("%q: %d", text, got)
		}
	}
	if err := os.Remove(filepath.Join(dir, "boot")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "boot"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := nextBoot(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%d, %v", got, err)
	}
}

const gatewayDoc = `
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec: {limits: {maxHeaderBytes: 2048, maxBodyBytes: 100}, trustedProxies: [10.0.0.0/8, "fd00::/8"]}
`

// What the front end takes of the configuration is built once for each Gateway
// resource, not for each request.
func TestFrontSettingsAreKept(t *testing.T) {
	n, _ := alone(t)
	stop, done := run(t, n)
	if s := n.frontSettings(); s.MaxBodyBytes != 0 || s.TrustedProxies != nil || n.frontSettings() != s {
		t.Errorf("%+v", s)
	}
	apply(t, n, 1, gatewayDoc)
	s := n.frontSettings()
	if s.MaxHeaderBytes != 2048 || s.MaxBodyBytes != 100 || fmt.Sprint(s.TrustedProxies) != "[10.0.0.0/8 fd00::/8]" {
		t.Errorf("%+v", s)
	}
	if allocs := testing.AllocsPerRun(100, func() { n.frontSettings() }); allocs != 0 || n.frontSettings() != s {
		t.Errorf("%v allocations", allocs)
	}
	apply(t, n, 2, strings.ReplaceAll(gatewayDoc, "100", "200"))
	if s := n.frontSettings(); s.MaxBodyBytes != 200 || !s.TrustedProxies[0].Contains(netip.MustParseAddr("10.1.2.3")) {
		t.Errorf("%+v", s)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func get(t testing.TB, url string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// A node serves as soon as it has a configuration and has asked what is revoked;
// nobody being there to answer is not its fault.
func TestReadiness(t *testing.T) {
	n, _ := alone(t)
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "configuration") {
		t.Error(err)
	}
	apply(t, n, 1, gatewayDoc)
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "revocations") {
		t.Errorf("before anybody was asked: %v", err)
	}
	stop, done := run(t, n)
	base := "http://" + n.cfg.Metrics.Addr().String()
	await(t, "ready", func() bool { return n.Ready() == nil })
	for path, want := range map[string]string{"/readyz": "ok", "/livez": "ok", "/metrics": "portcullis_control_connected"} {
		if status, body := get(t, base+path); status != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s", path, status, body)
		}
	}
	// The data listener has no path that is exempt from routes.
	if status, body := get(t, "http://"+n.Address()+"/readyz"); status != 404 || !strings.Contains(body, "no_route") {
		t.Errorf("%d %s", status, body)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := n.Ready(); err == nil || !strings.Contains(err.Error(), "draining") {
		t.Error(err)
	}
}

// A node that stops first lets what is in flight come to its end, on limits, bus
// and revocations that still work; then nothing of it is left.
func TestDrain(t *testing.T) {
	n, access := alone(t)
	broker := bus.NewMemory()
	n.wire.connect = func(_ context.Context, c bus.Config) (bus.Bus, error) { return broker.Open(c) }
	plane, err := broker.Open(bus.Config{Name: "plane", Keys: []*controlv1.BusKey{busKey(1)}})
	if err != nil {
		t.Fatal(err)
	}
	defer plane.Close()

	asked, release := make(chan struct{}, 1), make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-release
		_, _ = io.WriteString(w, "late")
	}))
	defer up.Close()
	apply(t, n, 1, strings.ReplaceAll(`
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: slow}
spec: {public: true, backends: [{upstream: up}], policies: [{rateLimit: {limits: [{requests: 10, window: 1h}]}}]}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: "UP"}]}
`, "UP", up.URL))
	stop, done := run(t, n)
	n.wire.welcome(&controlv1.Welcome{BusUrls: []string{"nats://a:1"}, BusKeys: []*controlv1.BusKey{busKey(1)}})
	await(t, "the bus", func() bool { return n.wire.bus.Load() != nil })

	type result struct {
		status int
		body   string
		limit  string
		err    error
	}
	answered := make(chan result, 1)
	go func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
		resp, err := client.Get("http://" + n.Address() + "/")
		if err != nil {
			answered <- result{err: err}
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		answered <- result{resp.StatusCode, string(b), resp.Header.Get("RateLimit"), err}
	}()
	<-asked
	stop()
	await(t, "the listener closes", func() bool {
		c, err := net.Dial("tcp", n.Address())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	await(t, "the draining node to say that it is not ready", func() bool { return n.Ready() != nil })
	select {
	case err := <-done:
		t.Fatalf("the node ended with a request in flight: %v", err)
	case got := <-answered:
		t.Fatalf("%+v", got)
	default:
	}
	// The deny lane and the exchange of totals go on.
	if err := plane.Publish(bus.Revoked, revoked(1, 0, 5, "a")); err != nil {
		t.Fatal(err)
	}
	await(t, "a revocation", func() bool {
		_, held := n.freshness.Held()
		return n.revocations.Len() == 1 && held == 5
	})
	if err := n.wire.publish(bus.Spent, &busv1.Spent{}); err != nil {
		t.Errorf("the bus ended first: %v", err)
	}
	if status, body := get(t, "http://"+n.cfg.Metrics.Addr().String()+"/readyz"); status != 503 || !strings.Contains(body, "draining") {
		t.Errorf("%d %s", status, body)
	}
	close(release)
	if got := <-answered; got.err != nil || got.status != 200 || got.body != "late" || got.limit == "" {
		t.Errorf("%+v", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if line := access.String(); !strings.Contains(line, `"slow"`) {
		t.Errorf("the access log ended first: %q", line)
	}
	if err := n.wire.publish(bus.Spent, &busv1.Spent{}); !errors.Is(err, bus.ErrDisconnected) {
		t.Errorf("the bus is open: %v", err)
	}
	if _, err := net.Dial("tcp", n.cfg.Metrics.Addr().String()); err == nil {
		t.Error("the metrics listener is open")
	}
}

// A part that fails takes the node down, and its error is the node's.
func TestAPartThatFailsEndsTheNode(t *testing.T) {
	n, _ := alone(t)
	_ = n.cfg.Metrics.Close()
	_, done := run(t, n)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "metrics listener") {
		t.Error(err)
	}
}
