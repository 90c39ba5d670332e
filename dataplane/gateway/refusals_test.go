package gateway

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/policy"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const refusals = `
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: jwt}
spec:
  matches: [{path: {prefix: /jwt}}]
  policies:
    - jwt: {issuers: [local], audiences: ["https://api.example"]}
    - authorize: {rules: [{name: reader, scopes: ["orders:read"]}]}
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: rule}
spec:
  public: true
  matches: [{path: {prefix: /rule}}]
  policies: [{authorize: {rules: [{name: never, require: "request.method == 'BREW'"}]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: expression}
spec:
  public: true
  matches: [{path: {prefix: /expression}}]
  policies: [{authorize: {rules: [{name: tenant, require: "request.headers['x-tenant'] == 'a'"}]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: limit}
spec:
  public: true
  matches: [{path: {prefix: /limit}}]
  policies: [{rateLimit: {limits: [{requests: 1, window: 1h}]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: down}
spec: {public: true, matches: [{path: {prefix: /down}}], backends: [{upstream: down}]}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: slow}
spec: {public: true, matches: [{path: {prefix: /slow}}], backends: [{upstream: up}], timeouts: {request: 50ms}}
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: key}
spec:
  matches: [{path: {prefix: /key}}]
  policies: [{apiKey: {header: X-Key}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: remote}
spec:
  matches: [{path: {prefix: /remote}}]
  policies: [{jwt: {issuers: [remote], audiences: ["https://api.example"]}}]
  backends: [{upstream: up}]
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: remote}
spec: {issuer: "https://remote.example", jwksUri: "https://remote.example/keys"}
`

// counted returns how many requests each reason was counted for, by route.
func (r *rig) counted() map[string]int64 {
	r.Helper()
	scopes, err := r.counters.Produce(context.Background())
	if err != nil {
		r.Fatal(err)
	}
	out := map[string]int64{}
	for _, scope := range scopes {
		for _, metric := range scope.Metrics {
			if metric.Name != "portcullis.requests" {
				continue
			}
			for _, p := range metric.Data.(metricdata.Sum[int64]).DataPoints {
				for _, a := range p.Attributes.ToSlice() {
					if strings.Contains(string(a.Key), "reason") {
						out[a.Value.AsString()] += p.Value
					}
				}
			}
		}
	}
	return out
}

// Answer, ring and counter tell the same reason; nothing reached the upstream.
func TestRefusals(t *testing.T) {
	r := newRig(t)
	up := newOrigin(t, r, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/slow" {
			<-req.Context().Done()
		}
	})
	down := httptest.NewServer(nil)
	down.Close()
	refuse := func(e *exchange.Exchange, status int, reason policy.Reason) {
		t.Helper()
		before := r.counted()[string(reason)]
		a := r.do(e)
		var p struct {
			Type, Title, Detail, Reason string
			Status                      int
			RequestID                   string `json:"request_id"`
			TraceID                     string `json:"trace_id"`
		}
		if err := json.Unmarshal([]byte(a.body), &p); err != nil {
			t.Fatalf("%s: %q: %v", reason, a.body, err)
		}
		if a.status != status || p.Status != status || p.Reason != string(reason) || p.Title != reason.Title() || p.Detail == "" ||
			p.Type != "https://portcullis.dev/problems/"+string(reason) || p.RequestID != e.ID || len(p.TraceID) != 32 ||
			a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %+v %+v", reason, a.status, p, a.header)
		}
		rec := r.decision(e.ID)
		if rec.Reason != string(reason) || rec.Status != int32(status) || rec.TraceId != p.TraceID || rec.Node != "n1" || rec.Peer != "192.0.2.7" {
			t.Errorf("%s: the ring says %v", reason, rec)
		}
		if got := r.counted()[string(reason)]; got != before+1 {
			t.Errorf("%s: counted %d times", reason, got-before)
		}
		if strings.Contains(a.body, "127.0.0.1") {
			t.Errorf("%s: the client learns of the upstream: %s", reason, a.body)
		}
	}
	refuse(request("GET", "x/"), 503, policy.NotReady)
	r.apply(refusals + issuer("default", "local", "https://local.example", secret) + upstreamAt("up", up.URL) + upstreamAt("down", down.URL) +
		doc("Upstream", "default", "busy", "{endpoints: [{url: '"+up.URL+"'}], circuitBreaker: {maxRequests: 1}}") +
		doc("Route", "default", "busy", "{public: true, matches: [{path: {prefix: /busy}}], backends: [{upstream: busy}]}"))
	token := func(changes map[string]any) *exchange.Exchange {
		return request("GET", "x/jwt", bearer(mint(secret, changes))...)
	}
	now := started.Unix()

	refuse(request("GET", "x/none"), 404, policy.NoRoute)
	refuse(request("GET", "x/jwt"), 401, policy.CredentialMissing)
	refuse(request("GET", "x/jwt", "Authorization", "Basic YTpi"), 401, policy.CredentialMalformed)
	refuse(request("GET", "x/jwt", "Authorization", "Bearer a", "authorization", "Bearer b"), 400, policy.CredentialDuplicate)
	refuse(token(map[string]any{"exp": now - 600, "iat": now - 1200}), 401, policy.TokenExpired)
	refuse(token(map[string]any{"nbf": now + 600}), 401, policy.TokenNotYetValid)
	refuse(token(map[string]any{"aud": "https://other.example"}), 401, policy.TokenWrongAudience)
	refuse(token(map[string]any{"iss": "https://other.example"}), 401, policy.TokenWrongIssuer)
	refuse(request("GET", "x/jwt", bearer(mint(otherSecret, nil))...), 401, policy.TokenBadSignature)
	refuse(token(map[string]any{"scope": "none"}), 403, policy.ScopeMissing)
	refuse(request("GET", "x/remote", bearer(mintBy(0, map[string]any{"iss": "https://remote.example"}))...), 503, policy.KeysUnavailable)
	refuse(request("GET", "x/key", "X-Key", "pc_none"), 401, policy.CredentialMalformed)
	refuse(request("GET", "x/rule"), 403, policy.RuleDenied)
	refuse(request("GET", "x/expression"), 403, policy.ExpressionError)
	refuse(request("GET", "x/down"), 502, policy.UpstreamUnavailable)
	if up.last() != nil {
		t.Error("a refused request reached the upstream")
	}
	refuse(request("GET", "x/slow"), 504, policy.UpstreamTimeout)
	if got := r.do(request("GET", "x/limit")); got.status != 200 {
		t.Fatal(got)
	}
	refuse(request("GET", "x/limit"), 429, policy.LimitExceeded)
	if rec := r.counted(); rec["client_gone"] != 0 {
		t.Error(rec)
	}
	for _, broken := range []struct {
		err    error
		status int
		reason policy.Reason
	}{{exchange.ErrTooLarge, 413, policy.RequestTooLarge}, {exchange.ErrMalformed, 400, policy.RequestMalformed}} {
		e := request("POST", "x/jwt", bearer(mint(secret, nil))...)
		e.Request.Body = exchange.Body{Reader: failing{broken.err}, Length: -1}
		refuse(e, broken.status, broken.reason)
	}
	// A client that leaves is no fault of the upstream.
	gone, leave := context.WithCancel(t.Context())
	e := request("GET", "x/jwt", bearer(mint(secret, nil))...)
	e.Request.Body = exchange.Body{Reader: leaving{leave, gone}, Length: -1}
	e.Context = gone
	refuse(e, 499, policy.ClientGone)
	// The first is in flight until it ends.
	first := request("GET", "x/busy")
	if resp := r.g.Handle(first); resp.Status != 200 {
		t.Fatal(resp)
	}
	refuse(request("GET", "x/busy"), 503, policy.UpstreamOverloaded)
	first.End()
	if again := request("GET", "x/busy"); r.g.Handle(again).Status != 200 {
		t.Error("refused after the first has ended")
	} else {
		again.End()
	}
	r.g.cfg.Overload = shedding(configv1.Criticality_CRITICALITY_UNSPECIFIED)
	refuse(request("GET", "x/limit"), 503, policy.NodeOverloaded)
	r.g.cfg.Overload = shedding(configv1.Criticality_CRITICALITY_SHEDDABLE)
	refuse(request("GET", "x/rule"), 403, policy.RuleDenied)
	// The front end's own refusals go the same way.
	e = request("GET", "x/")
	e.Why.Detail = "two of a kind"
	resp := r.g.Refuse(e, "request_malformed", 431)
	e.Result.Status = resp.Status
	e.End()
	if rec := r.decision(e.ID); resp.Status != 431 || rec.Reason != "request_malformed" || rec.Detail != "two of a kind" || rec.Version.GetRevision() != r.revision {
		t.Errorf("%d %v", resp.Status, rec)
	}
}

// shedding refuses requests of one criticality.
type shedding configv1.Criticality

func (s shedding) Sheds(c configv1.Criticality) bool { return c == configv1.Criticality(s) }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
func (f failing) Close() error             { return nil }

// leaving is the body of a client that goes away while it sends.
type leaving struct {
	leave context.CancelFunc
	gone  context.Context
}

func (l leaving) Read([]byte) (int, error) {
	l.leave()
	<-l.gone.Done()
	return 0, net.ErrClosed
}
func (l leaving) Close() error { return nil }
