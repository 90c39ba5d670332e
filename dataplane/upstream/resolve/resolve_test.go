package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

const patience = 10 * time.Second

// zone is a DNS server on loopback, over UDP and TCP.
type zone struct {
	address string
	mu      sync.Mutex
	records map[string][]string // by name and type: records, as in a zone file
	rcode   map[string]int
	silent  bool
	small   bool // UDP answers are truncated
	tcp     int  // questions over TCP
}

func serve(t *testing.T) *zone {
	t.Helper()
	z := &zone{records: map[string][]string{}, rcode: map[string]int{}}
	var packets net.PacketConn
	var stream net.Listener
	for range 20 {
		var err error
		if packets, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		// The same number may be taken for TCP.
		if stream, err = net.Listen("tcp", packets.LocalAddr().String()); err == nil {
			break
		}
		packets.Close()
	}
	if stream == nil {
		t.Fatal("no port is free for both UDP and TCP")
	}
	z.address = packets.LocalAddr().String()
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: z}, {Listener: stream, Handler: z}} {
		started, ended := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() {
			defer close(ended)
			if err := s.ActivateAndServe(); err != nil {
				t.Error(err)
			}
		}()
		<-started
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			<-ended
		})
	}
	return z
}

func (z *zone) set(name, kind string, values ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	var records []string
	for _, v := range values {
		records = append(records, fmt.Sprintf("%s 1 IN %s %s", name, kind, v))
	}
	z.records[name+" "+kind] = records
}

func (z *zone) fail(name string, code int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.rcode[name] = code
}

func (z *zone) mode(silent, small bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.silent, z.small = silent, small
}

func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.silent {
		return
	}
	asked := q.Question[0]
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	m.Rcode = z.rcode[asked.Name]
	_, overUDP := w.RemoteAddr().(*net.UDPAddr)
	if !overUDP {
		z.tcp++
	}
	if overUDP && z.small {
		m.Truncated = true
	} else if m.Rcode == dns.RcodeSuccess {
		for _, text := range z.records[asked.Name+" "+dns.TypeToString[asked.Qtype]] {
			r, err := dns.NewRR(text)
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, r)
		}
	}
	_ = w.WriteMsg(m)
}

func TestAddresses(t *testing.T) {
	z := serve(t)
	z.set("api.internal.", "A", "10.0.0.2", "10.0.0.1", "10.0.0.2")
	z.set("api.internal.", "AAAA", "2001:db8::1")
	got, err := Lookup(t.Context(), Query{Name: "api.internal", Server: z.address})
	if want := []Target{{Host: "10.0.0.1"}, {Host: "10.0.0.2"}, {Host: "2001:db8::1"}}; err != nil || !cmp.Equal(got, want) {
		t.Error(got, err)
	}
}

func TestServices(t *testing.T) {
	z := serve(t)
	z.set("_http._tcp.api.internal.", "SRV", "20 1 8080 c.internal.", "10 5 8080 B.internal.", "10 7 8081 b.internal.",
		"10 9 8080 b.internal.", "30 1 8080 b.internal.", "10 1 0 zero.internal.")
	got, err := Lookup(t.Context(), Query{Name: "_http._tcp.api.internal", Service: true, Server: z.address})
	want := []Target{{"b.internal", 8080, 10, 5}, {"b.internal", 8081, 10, 7}, {"c.internal", 8080, 20, 1}}
	if err != nil || !cmp.Equal(got, want) {
		t.Error(got, err)
	}
	z.set("_none._tcp.api.internal.", "SRV", "0 0 0 .")
	if got, err := Lookup(t.Context(), Query{Name: "_none._tcp.api.internal", Service: true, Server: z.address}); !errors.Is(err, ErrEmpty) {
		t.Error("a service that is decidedly not there:", got, err)
	}
}

func TestWhatFails(t *testing.T) {
	z := serve(t)
	z.set("half.internal.", "A", "10.0.0.1")
	z.fail("gone.internal.", dns.RcodeNameError)
	z.fail("broken.internal.", dns.RcodeServerFailure)
	for _, service := range []bool{false, true} {
		for name, missing := range map[string]bool{"gone.internal": true, "empty.internal": true, "broken.internal": false} {
			got, err := Lookup(t.Context(), Query{Name: name, Service: service, Server: z.address})
			var failed *net.DNSError
			if !errors.As(err, &failed) || failed.IsNotFound != missing {
				t.Errorf("%s, service %t: %v, %v", name, service, got, err)
			}
		}
	}
	z.mode(true, false)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if got, err := Lookup(ctx, Query{Name: "half.internal", Server: z.address}); err == nil {
		t.Error("a server that is silent:", got)
	}
}

func TestTruncatedAnswersAreAskedAgainOverTCP(t *testing.T) {
	z := serve(t)
	var many []string
	address := netip.MustParseAddr("10.1.0.0")
	for range 300 {
		address = address.Next()
		many = append(many, address.String())
	}
	z.set("many.internal.", "A", many...)
	z.mode(false, true)
	got, err := Lookup(t.Context(), Query{Name: "many.internal", Server: z.address})
	if err != nil || len(got) != 300 {
		t.Error(len(got), err)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.tcp == 0 {
		t.Error("not asked over TCP")
	}
}

// TestChangesOfAZone follows a name over a real server through all that can
// happen to it.
func TestChangesOfAZone(t *testing.T) {
	z := serve(t)
	z.set("api.internal.", "A", "10.0.0.1")
	h := NewHub(Config{})
	defer h.Close()
	changes := make(chan struct{}, 16)
	w := h.Watch(Query{Name: "api.internal", Server: z.address, Refresh: 5 * time.Millisecond}, func() { changes <- struct{}{} })
	defer w.Close()
	await := func(what string, want ...string) {
		t.Helper()
		select {
		case <-changes:
		case <-time.After(patience):
			t.Fatal(what, "is not told: ", w.State().Err)
		}
		if got := hosts(w.State()); !slices.Equal(got, want) {
			t.Fatalf("%s: %v, want %v", what, got, want)
		}
	}
	failing := func(what string) {
		t.Helper()
		deadline := time.Now().Add(patience)
		for w.State().Err == nil {
			if time.Now().After(deadline) {
				t.Fatal(what, "is not seen")
			}
			time.Sleep(time.Millisecond)
		}
		if got := hosts(w.State()); !slices.Equal(got, []string{"10.0.0.1", "10.0.0.2"}) || len(changes) > 0 {
			t.Fatalf("%s: %v", what, got)
		}
	}
	await("the first answer", "10.0.0.1")
	z.set("api.internal.", "A", "10.0.0.2", "10.0.0.1")
	await("a second address", "10.0.0.1", "10.0.0.2")
	z.fail("api.internal.", dns.RcodeNameError)
	failing("NXDOMAIN")
	z.fail("api.internal.", dns.RcodeSuccess)
	z.set("api.internal.", "A", "10.0.0.3")
	await("recovery", "10.0.0.3")
	if s := w.State(); s.Err != nil || !s.Since.IsZero() {
		t.Error(s)
	}
}

func TestTidyIsSortedAndEachOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		one := rapid.Custom(func(t *rapid.T) Target {
			return Target{
				rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "host"), rapid.Uint16Range(1, 2).Draw(t, "port"),
				rapid.Uint16Range(0, 2).Draw(t, "priority"), rapid.Uint16Range(0, 2).Draw(t, "weight"),
			}
		})
		in := rapid.SliceOf(one).Draw(t, "targets")
		best := map[Target]uint16{}
		for _, x := range in {
			place := Target{Host: x.Host, Port: x.Port}
			if have, ok := best[place]; !ok || x.Priority < have {
				best[place] = x.Priority
			}
		}
		out := tidy(slices.Clone(in))
		if len(out) != len(best) || !slices.IsSortedFunc(out, Target.Compare) {
			t.Fatalf("%v becomes %v", in, out)
		}
		for _, x := range out {
			if best[Target{Host: x.Host, Port: x.Port}] != x.Priority || !slices.Contains(in, x) {
				t.Fatalf("%v becomes %v", in, out)
			}
		}
	})
}
