//go:build slow

package e2e_test

import (
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis.dev/portcullis/deploy/cluster"
)

// idleClients is as many as this process may have open at both of their ends where
// it may open 20,000 files. What ten thousand cost a node, make peers measures.
const idleClients = 8_000

// slowClient is one that takes more time than it is given.
type slowClient struct {
	// act does what it does until the node has had enough, and returns what it got.
	act func(t *testing.T, c *client) string
	// within is when the node must have ended it, no sooner than after least.
	least, within time.Duration
	// got is what it must have been told, if anything.
	got string
}

// slowClients by what they are slow at. The times are the front end's.
func slowClients() map[string]slowClient {
	drip := func(start string, piece string, every time.Duration) func(*testing.T, *client) string {
		return func(t *testing.T, c *client) string {
			c.send(t, start)
			done := make(chan struct{})
			var dripping sync.WaitGroup
			dripping.Go(func() {
				tick := time.NewTicker(every)
				defer tick.Stop()
				for {
					select {
					case <-done:
						return
					case <-tick.C:
						if _, err := io.WriteString(c.Conn, piece); err != nil {
							return
						}
					}
				}
			})
			text, _ := io.ReadAll(c)
			close(done)
			dripping.Wait()
			return string(text)
		}
	}
	silent := func(start string) func(*testing.T, *client) string { return drip(start, "", time.Hour) }
	post := "POST /slow/post HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n"
	return map[string]slowClient{
		"says nothing":            {silent(""), 5 * time.Second, 15 * time.Second, ""},
		"stops in the first line": {silent("GET /slow"), 5 * time.Second, 15 * time.Second, ""},
		"drips its head":          {drip("GET /slow HTTP/1.1\r\nHost: a\r\n", "X-A: b\r\n", 300*time.Millisecond), 5 * time.Second, 15 * time.Second, ""},
		"stops in its body":       {silent(post + "begun"), 20 * time.Second, 45 * time.Second, "HTTP/1.1 4"},
		"drips its body":          {drip(post, "x", 300*time.Millisecond), 20 * time.Second, 60 * time.Second, "HTTP/1.1 4"},
		"drips chunks":            {drip("POST /slow/post HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n", 300*time.Millisecond), 20 * time.Second, 60 * time.Second, "HTTP/1.1 4"},
		"does not read": {func(t *testing.T, c *client) string {
			_ = c.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
			c.send(t, head("GET", "/slow/endless"))
			// Without reading there is one way to learn of the end: what is written fails.
			for {
				time.Sleep(200 * time.Millisecond)
				if _, err := io.WriteString(c.Conn, "x"); err != nil {
					return ""
				}
			}
		}, 20 * time.Second, 110 * time.Second, ""},
	}
}

// Clients that are slow at anything are ended in time, thousands that do nothing
// stay usable, and none of them costs those who are not slow.
func TestSlowClientsAndIdleOnes(t *testing.T) {
	h := start(t, cluster.Config{})
	server := newScript(t, func(c *played, r *http.Request) bool {
		if r.URL.Path == "/slow/endless" {
			return endless(okHead+"Content-Length: 1000000000000\r\n\r\n", "x")(c, r)
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return false
		}
		c.say(reply("200 OK", "good"))
		return true
	})
	// The route has more patience than the front end.
	h.apply(strings.Replace(publicTo("slow", server.URL, "timeouts: {idle: 300s}"), "public: true", "public: true\n  timeouts: {request: 5m}", 1))
	idle := make([]*client, idleClients)
	before := inUse()
	for i := range idle {
		idle[i] = h.dial(t, 0)
		_ = idle[i].SetDeadline(time.Time{})
		if i%2 == 0 {
			idle[i].get(t, "/slow") // idle behind a request
		}
	}
	t.Logf("%d idle connections: %d bytes each, with what this process's other end of it takes", idleClients, (inUse()-before)/idleClients)
	var all sync.WaitGroup
	for name, one := range slowClients() {
		c := h.dial(t, 0)
		_ = c.SetDeadline(time.Now().Add(4 * patience))
		all.Go(func() {
			began := time.Now()
			got := one.act(t, c)
			if took := time.Since(began); took < one.least || took > one.within || !strings.HasPrefix(got, one.got) {
				t.Errorf("who %s was ended after %v with %.200q", name, took, got)
			} else {
				t.Logf("who %s was ended after %v", name, took.Round(100*time.Millisecond))
			}
		})
	}
	// Those that are idle behind a request may be used any time within two minutes,
	// and are as quick as ever.
	var took []time.Duration
	for i := 0; i < idleClients; i += 8 {
		began := time.Now()
		if a := idle[i].get(t, "/slow"); a.Status != 200 || a.Body != "good" {
			t.Fatalf("after a while: %+v", a)
		}
		took = append(took, time.Since(began))
		time.Sleep(20 * time.Millisecond) // over the time that the slow ones have
	}
	slices.Sort(took)
	t.Logf("among them a request took %v (p50), %v (p99)", took[len(took)/2], took[len(took)*99/100])
	if took[len(took)*99/100] > time.Second {
		t.Error("slow clients cost the others")
	}
	all.Wait()
	// Those that never said anything have been ended by now.
	for i := 1; i < idleClients; i += 200 {
		_ = idle[i].SetDeadline(time.Now().Add(patience))
		if err := idle[i].ended(); err != nil {
			t.Errorf("connection %d, on which nothing was said: %v", i, err)
		}
	}
}

// inUse is how much memory is: heap and stacks.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
