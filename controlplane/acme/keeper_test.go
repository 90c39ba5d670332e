package acme

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"portcullis.dev/portcullis/controlplane/acme/acmetest"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, acmetest.Leak()) }

const patience = 30 * time.Second

var key = config.Key{Kind: config.KindCertificate, Workspace: "shop", Name: "site"}

// world is what replicas share: one Certificate, what was issued for it, the store
// with its claims, and a node that answers the challenges it has been told.
type world struct {
	t         *testing.T
	items     *store.Memory
	authority *acmetest.Authority

	mu       sync.Mutex
	spec     *configv1.ACME
	issued   *configv1.IssuedCertificate
	version  config.Version
	moved    chan struct{}
	writes   []string
	changed  []chan struct{}
	behind   []*controlv1.NodeStatus
	deaf     bool // the node answers 404
	asked    int  // challenges that the node was asked
	waited   config.Version
	writeErr error
	// refuse, when set, is the configuration's rules.
	refuse func(*configv1.IssuedCertificate) error
}

func newWorld(t *testing.T, lifetime time.Duration) *world {
	w := &world{t: t, items: store.NewMemory(), moved: make(chan struct{}), version: config.Version{Epoch: 1, Revision: 1}}
	t.Cleanup(func() { _ = w.items.Close() })
	node := httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(node.Close)
	w.authority = acmetest.Start(t, node.Listener.Addr().(*net.TCPAddr).Port, lifetime)
	w.spec = &configv1.ACME{
		Directory: w.authority.Directory, Ca: w.authority.CA, Email: "ops@shop.example",
		Hostnames: []string{"shop.example", "www.shop.example"}, TermsAgreed: true,
	}
	return w
}

// serve is the node: it answers only what it ran before the authority came.
func (w *world) serve(resp http.ResponseWriter, req *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	token, _ := strings.CutPrefix(req.URL.Path, "/.well-known/acme-challenge/")
	for _, challenge := range w.issued.GetChallenges() {
		if challenge.Token == token && !w.deaf && w.waited == w.version {
			_, _ = resp.Write([]byte(challenge.KeyAuthorization))
			return
		}
	}
	http.NotFound(resp, req)
}

// edit changes the world and tells the replicas.
func (w *world) edit(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	w.tell()
}

func (w *world) tell() {
	close(w.moved)
	w.moved = make(chan struct{})
	for _, changed := range w.changed {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}

func (w *world) source() (Source, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.spec == nil {
		return Source{}, false
	}
	source := Source{Key: key, Certificate: &configv1.Certificate{Acme: proto.CloneOf(w.spec)}}
	if w.issued != nil {
		source.Issued = proto.CloneOf(w.issued)
	}
	return source, true
}

func (w *world) write(_ context.Context, source Source, issued *configv1.IssuedCertificate, reason string) (config.Version, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writeErr != nil {
		return config.Version{}, false, w.writeErr
	}
	if !proto.Equal(source.Certificate.Acme, w.spec) {
		return config.Version{}, false, nil
	}
	if w.refuse != nil {
		if err := w.refuse(issued); err != nil {
			return config.Version{}, false, err
		}
	}
	w.issued = proto.CloneOf(issued)
	w.version.Revision++
	w.writes = append(w.writes, reason)
	w.tell()
	return w.version, true, nil
}

func (w *world) await(ctx context.Context, version config.Version) *adminv1.Convergence {
	w.mu.Lock()
	w.waited = version
	behind := w.behind
	w.mu.Unlock()
	if len(behind) > 0 {
		<-ctx.Done()
	}
	return &adminv1.Convergence{Converged: len(behind) == 0, Programmed: 2, Total: int32(2 + len(behind)), Behind: behind}
}

// replica starts a keeper and returns what stops it.
func (w *world) replica(name string, adjust func(*Config)) (stop func()) {
	changed := make(chan struct{}, 1)
	w.mu.Lock()
	w.changed = append(w.changed, changed)
	w.mu.Unlock()
	cfg := Config{
		Replica: name, Accounts: w.items.Items("accounts"), Locks: w.items.Items("locks"), Changed: changed,
		Sources: func() []Source {
			if source, ok := w.source(); ok {
				return []Source{source}
			}
			return nil
		},
		Find: func(context.Context, config.Key) (Source, bool, error) {
			source, ok := w.source()
			return source, ok, nil
		},
		Write: w.write, Await: w.await, AllowLoopback: true, Converge: 100 * time.Millisecond, Claim: time.Second, Backoff: time.Hour,
	}
	if adjust != nil {
		adjust(&cfg)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = New(cfg).Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	w.t.Cleanup(stop)
	return stop
}

// until waits until what was issued is as wanted.
func (w *world) until(what string, ok func(*configv1.IssuedCertificate) bool) *configv1.IssuedCertificate {
	w.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		w.mu.Lock()
		issued, moved := w.issued, w.moved
		w.mu.Unlock()
		if ok(issued) {
			return issued
		}
		select {
		case <-moved:
		case <-deadline.C:
			w.t.Fatalf("not within %s: %s; it is %v", patience, what, proto.CloneOf(issued))
		}
	}
}

func usable(issued *configv1.IssuedCertificate) bool {
	return issued.GetCertificate() != "" && issued.Problem == "" && len(issued.Challenges) == 0
}

func (w *world) count(reason string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.writes {
		if one == reason {
			n++
		}
	}
	return n
}

func TestIssuesOnceForAllReplicasAndAgainWhenAskedForMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 90*24*time.Hour)
	for i := range 3 {
		w.replica(fmt.Sprintf("control-%d", i+1), nil)
	}
	first := w.until("a certificate", usable)
	pair, err := tls.X509KeyPair([]byte(first.Certificate), []byte(first.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range w.spec.Hostnames {
		if err := pair.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if refresh := first.RefreshAt.AsTime(); refresh.Before(time.Now().Add(30*24*time.Hour)) || refresh.After(pair.Leaf.NotAfter) {
		t.Errorf("refresh at %s of a certificate that expires at %s", refresh, pair.Leaf.NotAfter)
	}
	if !proto.Equal(first.Ordered, w.spec) || first.Failures != 0 || first.IssuedAt == nil {
		t.Errorf("written as %v", first)
	}
	if n := w.count("acme: issued"); n != 1 {
		t.Errorf("issued %d times, want once", n)
	}
	// Another name: ordered at once, by the same account, with another key.
	w.edit(func() {
		w.spec = proto.CloneOf(w.spec)
		w.spec.Hostnames = append(w.spec.Hostnames, "api.shop.example")
	})
	second := w.until("a certificate for the further name", func(issued *configv1.IssuedCertificate) bool {
		return usable(issued) && len(issued.Ordered.Hostnames) == 3
	})
	if second.PrivateKey == first.PrivateKey {
		t.Error("the key was used again")
	}
	if err := leafOf(second.Certificate).VerifyHostname("api.shop.example"); err != nil {
		t.Error(err)
	}
	accounts, err := w.items.Items("accounts").List(t.Context())
	if err != nil || len(accounts) != 1 {
		t.Errorf("%d accounts, %v, want one", len(accounts), err)
	}
	// Claims are given back, so that whoever comes next need not wait.
	w.edit(func() { w.spec = nil })
}

func TestFailuresAreReadableSpacedAndForgottenWithTheirCause(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 90*24*time.Hour)
	w.edit(func() { w.deaf = true })
	w.replica("control-1", func(c *Config) { c.Backoff = 50 * time.Millisecond })
	failed := w.until("two failures", func(i *configv1.IssuedCertificate) bool { return i.GetFailures() >= 2 })
	for _, want := range []string{"shop.example", "404"} {
		if !strings.Contains(failed.Problem, want) {
			t.Errorf("the problem %q does not say %s", failed.Problem, want)
		}
	}
	if strings.Contains(failed.Problem, "PRIVATE") || len(failed.Challenges) > 0 || failed.Certificate != "" {
		t.Errorf("written as %v", failed)
	}
	w.edit(func() { w.deaf = false })
	if issued := w.until("a certificate", usable); issued.Failures != 0 {
		t.Errorf("%d failures are remembered", issued.Failures)
	}
	// A later failure leaves the certificate in place.
	w.edit(func() {
		w.spec = proto.CloneOf(w.spec)
		w.spec.Hostnames = []string{"nowhere.example"}
	})
	failed = w.until("a failure", func(i *configv1.IssuedCertificate) bool { return i.Failures > 0 })
	if failed.Certificate == "" || failed.PrivateKey == "" {
		t.Error("the last certificate was dropped")
	}
	w.authority.SetDown(true)
	w.edit(func() {
		w.spec = proto.CloneOf(w.spec)
		w.spec.Hostnames = []string{"other.example"}
	})
	failed = w.until("the authority is down", func(i *configv1.IssuedCertificate) bool {
		return len(i.Ordered.GetHostnames()) == 1 && i.Ordered.Hostnames[0] == "other.example"
	})
	if failed.Failures != 1 || !strings.Contains(failed.Problem, "503") {
		t.Errorf("%d failures: %s", failed.Failures, failed.Problem)
	}
}

func TestAuthorityIsNotSentToNodesThatCannotAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 90*24*time.Hour)
	w.edit(func() { w.behind = []*controlv1.NodeStatus{{Name: "node-7"}} })
	w.replica("control-1", nil)
	failed := w.until("a failure", func(i *configv1.IssuedCertificate) bool { return i.GetFailures() > 0 })
	if !strings.Contains(failed.Problem, "node-7") || !strings.Contains(failed.Problem, "2 of 3") {
		t.Errorf("problem %q", failed.Problem)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.asked > 0 {
		t.Errorf("the authority looked %d times", w.asked)
	}
}

func TestNothingIsAskedWithoutAgreement(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 90*24*time.Hour)
	w.edit(func() { w.spec.TermsAgreed = false })
	w.replica("control-1", nil)
	w.until("a failure", func(i *configv1.IssuedCertificate) bool { return i.GetFailures() > 0 })
	if n := w.authority.Requests.Load(); n > 0 {
		t.Errorf("%d requests", n)
	}
}

// Another replica goes on where one has stopped, whether it gave its claim back or
// crashed with it, and by the same account.
func TestAnotherReplicaGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 90*24*time.Hour)
	w.edit(func() { w.behind = []*controlv1.NodeStatus{{Name: "node-7"}} })
	stop := w.replica("control-1", func(c *Config) { c.Converge = patience })
	w.until("challenges", func(i *configv1.IssuedCertificate) bool { return len(i.GetChallenges()) == 2 })
	stop()
	if _, err := w.items.Items("locks").Get(t.Context(), "acme/shop/site"); err == nil {
		t.Error("the claim was not given back")
	}
	// One that crashed.
	if _, err := w.items.Items("locks").Put(t.Context(), "acme/shop/site", nil, store.Write{TTL: time.Second}); err != nil {
		t.Fatal(err)
	}
	w.edit(func() { w.behind = nil })
	w.replica("control-2", nil)
	w.until("a certificate", usable)
	if accounts, err := w.items.Items("accounts").List(t.Context()); err != nil || len(accounts) != 1 {
		t.Errorf("%d accounts, %v, want one", len(accounts), err)
	}
}

func TestRenewsBeforeExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 4*time.Second)
	// A machine may take so long over an order that what it brings has expired.
	w.replica("control-1", func(c *Config) { c.Backoff = 10 * time.Millisecond })
	first := w.until("a certificate", usable)
	second := w.until("a renewed certificate", func(i *configv1.IssuedCertificate) bool { return usable(i) && i.Certificate != first.Certificate })
	// Not before it was due; how long after is the machine's to say.
	if second.IssuedAt.AsTime().Before(first.RefreshAt.AsTime()) {
		t.Errorf("renewed at %s, before %s", second.IssuedAt.AsTime(), first.RefreshAt.AsTime())
	}
}

// ripe has the question of when to renew asked by whoever comes next.
func (w *world) ripe(chain string) {
	w.t.Helper()
	value, err := json.Marshal(appointment{Certificate: identifier(leafOf(chain)), At: time.Now().Add(-time.Second)})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.items.Items("locks").Put(w.t.Context(), "renewal/shop/site", value, store.Write{At: store.Overwrite}); err != nil {
		w.t.Fatal(err)
	}
}

// An authority that is about to revoke moves the window: one of the replicas asks
// when it is time to, over a restart of all, and orders at once, saying what for.
func TestRenewsEarlyWhenTheAuthorityMovesTheWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 90*24*time.Hour)
	stop := w.replica("control-1", nil)
	first := w.until("a certificate", usable)
	if at, window := first.RefreshAt.AsTime(), first.Suggested; window == nil || at.Before(window.Start.AsTime()) || at.After(window.End.AsTime()) {
		t.Errorf("to be renewed at %s, suggested is %v", at, window)
	}
	stop()
	if n := w.authority.Questions.Load(); n != 1 {
		t.Errorf("asked %d times, want once, with the certificate", n)
	}
	item, err := w.items.Items("locks").Get(t.Context(), "renewal/shop/site")
	if err != nil {
		t.Fatal(err)
	}
	var next appointment
	// Pebble says 6 h.
	if err := json.Unmarshal(item.Value, &next); err != nil || time.Until(next.At) < 5*time.Hour || time.Until(next.At) > 6*time.Hour {
		t.Errorf("asked again in %s, %v", time.Until(next.At), err)
	}
	suggest := func(from, to time.Duration) {
		w.authority.Suggest(t, first.Certificate, fmt.Sprintf(`{"suggestedWindow": {"start": %q, "end": %q}, "explanationURL": "https://ca.example/why"}`,
			time.Now().Add(from).Format(time.RFC3339), time.Now().Add(to).Format(time.RFC3339)))
	}
	// It has a reason, which operators read.
	suggest(24*time.Hour, 48*time.Hour)
	w.ripe(first.Certificate)
	stop = w.replica("control-1", nil)
	moved := w.until("an earlier time", func(i *configv1.IssuedCertificate) bool { return !proto.Equal(i.RefreshAt, first.RefreshAt) })
	if in := time.Until(moved.RefreshAt.AsTime()); in < 23*time.Hour || in > 48*time.Hour || moved.Suggested.ExplanationUrl != "https://ca.example/why" || moved.Certificate != first.Certificate {
		t.Errorf("to be renewed in %s, %v", in, moved.Suggested)
	}
	stop()
	// What an authority says of a certificate that it revokes.
	suggest(-time.Hour, -time.Hour/2)
	w.ripe(first.Certificate)
	// It is no new one, which would be kept for a while.
	w.edit(func() {
		w.issued = proto.CloneOf(w.issued)
		w.issued.IssuedAt = timestamppb.New(time.Now().Add(-7 * time.Hour))
	})
	for i := range 3 {
		w.replica(fmt.Sprintf("control-%d", i+1), nil)
	}
	second := w.until("another certificate", func(i *configv1.IssuedCertificate) bool { return usable(i) && i.Certificate != first.Certificate })
	if second.RefreshAt.AsTime().Before(time.Now().Add(24 * time.Hour)) {
		t.Errorf("renewed again at %s", second.RefreshAt.AsTime())
	}
	if got, want := w.authority.Replaces(), identifier(leafOf(first.Certificate)); got != want {
		t.Errorf("ordered in place of %q, want %q", got, want)
	}
	// With the first, for the reason, for the revocation, and with the second.
	if n := w.authority.Questions.Load(); n != 4 {
		t.Errorf("asked %d times, want 4 times", n)
	}
	if n := w.count("acme: issued"); n != 2 {
		t.Errorf("issued %d times, want twice", n)
	}
}

// A claim that is taken away ends the order: two replicas must not order at once.
func TestALostClaimEndsTheOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 90*24*time.Hour)
	w.edit(func() { w.behind = []*controlv1.NodeStatus{{Name: "node-7"}} })
	lost := make(chan struct{})
	w.replica("control-1", func(c *Config) {
		c.Converge = 2 * patience
		await := c.Await
		c.Await = func(ctx context.Context, v config.Version) *adminv1.Convergence {
			defer close(lost)
			return await(ctx, v)
		}
	})
	w.until("challenges", func(i *configv1.IssuedCertificate) bool { return len(i.GetChallenges()) == 2 })
	locks := w.items.Items("locks")
	if _, err := locks.Put(t.Context(), "acme/shop/site", []byte("control-2"), store.Write{At: store.Overwrite}); err != nil {
		t.Fatal(err)
	}
	// The order ends, and the claim is left to its holder; nothing is written.
	select {
	case <-lost:
	case <-time.After(patience):
		t.Fatal("the order went on")
	}
	if item, err := locks.Get(t.Context(), "acme/shop/site"); err != nil || string(item.Value) != "control-2" {
		t.Errorf("the claim is %q, %v", item.Value, err)
	}
	if n := w.count("acme: issued") + w.count("acme: failed"); n > 0 {
		t.Errorf("%d results were written without the claim", n)
	}
}
