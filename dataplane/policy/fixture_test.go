package policy

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/limit"
	"portcullis.dev/portcullis/dataplane/token"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/config/expr"
	"portcullis.dev/portcullis/pkg/credential"
	"portcullis.dev/portcullis/pkg/revocation"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const secret = "0123456789abcdef0123456789abcdef"

// common is in every configuration under test.
const common = `
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: local}
spec: {issuer: "https://local.example", hmacSecret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: partner}
spec: {issuer: "https://partner.example", hmacSecret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}
---
apiVersion: portcullis.dev/v1
kind: Issuer
metadata: {name: remote}
spec: {issuer: "https://remote.example", jwksUri: "https://remote.example/keys"}
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {workspace: shop, name: erp}
spec: {scopes: ["orders:read", "orders:write"], roles: [machine], groups: [internal]}
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {workspace: shop, name: clerk}
spec: {scopes: [stock]}
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {name: erp}
spec: {scopes: [everything]}
---
apiVersion: portcullis.dev/v1
kind: Application
metadata: {name: backup}
spec: {scopes: [backup]}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: up}
spec: {endpoints: [{url: "http://127.0.0.1:9"}], shared: true}
`

// world is what the compiled policies ask, and the route shop/route.
type world struct {
	t        testing.TB
	now      time.Time
	checked  config.Checked
	deps     Deps
	route    config.Key
	pipeline *Pipeline
	keys     map[string]string // API keys by name
	issuers  map[string]*token.Issuer
	missing  []string
	stale    int
	disabled map[string]bool
	e        exchange.Exchange
}

// newWorld checks and compiles a configuration; documents are added to common.
func newWorld(t testing.TB, documents string) *world {
	t.Helper()
	w := &world{t: t, now: noon, keys: map[string]string{}, disabled: map[string]bool{}, issuers: map[string]*token.Issuer{},
		route: config.Key{Kind: config.KindRoute, Workspace: "shop", Name: "route"}}
	if !strings.Contains(documents, "kind: Workspace") {
		documents += "\n---\napiVersion: portcullis.dev/v1\nkind: Workspace\nmetadata: {name: shop}\n"
	}
	w.checked = check(t, common+"---\n"+documents)
	w.deps = Deps{
		Issuer: w.issuer, Application: w.application, Credentials: credential.NewSet(), Revocations: revocation.NewSet(),
		Freshness: revocation.NewFreshness(), Limiter: limit.New(limit.Config{Node: "n1", Boot: 1, Start: noon}), Expr: expr.New(),
		KeyMissing:  func(issuer string) { w.missing = append(w.missing, issuer) },
		ServedStale: func(exchange.RouteInfo) { w.stale++ },
		Now:         func() time.Time { return w.now },
	}
	w.deps.Freshness.Heard(revocation.Beat{Epoch: 1, Progress: 1}, noon)
	w.compile()
	return w
}

func documentsOf(t testing.TB, text string) []*configv1.Resource {
	t.Helper()
	documents, err := config.Decode("test.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var rs []*configv1.Resource
	for _, d := range documents {
		rs = append(rs, d.Resource)
	}
	return rs
}

func check(t testing.TB, text string) config.Checked {
	t.Helper()
	checked, err := config.Check(documentsOf(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return checked
}

func (w *world) compile() {
	w.t.Helper()
	r, ok := w.checked.Get(w.route)
	if !ok {
		w.t.Fatal("no route shop/route")
	}
	p, err := CompileRoute(w.route, r.GetRoute(), w.checked.Policies(w.route), w.deps)
	if err != nil {
		w.t.Fatal(err)
	}
	w.pipeline = p
}

func (w *world) issuer(workspace, name string) (*token.Issuer, bool) {
	r, ok := w.checked.Resolve(config.KindIssuer, workspace, name)
	if !ok {
		return nil, false
	}
	full := r.GetMetadata().GetWorkspace() + "/" + name
	if w.issuers[full] == nil {
		i, err := token.Compile(full, r.GetIssuer(), nil, token.NewCache(token.CacheConfig{Entries: 64}))
		if err != nil {
			w.t.Fatal(err)
		}
		w.issuers[full] = i
	}
	return w.issuers[full], true
}

func (w *world) application(workspace, name string) (*configv1.Application, bool) {
	r, ok := w.checked.Get(config.Key{Kind: config.KindApplication, Workspace: workspace, Name: name})
	if !ok {
		return nil, false
	}
	if w.disabled[workspace+"/"+name] {
		return &configv1.Application{Disabled: true}, true
	}
	return r.GetApplication(), true
}

// key makes an API key of an application, "workspace/name", once per name.
func (w *world) key(name, application, scopes string, expires int64) string {
	if known, ok := w.keys[name]; ok {
		return known
	}
	key, sum, _, err := credential.Generate()
	if err != nil {
		w.t.Fatal(err)
	}
	workspace, app, _ := strings.Cut(application, "/")
	w.deps.Credentials.Put(credential.Credential{
		SHA256: sum, ID: revocation.CredentialKey(sum), Workspace: workspace, Application: app, Scopes: scopes, Expires: expires,
	})
	w.keys[name] = key
	return key
}

func (w *world) revoke(kind controlv1.RevocationKind, issuer, value string, before int64) {
	w.deps.Revocations.Add(revocation.Entry{Kind: kind, Key: revocation.KeyOf(kind, issuer, value), Before: before})
}

// mint signs the usual claims with changes to them; nil removes.
func mint(changes map[string]any) string {
	claims := map[string]any{
		"iss": "https://local.example", "sub": "alice", "aud": "https://api.example", "jti": "t-1",
		"iat": noon.Unix() - 60, "exp": noon.Unix() + 600, "client_id": "web", "scope": "orders:read",
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	encode := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	signed := encode(map[string]any{"alg": "HS256", "typ": "at+jwt"}) + "." + encode(claims)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(signed))
	return signed + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// request prepares the exchange for a request; fields alternate names and values.
func (w *world) request(method, path string, fields ...string) *exchange.Exchange {
	e := &w.e
	e.Reset()
	e.Context, e.ID, e.Received = context.Background(), "r-1", w.now
	e.Route = exchange.RouteInfo{Workspace: w.route.Workspace, Name: w.route.Name}
	e.Request.Method, e.Request.Scheme, e.Request.Host = method, "https", "api.example"
	e.Request.Path, e.Request.Query, _ = strings.Cut(path, "?")
	e.Request.Peer = netip.MustParseAddr("192.0.2.7")
	for i := 0; i < len(fields); i += 2 {
		e.Request.Header.Add(fields[i], fields[i+1])
	}
	return e
}

// run runs the pipeline and returns the reason, "" when the request may pass.
func (w *world) run(e *exchange.Exchange) Reason {
	if d := w.pipeline.Run(e); d != nil {
		return d.Reason
	}
	return ""
}

func body(t testing.TB, r *exchange.Response) string {
	t.Helper()
	if r.Body.Reader == nil {
		return ""
	}
	var b bytes.Buffer
	if _, err := io.Copy(&b, r.Body.Reader); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
