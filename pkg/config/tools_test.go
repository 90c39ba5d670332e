package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft7)
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON makes a YAML document what a JSON Schema validator takes.
func asJSON(t *testing.T, text string) (any, error) {
	t.Helper()
	var v any
	if err := yaml.Load([]byte(text), &v); err != nil {
		return nil, err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(bytes.NewReader(data))
}

func TestSchemaAcceptsWhatDecodeAccepts(t *testing.T) {
	golden(t, "schema.json", string(Schema()))
	s := compileSchema(t)
	for text := range strings.SplitSeq(shop+everything, "\n---\n") {
		v, err := asJSON(t, text)
		if err != nil {
			t.Fatal(err)
		}
		if m, _ := v.(map[string]any); m["metadata"].(map[string]any)["name"] == "others" {
			continue
		}
		if err := s.Validate(v); err != nil {
			t.Errorf("%s\n%v", text, err)
		}
	}
}

func TestSchemaRefusesMistakes(t *testing.T) {
	s := compileSchema(t)
	for _, name := range []string{"unknown_field", "wrong_type", "enums", "oneof", "oneof_empty", "numbers", "top_level"} {
		data, err := os.ReadFile(filepath.Join("testdata/mistakes", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for i, text := range strings.Split("\n"+string(data), "\n---\n") {
			v, err := asJSON(t, text)
			if err != nil {
				continue // what JSON cannot say, such as NaN
			}
			if err := s.Validate(v); err == nil {
				t.Errorf("%s[%d] is accepted:\n%s", name, i, text)
			}
		}
	}
}

// TestEveryKindIsCovered walks the descriptors: a kind or policy that is added
// without its rule, rank or example fails here.
func TestEveryKindIsCovered(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range decode(t, shop+everything) {
		seen[kindOf(r)] = true
		for _, p := range append(r.GetRoute().GetPolicies(), r.GetPolicy()) {
			if p != nil {
				m := p.ProtoReflect()
				seen["policy "+m.WhichOneof(m.Descriptor().Oneofs().ByName("kind")).JSONName()] = true
			}
		}
	}
	kinds := Kinds()
	for i, kind := range kinds {
		if !seen[kind] {
			t.Errorf("no example of kind %s", kind)
		}
		if rank(kind) != i {
			t.Errorf("rank(%s) = %d; want %d", kind, rank(kind), i)
		}
		if OperatorMayWrite(kind) != (kind != KindKeySet && kind != KindIssuedCertificate) {
			t.Errorf("OperatorMayWrite(%s)", kind)
		}
	}
	for _, name := range groupNames((*configv1.Policy)(nil).ProtoReflect().Descriptor().Oneofs().ByName("kind")) {
		if !seen["policy "+name] {
			t.Errorf("no example of policy %s", name)
		}
	}
	if OperatorMayWrite("Nothing") || rank("Nothing") != len(kinds) {
		t.Error("a kind that does not exist")
	}
}

func TestKeysAndVersions(t *testing.T) {
	for _, k := range []Key{{KindRoute, "shop", "orders"}, {KindWorkspace, "", "shop"}, {KindGateway, "default", "default"}} {
		if back, err := ParseKey(k.String()); err != nil || back != k {
			t.Errorf("%s: %v, %v", k, back, err)
		}
		if KeyOfProto(k.Proto()) != k {
			t.Errorf("%s differs through its message", k)
		}
	}
	if k, err := ParseKey("Route orders"); err != nil || k.Workspace != DefaultWorkspace {
		t.Error(k, err)
	}
	for _, s := range []string{"", "Route", "Rout a/b", "Route /b", "Route a/", "Route a/b/c", "Workspace a/b", "Route A/b"} {
		if k, err := ParseKey(s); err == nil {
			t.Errorf("ParseKey(%q) = %v", s, k)
		}
	}
	versions := []Version{{}, {1, 1}, {1, 42}, {2, 3}}
	for i, v := range versions {
		for j, w := range versions {
			if got := v.Compare(w); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%v.Compare(%v) = %d", v, w, got)
			}
		}
		if VersionOf(v.Proto()) != v {
			t.Errorf("%v differs through its message", v)
		}
	}
	if got := fmt.Sprint(versions); got != "[0 1 42 2.3]" {
		t.Error(got)
	}
}

func TestProblems(t *testing.T) {
	p := &Problem{Key: Key{KindRoute, "shop", "orders"}, Path: "spec.public", File: "a.yaml", Line: 3, Column: 4, Reason: "is wrong"}
	if got := p.Error(); got != "a.yaml:3:4: Route shop/orders: spec.public: is wrong" {
		t.Error(got)
	}
	if back := ProblemOf(p.Proto()); *back != *p {
		t.Errorf("%+v", back)
	}
	if back := ProblemOf(&controlv1.Problem{Resource: "odd", Reason: "x"}); back.Error() != "odd: x" {
		t.Error(back)
	}
	if got := (&Problem{Reason: "x"}).Error(); got != "x" {
		t.Error(got)
	}
}

func TestDiff(t *testing.T) {
	before := decode(t, shop+everything)
	at := func(kind, name string) *configv1.Resource {
		for _, r := range before {
			if kindOf(r) == kind && r.GetMetadata().GetName() == name {
				return r
			}
		}
		t.Fatalf("no %s %s", kind, name)
		return nil
	}
	var b strings.Builder
	diff := func(title string, from, to *configv1.Resource) {
		fmt.Fprintf(&b, "# %s\n", title)
		for _, c := range Diff(from, to) {
			fmt.Fprintf(&b, "%s: %q -> %q\n", c.GetPath(), c.GetBefore(), c.GetAfter())
		}
	}
	edit := func(r *configv1.Resource, f func(*configv1.Resource)) *configv1.Resource {
		r = proto.Clone(r).(*configv1.Resource)
		f(r)
		return r
	}
	route := at(KindRoute, "orders")
	diff("same", route, route)
	diff("fields", route, edit(route, func(r *configv1.Resource) {
		s := r.GetRoute()
		s.Public, s.Priority = true, 3
		s.Hostnames = append(s.Hostnames, "b.example")
		s.Policies[1].GetAuthorize().Rules[0].Scopes = []string{"all"}
		s.Policies = s.Policies[:3]
		s.Backends[0].Weight = nil
		s.Backends = append(s.Backends, &configv1.Backend{Upstream: "third"})
		s.Timeouts = nil
		s.Revocation.OnStale = configv1.OnStale_ON_STALE_ALLOW
		r.Metadata.Labels = map[string]string{"a": "b"}
	}))
	policy := at(KindPolicy, "office-hours")
	diff("another kind of policy", policy, edit(policy, func(r *configv1.Resource) {
		r.GetPolicy().Kind = &configv1.Policy_ApiKey{ApiKey: &configv1.APIKey{}}
	}))
	tls := at(KindUpstream, "tls")
	diff("secret changed", tls, edit(tls, func(r *configv1.Resource) { r.GetUpstream().Tls.PrivateKey = "do-not-print-me" }))
	diff("secret with its message", edit(tls, func(r *configv1.Resource) { r.GetUpstream().Tls = nil }), tls)
	diff("secret created", nil, at(KindIssuer, "others"))
	diff("deleted", at(KindApplication, "web"), nil)
	if strings.Contains(b.String(), "do-not-print-me") || strings.Contains(b.String(), "AAAA\"") {
		t.Error("a secret is shown")
	}
	golden(t, "diff.txt", b.String())
}

func TestRedact(t *testing.T) {
	for _, r := range decode(t, everything[len("\n---\n"):]) {
		was := proto.Clone(r)
		redacted := Redact(r)
		if !proto.Equal(r, was) {
			t.Error("Redact changed its input")
		}
		if redacted.GetUpstream().GetTls().GetPrivateKey() != "" || redacted.GetIssuer().GetHmacSecret() != "" || redacted.GetCertificate().GetPrivateKey() != "" {
			t.Errorf("%s still has its secret", KeyOf(r))
		}
		if r.GetUpstream() == nil && r.GetIssuer() == nil && r.GetCertificate() == nil && !proto.Equal(r, redacted) {
			t.Errorf("%s lost more than secrets", KeyOf(r))
		}
	}
}

func TestCheckCredential(t *testing.T) {
	c, err := Check(decode(t, "apiVersion: portcullis.dev/v1\nkind: Application\nmetadata: {name: web}\nspec: {scopes: [a, b]}"))
	if err != nil {
		t.Fatal(err)
	}
	good := &configv1.Resource{Metadata: &configv1.Metadata{Name: "k"}, Spec: &configv1.Resource_Credential{Credential: &configv1.Credential{
		Application: "web", Scopes: []string{"a"}, ExpiresAt: timestamppb.Now(),
		Kind: &configv1.Credential_ApiKey{ApiKey: &configv1.APIKeyCredential{Sha256: make([]byte, 32), Hint: "pc_abc"}},
	}}}
	if err := CheckCredential(c, good); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*configv1.Resource){
		"does not exist":          func(r *configv1.Resource) { r.GetCredential().Application = "other" },
		"in workspace \"w\"":      func(r *configv1.Resource) { r.Metadata.Workspace = "w" },
		"not a scope of":          func(r *configv1.Resource) { r.GetCredential().Scopes = []string{"a", "c"} },
		"expected the 32":         func(r *configv1.Resource) { r.GetCredential().GetApiKey().Sha256 = []byte{1} },
		"is empty":                func(r *configv1.Resource) { r.GetCredential().Kind = nil },
		"is not a time":           func(r *configv1.Resource) { r.GetCredential().ExpiresAt.Nanos = -1 },
		"metadata.name":           func(r *configv1.Resource) { r.Metadata.Name = "K" },
		"expected \"Credential\"": func(r *configv1.Resource) { r.Spec = &configv1.Resource_Application{} },
	} {
		r := proto.Clone(good).(*configv1.Resource)
		spoil(r)
		if err := CheckCredential(c, r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
}

func certificate(t *testing.T, until time.Time) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "up"}, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func TestUpstreamTLSAndAdvice(t *testing.T) {
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	cert, key := certificate(t, now.Add(time.Hour))
	old, _ := certificate(t, now.Add(-time.Hour))
	up := &configv1.Resource{Metadata: &configv1.Metadata{Name: "up"}, Spec: &configv1.Resource_Upstream{Upstream: &configv1.Upstream{
		Endpoints: []*configv1.Endpoint{{Url: "https://a"}},
		Tls:       &configv1.UpstreamTLS{Ca: old, Certificate: cert, PrivateKey: key},
	}}}
	if _, err := Check([]*configv1.Resource{up}); err != nil {
		t.Fatal(err)
	}
	said := Problems(Advise([]*configv1.Resource{up}, now)).Error()
	if !strings.Contains(said, "has expired on 2026-05-31") || !strings.Contains(said, "expires on 2026-06-01") {
		t.Error(said)
	}
	_, other := certificate(t, now)
	up.GetUpstream().Tls.PrivateKey = other
	if _, err := Check([]*configv1.Resource{up}); err == nil || !strings.Contains(err.Error(), "belongs to privateKey") {
		t.Error(err)
	}
	rs := decode(t, shop)
	hints := Problems(Advise(rs[len(rs)-1:], now)).Error()
	if !strings.Contains(hints, "'x-tenant' in request.headers") || !strings.Contains(hints, "has(auth.claims.tenant)") {
		t.Error(hints)
	}
}

func TestRivalsAreBounded(t *testing.T) {
	rs := decode(t, "apiVersion: portcullis.dev/v1\nkind: Upstream\nmetadata: {name: up}\nspec: {endpoints: [{url: http://a}]}")
	for i := range 3000 {
		rs = append(rs, &configv1.Resource{Metadata: &configv1.Metadata{Name: fmt.Sprint("r", i)}, Spec: &configv1.Resource_Route{Route: &configv1.Route{
			Public: true, Priority: int32(i), Backends: []*configv1.Backend{{Upstream: "up"}}}}})
	}
	start := time.Now()
	_, err := Check(rs)
	if err == nil || !strings.Contains(err.Error(), "more than 64 matches") {
		t.Errorf("%.200v", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
}
