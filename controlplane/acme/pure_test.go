package acme

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/mholt/acmez/v3/acme"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

func selfSigned(t testing.TB, from, to time.Time, hosts ...string) (string, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: to, DNSNames: hosts}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), key
}

func TestVet(t *testing.T) {
	now := time.Now()
	chain, key := selfSigned(t, now.Add(-time.Hour), now.Add(time.Hour), "a.example", "b.example")
	_, other := selfSigned(t, now, now.Add(time.Hour))
	secret := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
	got, leaf, err := vet([]byte("preamble\n"+secret+chain+"rest"), key, []string{"a.example", "b.example"}, now)
	if err != nil || got != chain || leaf == nil {
		t.Errorf("%q, %v: want the chain alone", got, err)
	}
	for name, bad := range map[string]struct {
		answer string
		key    *ecdsa.PrivateKey
		host   string
		at     time.Time
	}{
		"empty": {"", key, "a.example", now}, "no certificate": {secret, key, "a.example", now},
		"another key": {chain, other, "a.example", now}, "another name": {chain, key, "c.example", now},
		"expired": {chain, key, "a.example", now.Add(2 * time.Hour)}, "huge": {strings.Repeat(chain, 200), key, "a.example", now},
		"not one": {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})), key, "a.example", now},
	} {
		if _, _, err := vet([]byte(bad.answer), bad.key, []string{bad.host}, bad.at); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestDue(t *testing.T) {
	now := time.Now()
	spec := &configv1.ACME{Hostnames: []string{"a.example"}, TermsAgreed: true}
	later := timestamppb.New(now.Add(time.Hour))
	for name, c := range map[string]struct {
		issued *configv1.IssuedCertificate
		want   time.Duration
	}{
		"never ordered":      {nil, 0},
		"ordered for others": {&configv1.IssuedCertificate{Ordered: &configv1.ACME{Hostnames: []string{"b.example"}}, RefreshAt: later}, 0},
		"ordered":            {&configv1.IssuedCertificate{Ordered: proto.CloneOf(spec), RefreshAt: later}, time.Hour},
		"broken off":         {&configv1.IssuedCertificate{Challenges: []*configv1.ACMEChallenge{{}}}, 0},
	} {
		if got := New(Config{}).due(Source{Certificate: &configv1.Certificate{Acme: spec}, Issued: c.issued}, now); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestFailuresBackOff(t *testing.T) {
	k := New(Config{})
	now := time.Now()
	source := Source{Certificate: &configv1.Certificate{Acme: &configv1.ACME{Hostnames: []string{"a.example"}}}}
	source.Issued = &configv1.IssuedCertificate{Certificate: "chain", PrivateKey: "key", Challenges: []*configv1.ACMEChallenge{{Token: "t"}}}
	for i := range 20 {
		source.Issued = k.failed(source, errors.New("no"), now)
		want := min(5*time.Minute<<i, maxBackoff)
		got := source.Issued.RefreshAt.AsTime().Sub(now)
		if got < want*4/5-time.Second || got > want*6/5+time.Second {
			t.Fatalf("after %d failures %s, want about %s", i+1, got, want)
		}
	}
	if source.Issued.Certificate != "chain" || source.Issued.PrivateKey != "key" || source.Issued.Failures != 20 || source.Issued.Challenges != nil {
		t.Errorf("written as %v", source.Issued)
	}
	// Another order starts anew, and an authority that is asked too often is left alone.
	source.Certificate = &configv1.Certificate{Acme: &configv1.ACME{Hostnames: []string{"b.example"}}}
	anew := k.failed(source, fmt.Errorf("order: %w", acme.Problem{Type: acme.ProblemTypeRateLimited}), now)
	if wait := anew.RefreshAt.AsTime().Sub(now); anew.Failures != 1 || wait < rateLimited*4/5-time.Second {
		t.Errorf("%d failures, again in %s", anew.Failures, wait)
	}
}

func TestExplainIsOneBoundedLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := explain(errors.New(rapid.String().Draw(t, "text") + strings.Repeat(rapid.String().Draw(t, "more"), 200)))
		if len(text) > maxProblem || !utf8.ValidString(text) || strings.ContainsAny(text, "\n\r\t\x00\x1b") {
			t.Fatalf("%q", text)
		}
	})
	problem := acme.Problem{Status: 403, Type: acme.ProblemTypeUnauthorized, Detail: "got 404\nfrom the host"}
	if got := explain(fmt.Errorf("shop.example: %w", problem)); got != "shop.example: HTTP 403 unauthorized - got 404 from the host" {
		t.Errorf("%q", got)
	}
}

type answers func(*http.Request) *http.Response

func (a answers) RoundTrip(r *http.Request) (*http.Response, error) { return a(r), nil }

func TestGuardKeepsToTheDirectoryAndToBounds(t *testing.T) {
	body := "ok"
	g := &guard{host: "ca.example", base: answers(func(*http.Request) *http.Response {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body))}
	})}
	get := func(raw string) error {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := g.RoundTrip(&http.Request{URL: u})
		if err != nil {
			return err
		}
		got, err := io.ReadAll(resp.Body)
		if err == nil && string(got) != body {
			return fmt.Errorf("read %d bytes of %d", len(got), len(body))
		}
		return err
	}
	for _, good := range []string{"https://ca.example/new", "https://CA.example:443/new"} {
		if err := get(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"http://ca.example/", "https://other.example/", "https://ca.example:8443/", "https://169.254.169.254/", "file:///etc/passwd"} {
		if get(bad) == nil {
			t.Errorf("%s was asked", bad)
		}
	}
	body = strings.Repeat("x", maxAnswer)
	if err := get("https://ca.example/"); err != nil {
		t.Error(err)
	}
	body += "x"
	if err := get("https://ca.example/"); err == nil {
		t.Error("an endless answer was read")
	}
	g.made.Store(maxRequests)
	if err := get("https://ca.example/"); err == nil || !strings.Contains(err.Error(), "requests") {
		t.Errorf("%v", err)
	}
}

func TestConnectRefusesWhatIsNoDirectory(t *testing.T) {
	o := &order{Keeper: New(Config{})}
	for _, bad := range []string{"http://ca.example/", "https:///x", "https://u:p@ca.example/", "https://ca.example/#x", "ca.example", "%"} {
		if _, _, err := o.connect(&configv1.ACME{Directory: bad}); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
	if _, _, err := o.connect(&configv1.ACME{Ca: "no PEM"}); err == nil {
		t.Error("no PEM was taken")
	}
	// The library's memory of directories is kept apart by whom each trusts.
	ca, _ := selfSigned(t, time.Now(), time.Now().Add(time.Hour))
	own, idle, err := o.connect(&configv1.ACME{})
	if err != nil {
		t.Fatal(err)
	}
	idle()
	private, idle, err := o.connect(&configv1.ACME{Ca: ca})
	if err != nil {
		t.Fatal(err)
	}
	idle()
	if own.Directory == private.Directory || !strings.HasPrefix(own.Directory, letsEncrypt) {
		t.Errorf("%s and %s", own.Directory, private.Directory)
	}
}

func TestWellFormed(t *testing.T) {
	for token, want := range map[string]bool{
		"DGyRejmCefe7v4NfDGDKfA": true, "evaGxfADs6pSRb2LAv9IZf17Dt3juxGJ-PCt92wr-oA": true,
		"": false, "short": false, "../../../../etc/passwd-xx": false, "DGyRejmCefe7v4NfDGDKf%": false, strings.Repeat("a", 257): false,
	} {
		if wellFormed(token) != want {
			t.Errorf("%q: %v", token, !want)
		}
	}
}

func TestAccountsAreAWorkspacesOwn(t *testing.T) {
	spec := &configv1.ACME{Email: "a@b.example"}
	names := map[string]bool{
		accountName("a", spec): true, accountName("b", spec): true,
		accountName("a", &configv1.ACME{Email: "c@b.example"}):                                   true,
		accountName("a", &configv1.ACME{Email: "a@b.example", Ca: "x"}):                          true,
		accountName("a", &configv1.ACME{Email: "a@b.example", Directory: "https://ca.example/"}): true,
		accountName("a", &configv1.ACME{Email: "a@b.example", Hostnames: []string{"x.example"}}): true,
		accountName("a", &configv1.ACME{Email: "a@b.example", Directory: letsEncrypt}):           true,
	}
	if len(names) != 5 {
		t.Errorf("%d accounts, want 5: %v", len(names), names)
	}
}

func resource(name string, spec any) *configv1.Resource {
	r := &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "default", Name: name}}
	switch spec := spec.(type) {
	case *configv1.Certificate:
		r.Spec = &configv1.Resource_Certificate{Certificate: spec}
	case *configv1.IssuedCertificate:
		r.Spec = &configv1.Resource_IssuedCertificate{IssuedCertificate: spec}
	case *configv1.Workspace:
		r.Spec, r.Metadata.Workspace = &configv1.Resource_Workspace{Workspace: spec}, ""
	}
	return r
}

func TestCompleteTakesAwayWhatNoCertificateAsksFor(t *testing.T) {
	current, err := config.Check([]*configv1.Resource{resource("default", &configv1.Workspace{}), resource("site", &configv1.IssuedCertificate{Problem: "none"})})
	if err != nil {
		t.Fatal(err)
	}
	deletes := func(kind, name string) *adminv1.Change {
		return &adminv1.Change{Deletes: []*controlv1.ResourceKey{{Kind: kind, Workspace: "default", Name: name}}}
	}
	upsert := func(name string, spec *configv1.Certificate) *adminv1.Change {
		return &adminv1.Change{Upserts: []*configv1.Resource{resource(name, spec)}}
	}
	for name, c := range map[string]struct {
		change *adminv1.Change
		want   int
	}{
		"deleted": {deletes("Certificate", "site"), 2}, "another": {deletes("Certificate", "other"), 1}, "another kind": {deletes("Route", "site"), 1},
		"given now": {upsert("site", &configv1.Certificate{Certificate: "x"}), 1}, "others given": {upsert("other", &configv1.Certificate{Certificate: "x"}), 0},
		"still by ACME": {upsert("site", &configv1.Certificate{Acme: &configv1.ACME{}}), 0},
	} {
		before := proto.CloneOf(c.change)
		full := Complete(c.change, current)
		if len(full.Deletes) != c.want || !proto.Equal(before, c.change) {
			t.Errorf("%s: %v", name, full.Deletes)
		}
	}
}

func TestExpiryIsToldOnceADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var warns, fails int
		log := slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.LevelKey {
				switch a.Value.Any() {
				case slog.LevelWarn:
					warns++
				case slog.LevelError:
					fails++
				}
			}
			return a
		}}))
		items := store.NewMemory()
		defer func() { _ = items.Close() }()
		keepers := []*Keeper{New(Config{Locks: items.Items("locks"), Log: log}), New(Config{Locks: items.Items("locks"), Log: log})}
		now := time.Now()
		chain, _ := selfSigned(t, now, now.Add(90*24*time.Hour), "a.example")
		given := Source{Key: key, Certificate: &configv1.Certificate{Certificate: chain}}
		obtained := Source{Key: config.Key{Kind: key.Kind, Workspace: "shop", Name: "other"}, Certificate: &configv1.Certificate{Acme: &configv1.ACME{}},
			Issued: &configv1.IssuedCertificate{Certificate: chain}}
		look := func() {
			for _, k := range keepers {
				k.look(t.Context(), []Source{given, obtained}, time.Now())
			}
		}
		look()
		if warns+fails > 0 {
			t.Error("told of a new certificate")
		}
		time.Sleep(80 * 24 * time.Hour)
		for range 10 {
			look()
		}
		if warns != 2 || fails != 0 {
			t.Errorf("%d warnings and %d errors, want one warning for each", warns, fails)
		}
		time.Sleep(11 * 24 * time.Hour)
		look()
		if warns != 2 || fails != 2 {
			t.Errorf("%d warnings and %d errors, want an error for each", warns, fails)
		}
	})
}
