package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/dataplane/policy"
	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/identity/certtest"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// logBuffer collects an access log.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// line returns the log's line of a request, once it is written.
func (l *logBuffer) line(h *harness, id string) (line map[string]any) {
	h.t.Helper()
	h.until("the access log's line of "+id, func() error {
		for text := range strings.Lines(l.String()) {
			if strings.Contains(text, `"request_id":"`+id+`"`) && strings.HasSuffix(text, "\n") {
				return json.Unmarshal([]byte(text), &line)
			}
		}
		return fmt.Errorf("there is none")
	})
	return line
}

// metrics scrapes node i.
func (h *harness) metrics(i int) string {
	h.t.Helper()
	resp, err := h.client.Get("http://" + h.MetricsAddresses()[i] + "/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return string(data)
}

// unprovoked are the reasons that no request can bring about on purpose: an
// internal_error is a panic in the gateway's own code, which its unit tests plant.
var unprovoked = []policy.Reason{policy.InternalError}

// reasonRow provokes one reason.
type reasonRow struct {
	reason policy.Reason
	node   int
	// provoke returns the refusal, or for client_gone only a request id.
	provoke func() answer
	// challenge and header are what the RFCs ask for beside the status.
	challenge, header string
}

// Every reason to refuse is met on the wire: with its status, its problem, its
// challenge, a line in the log and a counter.
func TestThreatReasons(t *testing.T) {
	log, dir := &logBuffer{}, t.TempDir()
	h := start(t, cluster.Config{Dir: dir, Nodes: 2, AccessLog: log, MetricsListen: "127.0.0.1:0", AllowLoopbackJWKS: true,
		Sockets: map[string]string{"http": "127.0.0.1:0", "mtls": "127.0.0.1:0"}})
	k, ca := newES256(t, "k1"), certtest.New(t, "clients")
	slow := newRecorder(t)
	begun, release := make(chan struct{}, 8), make(chan struct{})
	slow.answer(func(_ http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	defer close(release)
	h.apply(reasonsConfig(t, k, slow.URL, ca))

	key, err := h.admin.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Application: "app", Name: "short", Ttl: durationpb.New(time.Second), WaitFor: durationpb.New(patience)})
	if err != nil {
		t.Fatal(err)
	}
	unknown, _, _, err := credential.Generate()
	if err != nil {
		t.Fatal(err)
	}
	revoked := k.token("jti", "to-be-revoked")
	if _, err := h.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Jti: "to-be-revoked"}); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	bearerAt := func(path, token string) func() answer {
		return func() answer { return h.get(0, path, authorization(token)...) }
	}
	keyAt := func(key string) func() answer { return func() answer { return h.get(0, "/keyed", "X-API-Key", key) } }
	until := func(reason policy.Reason, f func() answer) func() answer {
		return func() (a answer) {
			h.until(string(reason), func() error {
				if a = f(); a.Reason != string(reason) {
					return fmt.Errorf("%+v", a)
				}
				return nil
			})
			return a
		}
	}
	invalid, keyed := `Bearer realm="portcullis", error="invalid_token"`, `ApiKey realm="portcullis", header="X-API-Key"`
	control := func(f func(context.Context) error) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := f(ctx); err != nil {
			t.Fatal(err)
		}
	}
	rows := []reasonRow{
		{reason: policy.NoRoute, provoke: func() answer { return h.get(0, "/nowhere") }},
		{reason: policy.CredentialMissing, provoke: func() answer { return h.get(0, "/api") }, challenge: `Bearer realm="portcullis"`},
		{reason: policy.CredentialMalformed, provoke: bearerAt("/api", "no-token"), challenge: invalid},
		{reason: policy.CredentialDuplicate, provoke: func() answer {
			return h.get(0, "/api", append(authorization(k.token()), authorization(k.token())...)...)
		}, challenge: `Bearer realm="portcullis", error="invalid_request"`},
		{reason: policy.TokenExpired, provoke: bearerAt("/api", k.token("iat", now-600, "exp", now-300)), challenge: invalid},
		{reason: policy.TokenNotYetValid, provoke: bearerAt("/api", k.token("nbf", now+300)), challenge: invalid},
		{reason: policy.TokenWrongAudience, provoke: bearerAt("/api", k.token("aud", "x")), challenge: invalid},
		{reason: policy.TokenWrongIssuer, provoke: bearerAt("/api", k.token("iss", "https://x")), challenge: invalid},
		{reason: policy.TokenBadSignature, provoke: bearerAt("/api", newES256(t, "k1").token()), challenge: invalid},
		{reason: policy.TokenRevoked, provoke: until(policy.TokenRevoked, bearerAt("/api", revoked)), challenge: invalid},
		{reason: policy.KeyUnknown, provoke: keyAt(unknown), challenge: keyed},
		{reason: policy.KeyExpired, provoke: until(policy.KeyExpired, keyAt(key.Key)), challenge: keyed},
		{reason: policy.ScopeMissing, provoke: bearerAt("/scoped", k.token()), challenge: `Bearer realm="portcullis", error="insufficient_scope"`},
		{reason: policy.RuleDenied, provoke: bearerAt("/ruled", k.token("tenant", "b"))},
		{reason: policy.ExpressionError, provoke: bearerAt("/ruled", k.token())},
		{reason: policy.LimitExceeded, provoke: until(policy.LimitExceeded, func() answer { return h.get(0, "/limited") }), header: "Retry-After"},
		{reason: policy.KeysUnavailable, provoke: bearerAt("/keyless", k.token("iss", "https://dead.example")), header: "Retry-After"},
		{reason: policy.UpstreamUnavailable, provoke: func() answer { return h.get(0, "/down") }},
		{reason: policy.UpstreamTimeout, provoke: func() answer { return h.get(0, "/late") }},
		{reason: policy.UpstreamOverloaded, provoke: func() answer { return h.crowd(t, "/narrow", begun) }, header: "Retry-After"},
		{reason: policy.RequestMalformed, provoke: func() answer { return h.one(t, request("GET", "/..;/api", "Host: a")) }},
		{reason: policy.RequestTooLarge, provoke: func() answer { return h.one(t, request("POST", "/open", "Host: a", "Content-Length: 1073741824")) }},
		{reason: policy.MisdirectedRequest, provoke: func() answer { return h.misdirected(t, ca) }},
		{reason: policy.ClientGone, provoke: func() answer { return h.leave(t, "/hang", begun) }},
		{reason: policy.NodeOverloaded, node: 1, provoke: func() answer { return h.fill(t, 1, "/open") }, header: "Retry-After"},
		{reason: policy.RevocationsStale, provoke: func() answer {
			if err := h.StopControl(); err != nil {
				t.Fatal(err)
			}
			return until(policy.RevocationsStale, bearerAt("/fresh", k.token()))()
		}, header: "Retry-After"},
		{reason: policy.NotReady, node: 1, provoke: func() answer {
			if err := h.StopNode(1); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(dir, "nodes", "node-2", "last-known-good")); err != nil {
				t.Fatal(err)
			}
			control(func(ctx context.Context) error { return h.StartNode(ctx, 1) })
			return h.get(1, "/open")
		}},
	}
	met := map[policy.Reason]bool{}
	for _, row := range rows {
		met[row.reason] = true
		t.Run(string(row.reason), func(t *testing.T) { row.check(t, h, log) })
	}
	for _, reason := range policy.Reasons() {
		if !met[reason] && !slices.Contains(unprovoked, reason) {
			t.Errorf("no row provokes %s", reason)
		}
	}
	// A healed cluster serves again.
	control(h.StartControl)
	h.until("both nodes serve again", func() error {
		for node := range 2 {
			if a := h.get(node, "/fresh", authorization(k.token())...); a.Status != 200 {
				return fmt.Errorf("node %d: %+v", node, a)
			}
		}
		return nil
	})
}

func (row reasonRow) check(t *testing.T, h *harness, log *logBuffer) {
	h.up.take()
	a := row.provoke()
	if row.reason != policy.ClientGone {
		refused(t, "the answer", a, row.reason.Status(), string(row.reason))
	}
	if challenges := a.Header.Values("WWW-Authenticate"); row.challenge == "" && len(challenges) > 0 ||
		row.challenge != "" && (len(challenges) != 1 || !strings.HasPrefix(challenges[0], row.challenge)) {
		t.Errorf("WWW-Authenticate %q, want %q", challenges, row.challenge)
	}
	if strings.Contains(a.Body+fmt.Sprint(a.Header), "127.0.0.1") {
		t.Errorf("the refusal tells what stands behind: %s", a.Body)
	}
	if row.header != "" && a.Header.Get(row.header) == "" {
		t.Errorf("no %s in %v", row.header, a.Header)
	}
	id := a.RequestID
	if id == "" {
		id = a.Header.Get("X-Request-Id")
	}
	line := log.line(h, id)
	if line["reason"] != string(row.reason) || line["status"] != float64(row.reason.Status()) || line["node"] != fmt.Sprintf("node-%d", row.node+1) {
		t.Errorf("the log says %v", line)
	}
	if metrics := h.metrics(row.node); !strings.Contains(metrics, `portcullis_reason="`+string(row.reason)+`"`) {
		t.Error("no counter has the reason")
	}
	switch row.reason {
	case policy.LimitExceeded, policy.RevocationsStale, policy.TokenRevoked, policy.KeyExpired, policy.NodeOverloaded: // others before it were served
	default:
		h.untouched(t, "the refused request")
	}
}

// leave closes the connection while the upstream works, and returns the id that
// the request had: the test's own, since its peer is a trusted proxy.
func (h *harness) leave(t *testing.T, path string, begun <-chan struct{}) answer {
	t.Helper()
	for len(begun) > 0 {
		<-begun
	}
	conn, err := net.Dial("tcp", h.Addresses()[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, request("GET", path, "Host: a", "X-Request-Id: the-client-that-left")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-begun:
	case <-time.After(patience):
		t.Fatal("the request did not reach its upstream")
	}
	// A client that only says that it will say no more still waits for its answer.
	if err := errors.Join(conn.(*net.TCPConn).SetLinger(0), conn.Close()); err != nil {
		t.Fatal(err)
	}
	return answer{Header: http.Header{}, RequestID: "the-client-that-left"}
}

// crowd asks while the one request that the upstream is to have is under way.
func (h *harness) crowd(t *testing.T, path string, begun <-chan struct{}) answer {
	t.Helper()
	for len(begun) > 0 {
		<-begun
	}
	first := h.dial(t, 0)
	first.send(t, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
	select {
	case <-begun:
	case <-time.After(patience):
		t.Fatal("the first request did not reach its upstream")
	}
	a := h.get(0, path)
	// A client that only says that it will say no more still waits for its answer.
	if err := errors.Join(first.Conn.(*net.TCPConn).SetLinger(0), first.Close()); err != nil {
		t.Fatal(err)
	}
	return a
}

// fill starts a node anew under a memory limit and holds memory until the node
// refuses what comes on a connection that was there before. It serves again once
// the memory is free.
func (h *harness) fill(t *testing.T, node int, path string) answer {
	t.Helper()
	if err := h.StopNode(node); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	// The limit is the process's; who watches it reads it once, as the node starts.
	before := debug.SetMemoryLimit(int64(now.Sys-now.HeapReleased) + 96<<20)
	err := h.StartNode(ctx, node)
	known := h.dial(t, node)
	defer func() { _ = known.Close() }()
	if err == nil {
		h.until("the node serves", func() error {
			if a := known.get(t, path); a.Status != 200 {
				return fmt.Errorf("%+v", a)
			}
			return nil
		})
	}
	debug.SetMemoryLimit(before)
	if err != nil {
		t.Fatal(err)
	}
	var held [][]byte
	var a answer
	h.until("the node sheds", func() error {
		if a.Status != http.StatusServiceUnavailable {
			if len(held) < 64 {
				held = append(held, make([]byte, 8<<20))
				runtime.GC()
			}
			a = known.get(t, path)
		}
		if a.Status != http.StatusServiceUnavailable {
			return fmt.Errorf("%d pieces of 8 MiB are held: %+v", len(held), a)
		}
		return nil
	})
	// Who is new does not even get so far.
	fresh := h.dial(t, node)
	defer func() { _ = fresh.Close() }()
	_, _ = io.WriteString(fresh, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n")
	if line, err := fresh.ReadString('\n'); err == nil {
		t.Errorf("a new connection is served while memory is short: %q", line)
	}
	runtime.KeepAlive(held)
	held = nil
	runtime.GC()
	h.until("the node serves again", func() error {
		again, err := h.try(node, "GET", path, "")
		if err != nil || again.Status != 200 {
			return fmt.Errorf("%+v %v", again, err)
		}
		return nil
	})
	return a
}

// misdirected asks for another host than the handshake did, by whose name clients
// are verified.
func (h *harness) misdirected(t *testing.T, ca *certtest.Authority) answer {
	t.Helper()
	conn, err := tls.Dial("tcp", h.Sockets()[0]["mtls"], &tls.Config{RootCAs: ca.Pool(), ServerName: "mtls.example"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, request("GET", "/open", "Host: other.example")); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return parseReplies(t, string(text))[0]
}

func reasonsConfig(t *testing.T, k keyPair, slow string, ca *certtest.Authority) string {
	shown := ca.Issue(t, certtest.Spec{Hosts: []string{"mtls.example"}})
	ext := "{jwt: {issuers: [ext], audiences: [https://api.example]}}"
	at := func(name, policies string, more ...string) string {
		return routeYAML(name, append([]string{"matches: [{path: {prefix: /" + name + "}}]", "policies: [" + policies + "]"}, more...)...)
	}
	public := func(name, upstream string, more ...string) string {
		return strings.Replace(at(name, "", append(more, "public: true")...), "{upstream: up}", "{upstream: "+upstream+"}", 1)
	}
	return issuerWith(k) + fmt.Sprintf(`
---
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec: {trustedProxies: [127.0.0.0/8], listeners: [{name: http}, {name: mtls, tls: {certificates: [mtls], clientCertificates: {ca: %q, optional: true}}}]}
---
apiVersion: portcullis.dev/v1
kind: Certificate
metadata: {name: mtls}
spec: {certificate: %q, privateKey: %q}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: dead}
spec: {issuer: 'https://dead.example', jwksUri: 'http://%s/jwks'}
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {name: app}
spec: {description: test}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: slow}
spec: {endpoints: [{url: %q}]}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: down}
spec: {endpoints: [{url: 'http://%s'}]}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: narrow}
spec: {endpoints: [{url: %q}], circuitBreaker: {maxRequests: 1}}
`, ca.CertPEM, shown.CertPEM, shown.KeyPEM, freePort(t), slow, freePort(t), slow) +
		at("api", ext) + at("keyed", "{apiKey: {}}") + at("keyless", "{jwt: {issuers: [dead], audiences: [https://api.example]}}") +
		at("scoped", ext+", {authorize: {rules: [{name: r, scopes: [admin]}]}}") +
		at("ruled", ext+", {authorize: {rules: [{name: r, require: \"auth.claims.tenant == 'a'\"}]}}") +
		at("fresh", ext, "revocation: {maxStaleness: 500ms, onStale: deny}") +
		at("limited", "{rateLimit: {limits: [{name: hour, requests: 1, window: 1h}]}}", "public: true") +
		public("open", "up") + public("down", "down") + public("late", "slow", "timeouts: {request: 100ms}") + public("hang", "slow") + public("narrow", "narrow")
}
