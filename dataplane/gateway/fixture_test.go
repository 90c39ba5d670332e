package gateway

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"go.uber.org/goleak"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/follow"
	"portcullis.dev/portcullis/dataplane/limit"
	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/dataplane/upstream"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/config/expr"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	"portcullis.dev/portcullis/pkg/telemetry"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// started is the tests' present. It is the real one: upstreams are asked until a
// deadline by the real clock.
var started = time.Now()

// Secrets of issuers, as they sign and as they are declared.
const (
	secret      = "0123456789abcdef0123456789abcdef"
	otherSecret = "fedcba9876543210fedcba9876543210"
)

// rig is a gateway with what it needs, and the configuration that it runs.
type rig struct {
	testing.TB
	g    *Gateway
	pool *upstream.Pool
	// dial opens the pool's connections.
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	counters *telemetry.Counters
	sampler  *telemetry.Sampler
	deps     policy.Deps
	checked  config.Checked
	revision int64
	stale    func()
	missing  []string
}

// Server names of upstreams that are accepted by Check and yet cannot be compiled.
const (
	refusedName = "refused.example"
	panicName   = "panic.example"
)

func newRig(t testing.TB) *rig { return newRigAt(t, time.Now) }

// newRigAt makes a rig with a clock of its own.
func newRigAt(t testing.TB, clock func() time.Time) *rig {
	r := &rig{TB: t, counters: telemetry.NewCounters(), sampler: &telemetry.Sampler{}, stale: func() {}}
	r.dial = (&net.Dialer{}).DialContext
	r.pool = upstream.NewPool(upstream.Config{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return r.dial(ctx, network, address)
	}, TLS: func(spec *configv1.UpstreamTLS) (*tls.Config, error) {
		switch spec.GetServerName() {
		case refusedName:
			return nil, errors.New("this is refused")
		case panicName:
			panic("this cannot be")
		}
		return &tls.Config{}, nil
	}})
	r.deps = policy.Deps{
		Credentials: credential.NewSet(), Revocations: revocation.NewSet(), Freshness: revocation.NewFreshness(),
		Limiter: limit.New(limit.Config{Node: "n1", Boot: 1, Start: started}), Expr: expr.New(),
		KeyMissing:  func(issuer string) { r.missing = append(r.missing, issuer) },
		ServedStale: func(exchange.RouteInfo) { r.stale() },
		Now:         clock,
	}
	r.deps.Freshness.Heard(revocation.Beat{Epoch: 1, Progress: 1}, started)
	r.g = New(Config{
		Node: "n1", Policy: r.deps, Pool: r.pool, Tokens: token.NewCache(token.CacheConfig{Entries: 256}), Counters: r.counters,
		Sampler: r.sampler, Tracer: silent{}, Decisions: NewDecisions("n1"), Log: slog.New(slog.DiscardHandler),
	})
	return r
}

// silent traces nothing.
type silent struct{}

func (silent) Start(ctx context.Context, _ telemetry.Decision, _ string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	return ctx, noop.Span{}
}

func documents(t testing.TB, text string) []*configv1.Resource {
	t.Helper()
	decoded, err := config.Decode("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var rs []*configv1.Resource
	for _, d := range decoded {
		rs = append(rs, d.Resource)
	}
	return rs
}

// doc is the head of a document.
func doc(kind, workspace, name, spec string) string {
	meta := fmt.Sprintf("{name: %s}", name)
	if workspace != "" {
		meta = fmt.Sprintf("{workspace: %s, name: %s}", workspace, name)
	}
	return "---\napiVersion: portcullis.dev/v1\nkind: " + kind + "\nmetadata: " + meta + "\nspec: " + spec + "\n"
}

// try checks a change, which must be accepted, and applies it.
func (r *rig) try(d config.Delta) error {
	r.Helper()
	checked, affected, err := r.checked.Apply(d)
	if err != nil {
		r.Fatal(err)
	}
	r.revision++
	err = r.g.Apply(context.Background(), follow.Next{
		Version: config.Version{Epoch: 1, Revision: r.revision}, Checked: checked, Affected: affected,
	})
	if err == nil {
		r.checked = checked
	}
	return err
}

// apply puts documents and deletes keys.
func (r *rig) apply(text string, deletes ...config.Key) {
	r.Helper()
	if err := r.try(config.Delta{Upserts: documents(r, text), Deletes: deletes}); err != nil {
		r.Fatal(err)
	}
}

// fresh compiles the configuration from nothing, in a gateway of its own.
func (r *rig) fresh() *rig {
	r.Helper()
	f := newRig(r.TB)
	f.checked = r.checked
	if err := f.g.Apply(context.Background(), follow.Next{
		Version: config.Version{Epoch: 1, Revision: r.revision}, Checked: r.checked, Affected: config.Affected{All: true},
	}); err != nil {
		r.Fatal(err)
	}
	return f
}

// request makes an exchange; fields alternate names and values.
func request(method, target string, fields ...string) *exchange.Exchange {
	e := &exchange.Exchange{Context: context.Background(), ID: exchange.NewID(), Received: started}
	r := &e.Request
	host, path, _ := strings.Cut(target, "/")
	r.Method, r.Scheme, r.Proto, r.Host, r.Authority = method, "https", "HTTP/1.1", host, host
	r.Path, r.Query, _ = strings.Cut("/"+path, "?")
	r.Peer = netip.MustParseAddr("192.0.2.7")
	for i := 0; i < len(fields); i += 2 {
		r.Header.Add(fields[i], fields[i+1])
	}
	return e
}

// answer is what a client gets.
type answer struct {
	status int
	header exchange.Header
	body   string
}

func (a *answer) reason() string {
	var p struct{ Reason string }
	if json.Unmarshal([]byte(a.body), &p) != nil {
		return ""
	}
	return p.Reason
}

// do handles an exchange as a front end does.
func (r *rig) do(e *exchange.Exchange) *answer {
	r.Helper()
	resp := r.g.Handle(e)
	a := &answer{status: resp.Status, header: exchange.HeaderOf(append([]exchange.Field(nil), resp.Header.Fields()...)...)}
	if resp.Body.Reader != nil {
		b, err := io.ReadAll(resp.Body.Reader)
		if err != nil {
			r.Fatal(err)
		}
		a.body = string(b)
		_ = resp.Body.Reader.Close()
	}
	e.Result = exchange.Result{Status: resp.Status, Bytes: int64(len(a.body))}
	e.End()
	return a
}

func (r *rig) decision(id string) *controlv1.DecisionRecord {
	r.Helper()
	rec, ok := r.g.cfg.Decisions.Decision(id)
	if !ok {
		r.Fatalf("no decision on %s", id)
	}
	return rec
}

func b64(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// claims are the usual ones with changes to them; nil removes.
func claims(changes map[string]any) map[string]any {
	c := map[string]any{
		"iss": "https://local.example", "sub": "alice", "aud": "https://api.example", "jti": "t-1",
		"iat": started.Unix() - 60, "exp": started.Unix() + 600, "client_id": "web", "scope": "orders:read",
	}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// mint signs with a shared secret.
func mint(key string, changes map[string]any) string {
	signed := b64(map[string]any{"alg": "HS256", "typ": "at+jwt"}) + "." + b64(claims(changes))
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// pair is the nth key pair.
func pair(n byte) (key ed25519.PrivateKey, spki string) {
	key = ed25519.NewKeyFromSeed([]byte(strings.Repeat(string('a'+rune(n)), ed25519.SeedSize)))
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	return key, base64.StdEncoding.EncodeToString(der)
}

// mintBy signs with the nth key pair.
func mintBy(n byte, changes map[string]any) string {
	key, _ := pair(n)
	signed := b64(map[string]any{"alg": "EdDSA", "typ": "at+jwt", "kid": fmt.Sprint(n)}) + "." + b64(claims(changes))
	return signed + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, []byte(signed)))
}

// keySet declares the public keys of pairs.
func keySet(workspace, name string, pairs ...byte) string {
	var keys []string
	for _, n := range pairs {
		_, spki := pair(n)
		keys = append(keys, fmt.Sprintf("{kid: %q, algorithms: [EdDSA], spki: %s}", fmt.Sprint(n), spki))
	}
	return doc("KeySet", workspace, name, "{keys: ["+strings.Join(keys, ", ")+"]}")
}

func issuer(workspace, name, iss, key string) string {
	return doc("Issuer", workspace, name, fmt.Sprintf("{issuer: %q, hmacSecret: %s}", iss, base64.StdEncoding.EncodeToString([]byte(key))))
}

func bearer(compact string) []string { return []string{"Authorization", "Bearer " + compact} }
