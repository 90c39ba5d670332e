package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"portcullis.dev/portcullis/dataplane"
	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/config"
)

// link is a TCP connection's path that can be slowed, cut and healed.
type link struct {
	t     *testing.T
	proxy *toxiproxy.Proxy
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	// Toxics log to zerolog's own default, whatever logger the proxy has.
	zerolog.SetGlobalLevel(zerolog.Disabled)
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l := &link{t, toxiproxy.NewProxy(server, t.Name(), "127.0.0.1:0", to)}
	if err := l.proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.cut)
	return l
}

func (l *link) address() string { return l.proxy.Listen }

// cut ends all connections and refuses new ones.
func (l *link) cut() { l.proxy.Stop() }

// mend lets connections through again, on the same address.
func (l *link) mend() {
	l.t.Helper()
	if err := l.proxy.Start(); err != nil {
		l.t.Fatal(err)
	}
}

// toxin makes the link bad in one direction: "downstream" is toward who dialed.
func (l *link) toxin(kind, direction string, attributes map[string]int) (heal func()) {
	l.t.Helper()
	name := kind + "-" + direction
	text, err := json.Marshal(map[string]any{"name": name, "type": kind, "stream": direction, "attributes": attributes})
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(string(text))); err != nil {
		l.t.Fatal(err)
	}
	return func() {
		l.t.Helper()
		if err := l.proxy.Toxics.RemoveToxic(context.Background(), name); err != nil {
			l.t.Fatal(err)
		}
	}
}

// links puts a link between each node and the control plane, and between each
// node and the bus. Only the goroutine that starts nodes may call adjust.
type links struct {
	t            *testing.T
	control, bus map[int]*link
}

func newLinks(t *testing.T) *links {
	return &links{t: t, control: map[int]*link{}, bus: map[int]*link{}}
}

func (l *links) adjust(i int, cfg *dataplane.Config) {
	l.t.Helper()
	if l.control[i] == nil {
		l.control[i] = newLink(l.t, cfg.Control[0])
	}
	cfg.Control = []string{l.control[i].address()}
	server := cfg.Bus.Server
	if server == nil || server.URL() == "" {
		return
	}
	if l.bus[i] == nil {
		at, err := url.Parse(server.URL())
		if err != nil {
			l.t.Fatal(err)
		}
		l.bus[i] = newLink(l.t, at.Host)
	}
	cfg.Bus = bus.NATSConfig{URLs: []string{"nats://" + l.bus[i].address()}, Plaintext: true}
}

// load keeps requesting until it is stopped. Every answer must pass.
type load struct {
	t        *testing.T
	answered atomic.Int64
	slowest  atomic.Int64
	mu       sync.Mutex
	failures []string
	stop     func()
}

// load starts light continuous load on nodes: one client each.
func (h *harness) load(path string, check func(answer) error, nodes ...int) *load {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: h.t}
	var running sync.WaitGroup
	for _, node := range nodes {
		running.Go(func() {
			tick := time.NewTicker(2 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				began := time.Now()
				a, err := h.try(node, "GET", path, "")
				if err == nil {
					err = check(a)
				}
				if err != nil {
					l.fail("node %d: %v", node, err)
				}
				l.answered.Add(1)
				l.slowest.Store(max(l.slowest.Load(), int64(time.Since(began))))
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	l.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	h.t.Cleanup(l.stop)
	return l
}

func (l *load) fail(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, fmt.Sprintf(format, args...))
}

// more waits until n more requests have been answered.
func (l *load) more(n int64) {
	l.t.Helper()
	want := l.answered.Load() + n
	for deadline := time.Now().Add(patience); l.answered.Load() < want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("the load stands still at %d requests", l.answered.Load())
		}
	}
}

// end stops the load; every request must have passed.
func (l *load) end() {
	l.t.Helper()
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failures) > 0 {
		l.t.Errorf("%d of %d requests failed, the first: %s", len(l.failures), l.answered.Load(), l.failures[0])
	}
	if l.answered.Load() == 0 {
		l.t.Error("there was no load")
	}
}

// ok passes answers of the upstream.
func ok(a answer) error {
	if a.Status != 200 {
		return fmt.Errorf("%d %s %s", a.Status, a.Reason, a.Body)
	}
	return nil
}

// runs waits until a node runs a version and is ready.
func (h *harness) runs(i int, v config.Version) {
	h.t.Helper()
	h.until(fmt.Sprintf("node %d runs %v", i, v), func() error {
		n := h.Node(i)
		if err := n.Ready(); err != nil {
			return err
		}
		if n.Version().Compare(v) < 0 {
			return fmt.Errorf("it runs %v", n.Version())
		}
		return nil
	})
}

// within is a context that ends when patience does.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// must fails on an error.
func (h *harness) must(what string, err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("%s: %v", what, err)
	}
}

const public = `
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: public}
spec:
  public: true
  matches: [{path: {prefix: /public}}]
  backends: [{upstream: up}]
`

// lines keeps what a node logs.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) have(text string) bool { return strings.Contains(l.String(), text) }
