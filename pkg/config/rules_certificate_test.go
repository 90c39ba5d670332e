package config

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"
	"google.golang.org/protobuf/proto"

	"portcullis.dev/portcullis/pkg/identity/certtest"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// locally returns what local rules say of a resource.
func locally(r *configv1.Resource) string {
	if r.Metadata == nil {
		r.Metadata = &configv1.Metadata{Workspace: DefaultWorkspace, Name: "default"}
	}
	report := report{key: KeyOf(r)}
	report.local(r, proto.Size(r))
	return errText(report.problems.sorted())
}

func certificateOf(c *configv1.Certificate) *configv1.Resource {
	return &configv1.Resource{Spec: &configv1.Resource_Certificate{Certificate: c}}
}

func says(t *testing.T, what, said, want string) {
	t.Helper()
	if want == "" && said != "" || !strings.Contains(said, want) {
		t.Errorf("%s: %q; want %q", what, said, want)
	}
}

func TestCertificate(t *testing.T) {
	root := certtest.New(t, "root")
	below := root.Intermediate(t, "below")
	hosts := []string{"shop.example", "*.shop.example"}
	good := below.Issue(t, certtest.Spec{Hosts: hosts})
	other := below.Issue(t, certtest.Spec{Hosts: hosts})
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curve := func(c elliptic.Curve) *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	alone := func(s certtest.Spec) certtest.Pair { return root.Issue(t, s) }
	past := time.Now().Add(-time.Hour)
	for what, c := range map[string]struct {
		cert, key, want string
	}{
		"good":            {good.CertPEM, good.KeyPEM, ""},
		"with the root":   {good.CertPEM + root.CertPEM, good.KeyPEM, ""},
		"rsa":             {alone(certtest.Spec{Hosts: hosts, Key: weak}).CertPEM, pairKey(t, weak), ""},
		"ed25519":         {alone(certtest.Spec{Hosts: hosts, Key: edwards}).CertPEM, pairKey(t, edwards), ""},
		"expired":         {alone(certtest.Spec{Hosts: hosts, Key: edwards, NotAfter: past, NotBefore: past.Add(-time.Hour)}).CertPEM, pairKey(t, edwards), ""},
		"p521":            {alone(certtest.Spec{Hosts: hosts, Key: curve(elliptic.P521())}).CertPEM, good.KeyPEM, "weak or unusual key"},
		"another key":     {good.CertPEM, other.KeyPEM, "belongs to privateKey"},
		"root first":      {root.CertPEM + good.CertPEM, good.KeyPEM, "names no host"},
		"a stranger":      {good.CertPEM + certtest.New(t, "x").CertPEM, good.KeyPEM, `certificate 3 ("CN=x") certifies none`},
		"nonsense":        {"x", good.KeyPEM, "holds no certificate"},
		"no names":        {alone(certtest.Spec{Name: "shop.example", Key: edwards}).CertPEM, pairKey(t, edwards), "names no host"},
		"NUL in a name":   {alone(certtest.Spec{Hosts: []string{"shop.example\x00.evil"}, Key: edwards}).CertPEM, pairKey(t, edwards), "printable ASCII"},
		"of a client":     {alone(certtest.Spec{Hosts: hosts, Key: edwards, Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}).CertPEM, pairKey(t, edwards), "not for servers"},
		"key in the PEM":  {good.CertPEM + good.KeyPEM, good.KeyPEM, "holds a private key"},
		"no key":          {good.CertPEM, "", "spec.privateKey: is missing"},
		"no certificate":  {"", good.KeyPEM, "spec.certificate: is missing"},
		"nothing":         {"", "", "expected certificate and privateKey, or acme"},
		"text afterwards": {good.CertPEM + "x", good.KeyPEM, "text after"},
		"long":            {good.CertPEM + strings.Repeat(root.CertPEM, 16), good.KeyPEM, "has 18 certificates"},
	} {
		said := locally(certificateOf(&configv1.Certificate{Certificate: c.cert, PrivateKey: c.key}))
		says(t, what, said, c.want)
		if strings.Contains(said, "MIG") || strings.Contains(said, "MC4") {
			t.Errorf("%s: holds key material: %s", what, said)
		}
	}
	r := certificateOf(&configv1.Certificate{Certificate: good.CertPEM, PrivateKey: good.KeyPEM})
	r.Metadata = &configv1.Metadata{Workspace: "shop", Name: "c"}
	says(t, "another workspace", locally(r), `has no effect in workspace "shop"`)
}

func pairKey(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return "-----BEGIN PRIVATE KEY-----\n" + base64.StdEncoding.EncodeToString(der) + "\n-----END PRIVATE KEY-----\n"
}

func TestOCSP(t *testing.T) {
	now := time.Now()
	root := certtest.New(t, "root")
	below := root.Intermediate(t, "below")
	hosts := []string{"shop.example"}
	good, other := below.Issue(t, certtest.Spec{Hosts: hosts}), below.Issue(t, certtest.Spec{Hosts: hosts})
	alone := root.Issue(t, certtest.Spec{Hosts: hosts})
	for what, c := range map[string]struct {
		pair certtest.Pair
		der  []byte
		want string
	}{
		"good":          {good, below.Staple(t, good.Cert, ocsp.Good, now, now.Add(time.Hour)), ""},
		"old":           {good, below.Staple(t, good.Cert, ocsp.Good, now.Add(-2*time.Hour), now.Add(-time.Hour)), ""},
		"revoked":       {good, below.Staple(t, good.Cert, ocsp.Revoked, now, now.Add(time.Hour)), "does not say"},
		"unknown":       {good, below.Staple(t, good.Cert, ocsp.Unknown, now, now.Add(time.Hour)), "does not say"},
		"for another":   {good, below.Staple(t, other.Cert, ocsp.Good, now, now.Add(time.Hour)), "no response about"},
		"by another":    {good, root.Staple(t, good.Cert, ocsp.Good, now, now.Add(time.Hour)), "no response about"},
		"no issuer":     {alone, root.Staple(t, alone.Cert, ocsp.Good, now, now.Add(time.Hour)), "cannot be verified"},
		"not a reponse": {good, []byte("x"), "no response about"},
		"endless":       {good, make([]byte, maxOCSP+1), "expected base64 of at most"},
	} {
		says(t, what, locally(certificateOf(&configv1.Certificate{
			Certificate: c.pair.CertPEM, PrivateKey: c.pair.KeyPEM, OcspResponse: base64.StdEncoding.EncodeToString(c.der),
		})), c.want)
	}
}

func TestACME(t *testing.T) {
	pair := certtest.New(t, "root").Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})
	for what, c := range map[string]struct {
		spoil func(*configv1.Certificate)
		want  string
	}{
		"good":                 {func(*configv1.Certificate) {}, ""},
		"a certificate too":    {func(c *configv1.Certificate) { c.Certificate = pair.CertPEM }, "expected one of them"},
		"a staple":             {func(c *configv1.Certificate) { c.OcspResponse = "AAAA" }, "spec.ocspResponse: has no effect"},
		"plain http":           {func(c *configv1.Certificate) { c.Acme.Directory = "http://acme.example" }, "expected https"},
		"user information":     {func(c *configv1.Certificate) { c.Acme.Directory = "https://u:p@acme.example" }, "expected https"},
		"no hosts":             {func(c *configv1.Certificate) { c.Acme.Hostnames = nil }, "spec.acme.hostnames: is empty"},
		"a wildcard":           {func(c *configv1.Certificate) { c.Acme.Hostnames = []string{"*.shop.example"} }, "no wildcard"},
		"one label":            {func(c *configv1.Certificate) { c.Acme.Hostnames = []string{"localhost"} }, "public host name"},
		"an address":           {func(c *configv1.Certificate) { c.Acme.Hostnames = []string{"127.0.0.1"} }, "public host name"},
		"a host twice":         {func(c *configv1.Certificate) { c.Acme.Hostnames = []string{"a.example", "a.example"} }, "repeats"},
		"upper case":           {func(c *configv1.Certificate) { c.Acme.Hostnames = []string{"A.example"} }, "lower case"},
		"terms not agreed":     {func(c *configv1.Certificate) { c.Acme.TermsAgreed = false }, "terms of service"},
		"an odd address":       {func(c *configv1.Certificate) { c.Acme.Email = "ops" }, "expected name@host"},
		"several addresses":    {func(c *configv1.Certificate) { c.Acme.Email = "a,b@example.com" }, "expected name@host"},
		"no authority":         {func(c *configv1.Certificate) { c.Acme.Ca = "x" }, "spec.acme.ca"},
		"its own authority":    {func(c *configv1.Certificate) { c.Acme.Ca = pair.CertPEM }, ""},
		"two of these at once": {func(c *configv1.Certificate) { c.Acme.TermsAgreed, c.Acme.Hostnames = false, nil }, "spec.acme.termsAgreed"},
	} {
		cert := &configv1.Certificate{Acme: &configv1.ACME{
			Directory: "https://acme.example/dir", Email: "ops@example.com", Hostnames: []string{"shop.example"}, TermsAgreed: true,
		}}
		c.spoil(cert)
		report := report{key: Key{KindCertificate, DefaultWorkspace, "c"}}
		report.certificate(cert)
		says(t, what, errText(report.problems.sorted()), c.want)
	}
}

func TestIssuedCertificate(t *testing.T) {
	pair := certtest.New(t, "root").Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})
	for what, c := range map[string]struct {
		spec *configv1.IssuedCertificate
		want string
	}{
		"nothing yet":     {&configv1.IssuedCertificate{Problem: "no answer"}, ""},
		"good":            {&configv1.IssuedCertificate{Certificate: pair.CertPEM, PrivateKey: pair.KeyPEM}, ""},
		"no key":          {&configv1.IssuedCertificate{Certificate: pair.CertPEM}, "spec.privateKey: is missing"},
		"a challenge":     {&configv1.IssuedCertificate{Challenges: []*configv1.ACMEChallenge{{Token: "a_-1", KeyAuthorization: "a_-1.b"}}}, ""},
		"a path":          {&configv1.IssuedCertificate{Challenges: []*configv1.ACMEChallenge{{Token: "../a", KeyAuthorization: "../a.b"}}}, "base64url"},
		"of another":      {&configv1.IssuedCertificate{Challenges: []*configv1.ACMEChallenge{{Token: "a", KeyAuthorization: "b.b"}}}, "keyAuthorization"},
		"of nobody":       {&configv1.IssuedCertificate{Challenges: []*configv1.ACMEChallenge{{Token: "a", KeyAuthorization: "a."}}}, "keyAuthorization"},
		"a token twice":   {&configv1.IssuedCertificate{Challenges: []*configv1.ACMEChallenge{{Token: "a", KeyAuthorization: "a.b"}, {Token: "a", KeyAuthorization: "a.b"}}}, "each token once"},
		"many challenges": {&configv1.IssuedCertificate{Challenges: make([]*configv1.ACMEChallenge, maxChallenges+1)}, "expected at most 100"},
	} {
		report := report{key: Key{KindIssuedCertificate, DefaultWorkspace, "c"}}
		report.issuedCertificate(c.spec)
		says(t, what, errText(report.problems.sorted()), c.want)
	}
}

func TestListeners(t *testing.T) {
	ca := certtest.New(t, "root")
	leaf := ca.Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})
	tls := func(names ...string) *configv1.ListenerTLS { return &configv1.ListenerTLS{Certificates: names} }
	clients := func(ca string) *configv1.ListenerTLS {
		return &configv1.ListenerTLS{Certificates: []string{"shop"}, ClientCertificates: &configv1.ClientCertificates{Ca: ca}}
	}
	for what, c := range map[string]struct {
		listeners []*configv1.Listener
		want      string
	}{
		"clear text and TLS": {[]*configv1.Listener{{Name: "http"}, {Name: "https", Tls: tls("shop")}}, ""},
		"a name twice":       {[]*configv1.Listener{{Name: "http"}, {Name: "http"}}, `"http" repeats listeners[0]`},
		"no name":            {[]*configv1.Listener{{}}, "spec.listeners[0].name: is missing"},
		"no certificates":    {[]*configv1.Listener{{Name: "https", Tls: tls()}}, "tls.certificates: is empty"},
		"one twice":          {[]*configv1.Listener{{Name: "https", Tls: tls("a", "a")}}, "repeats"},
		"http3 in the clear": {[]*configv1.Listener{{Name: "http", Http3: true}}, "http3: needs tls"},
		"clients":            {[]*configv1.Listener{{Name: "https", Tls: clients(ca.CertPEM)}}, ""},
		"of no authority":    {[]*configv1.Listener{{Name: "https", Tls: clients("")}}, "clientCertificates.ca: is missing"},
		"of something else":  {[]*configv1.Listener{{Name: "https", Tls: clients("x")}}, "holds no certificate"},
		"of a leaf":          {[]*configv1.Listener{{Name: "https", Tls: clients(leaf.CertPEM)}}, "is no certificate authority"},
		"many":               {make([]*configv1.Listener, maxListeners+1), "expected at most 64"},
	} {
		report := report{key: Key{KindGateway, DefaultWorkspace, "default"}}
		report.listeners(c.listeners)
		says(t, what, errText(report.problems.sorted()), c.want)
	}
}

// TestExpired: what has expired is refused when it is written, and is no reason
// against anything else.
func TestExpired(t *testing.T) {
	past := time.Now().Add(-time.Hour)
	ca := certtest.New(t, "root")
	old := ca.Issue(t, certtest.Spec{Hosts: []string{"shop.example"}, NotBefore: past.Add(-time.Hour), NotAfter: past})
	good := ca.Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})
	named := func(name string, p certtest.Pair) *configv1.Resource {
		r := certificateOf(&configv1.Certificate{Certificate: p.CertPEM, PrivateKey: p.KeyPEM})
		r.Metadata = &configv1.Metadata{Workspace: DefaultWorkspace, Name: name}
		return r
	}
	now := time.Now()
	says(t, "good", errText(Expired(Checked{}, Delta{Upserts: []*configv1.Resource{named("a", good)}}, now)), "")
	says(t, "old", errText(Expired(Checked{}, Delta{Upserts: []*configv1.Resource{named("a", old)}}, now)), "Certificate default/a: spec.certificate: certificate \"\" has expired on")
	c, err := Check([]*configv1.Resource{named("a", old)})
	if err != nil {
		t.Fatal(err)
	}
	// What was there when it expired stays.
	same := named("a", old)
	same.Metadata.Labels = map[string]string{"a": "b"}
	says(t, "unchanged", errText(Expired(c, Delta{Upserts: []*configv1.Resource{same}}, now)), "")
	says(t, "another", errText(Expired(c, Delta{Upserts: []*configv1.Resource{named("b", old)}}, now)), "Certificate default/b")
	if said := Problems(Advise([]*configv1.Resource{same}, now)).Error(); !strings.Contains(said, "has expired on") {
		t.Error(said)
	}
	if said := Problems(Advise([]*configv1.Resource{named("a", good)}, now)).Error(); !strings.Contains(said, "expires on") {
		t.Error(said)
	}
}
