package e2e_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/deploy/cluster"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// NATS down, slow, cut off and healed: no request fails or waits, and every
// revocation arrives, by the stream when the bus does not bring it.
func TestBusFaults(t *testing.T) {
	between := newLinks(t)
	h := start(t, cluster.Config{Nodes: 2, BusListen: "127.0.0.1:0", Adjust: between.adjust})
	h.apply(orders)
	good := h.mint("alice", "orders:read")
	for node := range 2 {
		h.until("the bus is connected", func() error {
			if n := h.Node(node).Limits().Nodes; n != 2 {
				return fmt.Errorf("node %d hears %d nodes", node, n)
			}
			return nil
		})
	}
	h.client.Transport = authorized{h.client.Transport, "Bearer " + good}
	traffic := h.load("/orders/1", ok, 0, 1)
	revoke := func(subject string, nodes ...int) {
		t.Helper()
		token := h.mint(subject, "orders:read")
		for _, node := range nodes {
			if a := h.get(node, "/orders/1", "Authorization", "Bearer "+token); a.Status != 200 {
				t.Fatalf("%s before: %+v", subject, a)
			}
		}
		_, err := h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: subject})
		h.must("revoke", err)
		began := time.Now()
		for _, node := range nodes {
			h.until("denied", func() error {
				if a := h.get(node, "/orders/1", "Authorization", "Bearer "+token); a.Reason != "token_revoked" {
					return fmt.Errorf("node %d: %+v", node, a)
				}
				return nil
			})
		}
		// The stream's bound is far below this; no quiet machine is assumed.
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s was denied after %v", subject, took)
		}
	}
	for _, one := range []struct {
		name  string
		begin func()
		end   func()
	}{
		{"slow", func() {
			between.bus[0].toxin("latency", "downstream", map[string]int{"latency": 2000})
			between.bus[1].toxin("latency", "upstream", map[string]int{"latency": 2000})
		}, func() {}},
		{"partitioned", func() { between.bus[0].cut() }, func() {}},
		{"down", func() { between.bus[1].cut() }, func() {
			for _, l := range between.bus {
				h.must("heal", l.proxy.Toxics.RemoveToxic(t.Context(), map[*link]string{
					between.bus[0]: "latency-downstream", between.bus[1]: "latency-upstream",
				}[l]))
				l.mend()
			}
		}},
		{"healed", func() {}, func() {}},
	} {
		one.begin()
		revoke("user-"+one.name, 0, 1)
		traffic.more(40)
		one.end()
	}
	traffic.end()
	if slowest := time.Duration(traffic.slowest.Load()); slowest > 1500*time.Millisecond {
		t.Errorf("a request took %v: requests wait for the bus", slowest)
	}
}

// authorized adds a credential to requests that have none.
type authorized struct {
	http.RoundTripper
	credential string
}

func (a authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Header.Get("Authorization") == "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", a.credential)
	}
	return a.RoundTripper.RoundTrip(r)
}

const limited = `
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: limited-%[1]s}
spec:
  public: true
  matches: [{path: {prefix: /limited-%[1]s}}]
  policies: [{rateLimit: {key: "'one'", onPartition: %[1]s, limits: [{name: all, requests: 100, window: 1h}]}}]
  backends: [{upstream: up}]
`

// A partition between nodes: each side goes by the route's policy, no request
// fails, and when it heals the sides' spendings are added up, once.
func TestLimitsPartitionedAndHealed(t *testing.T) {
	between := newLinks(t)
	h := start(t, cluster.Config{Nodes: 2, BusListen: "127.0.0.1:0", Adjust: between.adjust})
	h.apply(fmt.Sprintf(limited, "split") + "---" + fmt.Sprintf(limited, "open"))
	sees := func(want int) {
		t.Helper()
		h.until("nodes hear each other", func() error {
			for node := range 2 {
				if n := h.Node(node).Limits().Nodes; n != want {
					return fmt.Errorf("node %d hears %d nodes", node, n)
				}
			}
			return nil
		})
	}
	spend := func(node, n int, policy string) (admitted int) {
		t.Helper()
		for range n {
			switch a := h.get(node, "/limited-"+policy); {
			case a.Status == 200:
				admitted++
			case a.Status != 429 || a.Reason != "limit_exceeded":
				t.Fatalf("under a limit: %+v", a)
			}
		}
		return admitted
	}
	sees(2)
	spend(0, 20, "split")
	spend(1, 20, "open")
	for _, l := range between.bus {
		l.cut()
	}
	sees(1)
	split := 20 + spend(0, 150, "split") + spend(1, 150, "split")
	open := 20 + spend(0, 150, "open") + spend(1, 150, "open")
	for _, l := range between.bus {
		l.mend()
	}
	sees(2)
	t.Logf("of 100 allowed: %d admitted by split, %d by open", split, open)
	// What the two had told each other before counts on both sides; after that each
	// is alone with what it knows.
	if split > 200 || open > 200 || split < 95 || open < 150 {
		t.Errorf("of 100 allowed: %d admitted by split, %d by open", split, open)
	}
	// Healed: both know that nothing is left.
	for node := range 2 {
		for _, policy := range []string{"split", "open"} {
			h.until("exhausted everywhere", func() error {
				if n := spend(node, 5, policy); n > 0 {
					return fmt.Errorf("node %d: %d more by %s", node, n, policy)
				}
				return nil
			})
		}
	}
}

// tap is a client of the broker without any key of the cluster.
type tap struct {
	net.Conn
	lines *bufio.Reader
}

// message is what a broker carries.
type message struct {
	subject string
	data    []byte
}

func newTap(t *testing.T, at string) *tap {
	t.Helper()
	where, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", where.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, "CONNECT {\"verbose\":false}\r\nSUB portcullis.> 1\r\n"); err != nil {
		t.Fatal(err)
	}
	return &tap{conn, bufio.NewReader(conn)}
}

// next returns the next message on the broker.
func (c *tap) next() (message, error) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	for {
		line, err := c.lines.ReadString('\n')
		if err != nil {
			return message{}, err
		}
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "MSG" {
			continue
		}
		size, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			return message{}, err
		}
		data := make([]byte, size+2)
		if _, err := io.ReadFull(c.lines, data); err != nil {
			return message{}, err
		}
		return message{fields[1], data[:size]}, nil
	}
}

func (c *tap) publish(m message) error {
	_, err := fmt.Fprintf(c, "PUB %s %d\r\n%s\r\n", m.subject, len(m.data), m.data)
	return err
}

// Forged, altered and repeated messages on the bus are dropped and counted, and
// change nothing.
func TestForgedBusMessages(t *testing.T) {
	h := start(t, cluster.Config{Nodes: 1, BusListen: "127.0.0.1:0", MetricsListen: "127.0.0.1:0"})
	h.apply(orders + "---" + fmt.Sprintf(limited, "split"))
	token := h.mint("alice", "orders:read")
	tapped := newTap(t, h.BusURL())
	h.get(0, "/limited-split")
	// Real messages of each kind, to alter and repeat.
	var mu sync.Mutex
	real := map[string][]message{}
	read := make(chan error, 1)
	go func() {
		for {
			m, err := tapped.next()
			if err != nil {
				read <- err
				return
			}
			mu.Lock()
			kind := m.subject[strings.LastIndexByte(m.subject, '.')+1:]
			real[kind] = append(real[kind], m)
			mu.Unlock()
		}
	}()
	_, err := h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Subject: "bob"})
	h.must("revoke", err)
	h.until("messages of each kind", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(real["revoked"]) == 0 || len(real["beat"]) == 0 {
			return fmt.Errorf("only %d kinds", len(real))
		}
		return nil
	})
	before := h.metric(0, "portcullis_bus_dropped")
	sent := 0
	mu.Lock()
	for _, kind := range []string{"revoked", "beat", "spent"} {
		for _, m := range real[kind] {
			altered := message{m.subject, bytes.Clone(m.data)}
			altered.data[len(altered.data)/2] ^= 1
			elsewhere := message{strings.Replace(m.subject, kind, map[string]string{"revoked": "beat", "beat": "spent", "spent": "revoked"}[kind], 1), m.data}
			for _, forged := range []message{m, altered, elsewhere, {m.subject, []byte("nonsense")}, {m.subject, nil}} {
				h.must("publish", tapped.publish(forged))
				sent++
			}
			if kind == "spent" {
				sent-- // a node's own totals come back to it as the broker never does; it knows its name
			}
		}
	}
	mu.Unlock()
	h.until("all are counted", func() error {
		if now := h.metric(0, "portcullis_bus_dropped"); now-before < float64(sent) {
			return fmt.Errorf("%v of %d", now-before, sent)
		}
		return nil
	})
	if a := h.get(0, "/orders/1", "Authorization", "Bearer "+token); a.Status != 200 {
		t.Errorf("after forged messages: %+v", a)
	}
	_ = tapped.Close()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("the tap ended: %v", err)
	}
}

// metric reads a node's metric without labels.
func (h *harness) metric(i int, name string) float64 {
	h.t.Helper()
	resp, err := h.client.Get("http://" + h.MetricsAddresses()[i] + "/metrics")
	h.must("metrics", err)
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	h.must("metrics", err)
	found := regexp.MustCompile(`(?m)^` + name + `(?:_[a-z]+)?(?:\{[^}]*\})? (\S+)$`).FindSubmatch(text)
	if found == nil {
		h.t.Fatalf("no metric %s in\n%s", name, text)
	}
	value, err := strconv.ParseFloat(string(found[1]), 64)
	h.must("metrics", err)
	return value
}
