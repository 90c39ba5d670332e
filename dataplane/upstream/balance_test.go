package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/upstream/resolve"
	configv1 "portcullis.dev/portcullis/proto/config/v1"

	"google.golang.org/protobuf/types/known/durationpb"
)

// servers answer with their own name.
func servers(t *testing.T, names ...string) map[string]string {
	t.Helper()
	urls := map[string]string{}
	for _, name := range names {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Server", name)
			w.Header().Add("Set-Cookie", "own=1")
		}))
		t.Cleanup(srv.Close)
		urls[name] = srv.URL
	}
	return urls
}

func use(t *testing.T, p *Pool, spec *configv1.Upstream, subset map[string]string) *Backend {
	t.Helper()
	u, err := p.Acquire(key, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	t.Cleanup(u.Release)
	return NewBackend(u, &configv1.Route{}, &configv1.Backend{Upstream: "up", Subset: subset})
}

// ask sends one request and returns who answered, and the answer.
func ask(b *Backend, fields ...exchange.Field) (string, *exchange.Response, error) {
	e := get("/")
	e.Request.Header = exchange.HeaderOf(fields...)
	e.Request.Peer = netip.MustParseAddr("192.0.2.1")
	e.Request.Scheme = "https"
	defer e.End()
	resp, err := b.Do(e, e.Context, soon())
	if err != nil {
		return "", nil, err
	}
	who := strings.Clone(resp.Header.Get("X-Server"))
	kept := &exchange.Response{Status: resp.Status}
	for v := range resp.Header.Values("Set-Cookie") {
		kept.Header.Add("Set-Cookie", strings.Clone(v))
	}
	return who, kept, nil
}

func TestEachAlgorithmOverTheWire(t *testing.T) {
	urls := servers(t, "a", "b", "c")
	for number, name := range configv1.Algorithm_name {
		t.Run(name, func(t *testing.T) {
			spec := &configv1.Upstream{Balance: &configv1.Balance{Algorithm: configv1.Algorithm(number)}}
			spec.Balance.Hash = []*configv1.HashKey{{Kind: &configv1.HashKey_Header{Header: "X-Tenant"}}}
			for _, n := range []string{"a", "b", "c"} {
				spec.Endpoints = append(spec.Endpoints, &configv1.Endpoint{Url: urls[n]})
			}
			b := use(t, NewPool(Config{}), spec, nil)
			counts := map[string]int{}
			for i := range 90 {
				who, _, err := ask(b, exchange.Field{Name: "X-Tenant", Value: strconv.Itoa(i)})
				if err != nil {
					t.Fatal(err)
				}
				counts[who]++
			}
			if len(counts) != 3 {
				t.Errorf("only %v answered", counts)
			}
			if b.chooser.roster.balance.Algorithm.Hashed() {
				first, _, _ := ask(b, exchange.Field{Name: "X-Tenant", Value: "t"})
				for range 10 {
					if who, _, err := ask(b, exchange.Field{Name: "X-Tenant", Value: "t"}); who != first {
						t.Errorf("the tenant moved from %s to %s, %v", first, who, err)
					}
				}
			}
		})
	}
	if _, err := NewPool(Config{}).Acquire(key, &configv1.Upstream{Balance: &configv1.Balance{Algorithm: 77}}); err == nil {
		t.Error("an algorithm that is not known is taken")
	}
}

func TestSubsetsAndZonesOverTheWire(t *testing.T) {
	urls := servers(t, "a", "b", "c")
	spec := &configv1.Upstream{
		Balance: &configv1.Balance{ZoneAware: true},
		Endpoints: []*configv1.Endpoint{
			{Url: urls["a"], Zone: "east", Labels: map[string]string{"v": "1"}},
			{Url: urls["b"], Zone: "west", Labels: map[string]string{"v": "1"}},
			{Url: urls["c"], Zone: "west", Labels: map[string]string{"v": "2"}},
		},
	}
	p := NewPool(Config{Zone: "west"})
	for _, c := range []struct {
		subset map[string]string
		want   []string
	}{{nil, []string{"b", "c"}}, {map[string]string{"v": "1"}, []string{"b"}}, {map[string]string{"v": "2"}, []string{"c"}}} {
		b := use(t, p, spec, c.subset)
		seen := map[string]bool{}
		for range 30 {
			who, _, err := ask(b)
			if err != nil || !slices.Contains(c.want, who) {
				t.Fatalf("%v: %q answered, %v", c.subset, who, err)
			}
			seen[who] = true
		}
		if len(seen) != len(c.want) {
			t.Errorf("%v: %v answered", c.subset, seen)
		}
	}
}

func TestAffinity(t *testing.T) {
	urls := servers(t, "a", "b", "c")
	spec := &configv1.Upstream{Balance: &configv1.Balance{
		Algorithm: configv1.Algorithm_ALGORITHM_ROUND_ROBIN, Affinity: &configv1.Affinity{MaxAge: durationpb.New(time.Hour)},
	}}
	for _, u := range urls {
		spec.Endpoints = append(spec.Endpoints, &configv1.Endpoint{Url: u})
	}
	b := use(t, NewPool(Config{AffinityKey: []byte("k")}), spec, nil)
	// Another node of the cluster.
	other := use(t, NewPool(Config{AffinityKey: []byte("k")}), spec, nil)
	stranger := use(t, NewPool(Config{AffinityKey: []byte("another")}), spec, nil)
	for range 3 {
		first, resp, err := ask(b)
		if err != nil {
			t.Fatal(err)
		}
		cookies := slices.Collect(resp.Header.Values("Set-Cookie"))
		if len(cookies) != 2 || cookies[0] != "own=1" {
			t.Fatalf("cookies %q", cookies)
		}
		value, attributes, _ := strings.Cut(cookies[1], ";")
		if attributes != " Path=/; HttpOnly; SameSite=Lax; Max-Age=3600; Secure" || strings.Contains(value, "127.0") {
			t.Errorf("cookie %q", cookies[1])
		}
		for range 5 {
			for _, node := range []*Backend{b, other} {
				who, resp, err := ask(node, exchange.Field{Name: "Cookie", Value: "x=y; " + value})
				if err != nil || who != first || resp.Header.Count("Set-Cookie") != 1 {
					t.Fatalf("%s answers instead of %s, %v", who, first, err)
				}
			}
		}
		if _, resp, _ := ask(stranger, exchange.Field{Name: "Cookie", Value: value}); resp.Header.Count("Set-Cookie") != 2 {
			t.Error("a cookie of another cluster is taken")
		}
	}
	for _, forged := range []string{"", "0", "zzzzzzzzzzzzzzzz", "0000000000000000", "ffffffffffffffff", strings.Repeat("1", 400)} {
		if _, resp, err := ask(b, exchange.Field{Name: "Cookie", Value: defaultCookie + "=" + forged}); err != nil || resp.Header.Count("Set-Cookie") != 2 {
			t.Errorf("%q: %v", forged, err)
		}
	}
}

// names is a lookup that says what it is told.
type names struct {
	mu      sync.Mutex
	targets []resolve.Target
	asked   chan struct{}
}

func (n *names) set(targets ...resolve.Target) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.targets = targets
}

func (n *names) lookup(context.Context, resolve.Query) ([]resolve.Target, error) {
	if n.asked != nil {
		<-n.asked
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.targets) == 0 {
		return nil, errors.New("no such name")
	}
	return n.targets, nil
}

func target(t *testing.T, at string) resolve.Target {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return resolve.Target{Host: u.Hostname(), Port: uint16(port), Weight: 1}
}

func service() *configv1.Upstream {
	return &configv1.Upstream{
		Endpoints: []*configv1.Endpoint{{Url: "http://_http._tcp.orders.internal", Resolve: configv1.Resolve_RESOLVE_SERVICE}},
		Dns:       &configv1.DNS{Refresh: durationpb.New(2 * time.Millisecond)},
	}
}

// TestEndpointsComeAndGoWhileRequestsRun: no request fails while a name brings
// other endpoints all the time, all of which are there.
func TestEndpointsComeAndGoWhileRequestsRun(t *testing.T) {
	urls := servers(t, "a", "b", "c")
	a, b, c := target(t, urls["a"]), target(t, urls["b"]), target(t, urls["c"])
	n := &names{}
	n.set(a)
	p := NewPool(Config{Lookup: n.lookup})
	be := use(t, p, service(), nil)
	var answered [3]atomic.Int64
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				who, _, err := ask(be)
				if err != nil {
					t.Error(err)
					return
				}
				answered[who[0]-'a'].Add(1)
			}
		})
	}
	deadline := time.Now().Add(patience)
	for i := 0; answered[0].Load() < 50 || answered[1].Load() < 50 || answered[2].Load() < 50; i++ {
		if time.Now().After(deadline) {
			t.Errorf("answered: %d, %d, %d", answered[0].Load(), answered[1].Load(), answered[2].Load())
			break
		}
		// Also nothing at all, which changes nothing.
		n.set([][]resolve.Target{{a}, {a, b}, {b, c}, {}, {c}, {a, b, c}}[i%6]...)
		time.Sleep(3 * time.Millisecond)
	}
	close(done)
	wg.Wait()
	if all := p.all(); len(all) > 3 {
		t.Errorf("%d endpoints are kept", len(all))
	}
}

func TestTheFirstRequestWaitsForTheName(t *testing.T) {
	urls := servers(t, "a")
	n := &names{asked: make(chan struct{})}
	n.set(target(t, urls["a"]))
	be := use(t, NewPool(Config{Lookup: n.lookup}), service(), nil)
	go func() { close(n.asked) }()
	if who, _, err := ask(be); who != "a" || err != nil {
		t.Error(who, err)
	}
	unknown := use(t, NewPool(Config{Lookup: (&names{}).lookup}), service(), nil)
	if _, _, err := ask(unknown); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	silent := &names{asked: make(chan struct{})}
	late := use(t, NewPool(Config{Lookup: func(ctx context.Context, _ resolve.Query) ([]resolve.Target, error) {
		select {
		case <-ctx.Done():
		case <-silent.asked:
		}
		return nil, ctx.Err()
	}}), service(), nil)
	e := get("/")
	if _, err := late.Do(e, e.Context, time.Now().Add(20*time.Millisecond)); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	if names := late.upstream.Names(); len(names) != 1 || names[0].Name != "_http._tcp.orders.internal" || names[0].Endpoints != 0 {
		t.Error(names)
	}
	close(silent.asked)
}

// TestStatesOutliveSnapshots: what is known of an endpoint, static or resolved,
// goes from one configuration to the next.
func TestStatesOutliveSnapshots(t *testing.T) {
	n := &names{}
	n.set(resolve.Target{Host: "10.0.0.1"}, resolve.Target{Host: "10.0.0.2"})
	p := NewPool(Config{Lookup: n.lookup})
	spec := &configv1.Upstream{Endpoints: []*configv1.Endpoint{
		{Url: "http://10.0.0.9"}, {Url: "http://a.internal:81", Resolve: configv1.Resolve_RESOLVE_ADDRESSES},
	}}
	first, err := p.Acquire(key, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	first.await(t.Context(), soon())
	known := map[string]*endpoint{}
	for _, ep := range first.endpoints {
		known[ep.at.url()] = ep
	}
	if len(known) != 3 || known["http://10.0.0.2:81"] == nil || known["http://10.0.0.9"] == nil {
		t.Fatal(known)
	}
	spec.Endpoints[0].Weight = new(uint32(7))
	spec.Balance = &configv1.Balance{Algorithm: configv1.Algorithm_ALGORITHM_RANDOM}
	second, err := p.Acquire(key, spec)
	if err != nil {
		t.Fatal(err)
	}
	first.Release()
	for _, ep := range second.endpoints {
		if known[ep.at.url()] != ep {
			t.Errorf("%s is new", ep.at.url())
		}
	}
	if second.Release(); len(p.all()) != 0 {
		t.Error("endpoints without users are kept")
	}
}

func TestResolvedEndpointsAreVerifiedByTheNameThatWasWritten(t *testing.T) {
	for _, c := range []struct {
		url    string
		target resolve.Target
		want   location
	}{
		{"https://api.internal", resolve.Target{Host: "10.0.0.1"}, location{"https", "10.0.0.1:443", "10.0.0.1:443", "api.internal", true}},
		{"http://api.internal:81", resolve.Target{Host: "2001:db8::1"}, location{"http", "[2001:db8::1]:81", "[2001:db8::1]:81", "api.internal", true}},
		{"https://_https._tcp.api.internal", resolve.Target{Host: "evil.example", Port: 8443}, location{"https", "evil.example:8443", "evil.example:8443", "api.internal", true}},
	} {
		at, err := parseEndpoint(c.url)
		if err != nil {
			t.Fatal(err)
		}
		if got := at.resolved(c.target); got != c.want {
			t.Errorf("%s: %+v", c.url, got)
		}
	}
}

func TestServicesHavePrioritiesAndWeights(t *testing.T) {
	n := &names{}
	n.set(resolve.Target{Host: "a", Port: 1, Priority: 1, Weight: 0}, resolve.Target{Host: "b", Port: 1, Priority: 1, Weight: 9}, resolve.Target{Host: "c", Port: 1, Priority: 2, Weight: 1})
	spec := service()
	spec.Endpoints[0].Weight = new(uint32(3))
	var mu sync.Mutex
	dialled := map[string]int{}
	p := NewPool(Config{Lookup: n.lookup, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		dialled[address]++
		return nil, fmt.Errorf("refused")
	}})
	be := use(t, p, spec, nil)
	be.upstream.await(t.Context(), soon())
	var weights []uint32
	for _, c := range be.upstream.candidates {
		weights = append(weights, c.Weight)
	}
	if !slices.Equal(weights, []uint32{3, 27, 3}) {
		t.Error(weights)
	}
	if _, _, err := ask(be); !errors.Is(err, ErrUnavailable) {
		t.Error(err)
	}
	mu.Lock()
	if len(dialled) != 2 || dialled["c:1"] > 0 {
		t.Errorf("dialled %v", dialled)
	}
	mu.Unlock()
	for _, ep := range be.upstream.endpoints[:2] {
		ep.state.SetUsable(0, false)
	}
	be.chooser.selection.Load().set.Refresh()
	_, _, _ = ask(be)
	mu.Lock()
	defer mu.Unlock()
	if dialled["c:1"] == 0 {
		t.Errorf("the next priority is not asked: %v", dialled)
	}
}

// TestUsabilityIsTakenOver: what health finds out reaches the choice, both ways.
func TestUsabilityIsTakenOver(t *testing.T) {
	urls := servers(t, "a", "b")
	spec := &configv1.Upstream{Balance: &configv1.Balance{Algorithm: configv1.Algorithm_ALGORITHM_ROUND_ROBIN}}
	for _, n := range []string{"a", "b"} {
		spec.Endpoints = append(spec.Endpoints, &configv1.Endpoint{Url: urls[n]})
	}
	be := use(t, NewPool(Config{}), spec, nil)
	ep := be.upstream.endpoints[0]
	began := ep.state.Since()
	for _, broken := range []error{errors.New("no such name"), nil} {
		ep.health.SetResolved(time.Now(), broken)
		deadline := time.Now().Add(patience)
		for ep.state.Usable() != (broken == nil) || be.upstream.stale.Load() > 0 {
			if time.Now().After(deadline) {
				t.Fatal("not taken over")
			}
			time.Sleep(time.Millisecond)
		}
		seen := map[string]int{}
		for range 20 {
			who, _, err := ask(be)
			if err != nil {
				t.Fatal(err)
			}
			seen[who]++
		}
		if (seen["a"] > 0) != (broken == nil) || seen["b"] == 0 {
			t.Errorf("with %v: %v answered", broken, seen)
		}
	}
	if ep.state.Since() <= began {
		t.Error("slow start does not begin anew")
	}
}
