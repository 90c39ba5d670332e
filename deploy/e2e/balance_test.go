package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"portcullis.dev/portcullis/dataplane"
	"portcullis.dev/portcullis/deploy/cluster"
)

// named starts a server that answers with its name.
func named(t *testing.T, name string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(name)) }))
	t.Cleanup(s.Close)
	return s.URL
}

// srv is a DNS server on loopback that answers SRV questions; the targets are
// addresses written as names that it knows.
type srv struct {
	address string
	mu      sync.Mutex
	ports   []string
}

func serveSRV(t *testing.T) *srv {
	t.Helper()
	s := &srv{}
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = packets.LocalAddr().String()
	started, ended := make(chan struct{}), make(chan struct{})
	server := &dns.Server{PacketConn: packets, Handler: s, NotifyStartedFunc: func() { close(started) }}
	go func() {
		defer close(ended)
		if err := server.ActivateAndServe(); err != nil {
			t.Error(err)
		}
	}()
	<-started
	t.Cleanup(func() {
		if err := server.Shutdown(); err != nil {
			t.Error(err)
		}
		<-ended
	})
	return s
}

func (s *srv) set(t *testing.T, urls ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports = nil
	for _, at := range urls {
		u, err := url.Parse(at)
		if err != nil {
			t.Fatal(err)
		}
		s.ports = append(s.ports, u.Port())
	}
}

func (s *srv) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	name := q.Question[0].Name
	var records []string
	switch q.Question[0].Qtype {
	case dns.TypeSRV:
		for _, port := range s.ports {
			records = append(records, fmt.Sprintf("%s 1 IN SRV 1 1 %s host.internal.", name, port))
		}
	case dns.TypeA:
		records = []string{name + " 1 IN A 127.0.0.1"}
	}
	for _, text := range records {
		r, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		m.Answer = append(m.Answer, r)
	}
	_ = w.WriteMsg(m)
}

const balanced = `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: %[1]s}
spec:
  endpoints:
    - {url: %[3]q, zone: east, labels: {version: "1"}}
    - {url: %[4]q, zone: west, labels: {version: "1"}}
    - {url: %[5]q, zone: west, labels: {version: "2"}}
  balance: %[2]s
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: %[1]s}
spec: {public: true, matches: [{path: {prefix: /%[1]s}}], backends: [{upstream: %[1]s}]}
---
`

// TestBalancing declares each way to choose an endpoint and sees it at work on
// every node.
func TestBalancing(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 2, Adjust: func(i int, cfg *dataplane.Config) { cfg.Zone = []string{"east", "west"}[i] }})
	a, b, c := named(t, "a"), named(t, "b"), named(t, "c")
	names := serveSRV(t)
	names.set(t, a)
	var config strings.Builder
	for name, balance := range map[string]string{
		"least": `{}`, "turns": `{algorithm: round_robin}`, "chance": `{algorithm: random}`, "slow": `{algorithm: random, slowStart: 1s}`,
		"ring":    `{algorithm: ring_hash, hash: [{header: X-Tenant}]}`,
		"bounded": `{algorithm: bounded_load, hash: [{cookie: sid}], loadFactor: 1.5}`,
		"zones":   `{zoneAware: true}`,
		"stick":   `{algorithm: round_robin, affinity: {cookie: at}}`,
	} {
		fmt.Fprintf(&config, balanced, name, balance, a, b, c)
	}
	fmt.Fprintf(&config, `
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: found}
spec:
  endpoints: [{url: "http://_http._tcp.orders.internal", resolve: service}]
  dns: {server: %q, refresh: 1s}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: found}
spec: {public: true, matches: [{path: {prefix: /found}}], backends: [{upstream: found}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: canary}
spec:
  public: true
  matches: [{path: {prefix: /canary}}]
  backends: [{upstream: turns, subset: {version: "1"}, weight: 9}, {upstream: turns, subset: {version: "2"}, weight: 1}]
`, names.address)
	h.apply(config.String())
	for node := range 2 {
		// who asks n times and counts who answered.
		who := func(path string, n int, fields ...string) map[string]int {
			t.Helper()
			counts := map[string]int{}
			for range n {
				answer := h.get(node, path, fields...)
				if answer.Status != 200 {
					t.Fatalf("%s: %+v", path, answer)
				}
				counts[answer.Body]++
			}
			return counts
		}
		for _, path := range []string{"/least", "/turns", "/chance", "/slow"} {
			if got := who(path, 60); len(got) != 3 {
				t.Errorf("node %d: %s: %v", node, path, got)
			}
		}
		for _, field := range [][]string{{"/ring", "X-Tenant", "t"}, {"/bounded", "Cookie", "sid=s"}} {
			if got := who(field[0], 10, field[1:]...); len(got) != 1 {
				t.Errorf("node %d: %s: %v", node, field[0], got)
			}
		}
		if got := who("/canary", 100); got["c"] < 5 || got["c"] > 15 || got["a"] < 35 || got["b"] < 35 {
			t.Errorf("node %d: canary: %v", node, got)
		}
		if got := who("/found", 3); got["a"] != 3 {
			t.Errorf("node %d: resolved: %v", node, got)
		}
		// The east has a third of the endpoints for half of the nodes.
		if got := who("/zones", 90); node == 0 && (got["a"] < 50 || got["a"] > 70) || node == 1 && got["a"] > 0 {
			t.Errorf("node %d: zones: %v", node, got)
		}
	}
	// A client that one node bound comes back to the same endpoint on the other.
	first := h.get(0, "/stick")
	cookie, attributes, _ := strings.Cut(first.Header.Get("Set-Cookie"), ";")
	if !strings.HasPrefix(cookie, "at=") || attributes != " Path=/; HttpOnly; SameSite=Lax" {
		t.Fatalf("cookie %q", first.Header.Get("Set-Cookie"))
	}
	for i := range 6 {
		if next := h.get(i%2, "/stick", "Cookie", cookie); next.Body != first.Body || next.Header.Get("Set-Cookie") != "" {
			t.Errorf("bound to %s, answered by %s", first.Body, next.Body)
		}
	}
	names.set(t, c)
	for node := range 2 {
		h.until("the name brings another endpoint", func() error {
			if got := h.get(node, "/found"); got.Body != "c" {
				return fmt.Errorf("node %d: %+v", node, got)
			}
			return nil
		})
	}
}
