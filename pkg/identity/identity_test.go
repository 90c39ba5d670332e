package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newCA(t testing.TB, now time.Time) *CA {
	t.Helper()
	ca, err := NewCA(now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// member is a live identity that the CA has signed.
func member(t testing.TB, ca *CA, role Role, name string, now time.Time, hosts ...string) *Live {
	t.Helper()
	id := Identity{role, name}
	key, csr, err := NewRequest(id, hosts...)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.Issue(csr, id, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLive(State{Key: key, Issued: issued})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func leafOf(t testing.TB, l *Live) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(l.State().Certificates[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestParseURI(t *testing.T) {
	for uri, want := range map[string]Identity{
		"spiffe://portcullis/dataplane/edge-1":                     {Dataplane, "edge-1"},
		"spiffe://portcullis/controlplane/cp.eu":                   {Controlplane, "cp.eu"},
		"spiffe://portcullis/dataplane/":                           {},
		"spiffe://portcullis/dataplane/Edge":                       {},
		"spiffe://portcullis/dataplane/-edge":                      {},
		"spiffe://portcullis/dataplane/a/b":                        {},
		"spiffe://portcullis/dataplane/a?x":                        {},
		"spiffe://portcullis/dataplane/a%2fb":                      {},
		"spiffe://portcullis/admin/a":                              {},
		"spiffe://other/dataplane/a":                               {},
		"SPIFFE://portcullis/dataplane/a":                          {},
		"https://portcullis/dataplane/a":                           {},
		"spiffe://portcullis:1/dataplane/a":                        {},
		"spiffe://x@portcullis/dataplane/a":                        {},
		"":                                                         {},
		"spiffe://portcullis/dataplane/" + strings.Repeat("a", 64): {},
	} {
		got, err := ParseURI(uri)
		if ok := want != (Identity{}); ok != (err == nil) || ok && got != want {
			t.Errorf("%q: %v, %v", uri, got, err)
		}
		if err == nil && got.String() != uri {
			t.Errorf("%q comes back as %q", uri, got)
		}
		if err != nil && !errors.Is(err, ErrIdentity) {
			t.Errorf("%q: %v is not ErrIdentity", uri, err)
		}
	}
}

func TestIssue(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	node := leafOf(t, member(t, ca, Dataplane, "n1", now, "evil.example", "127.0.0.1"))
	if len(node.DNSNames)+len(node.IPAddresses) != 0 {
		t.Errorf("a node got host names: %v %v", node.DNSNames, node.IPAddresses)
	}
	if fmt.Sprint(node.ExtKeyUsage) != fmt.Sprint([]x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("a node may %v", node.ExtKeyUsage)
	}
	if node.IsCA || len(node.URIs) != 1 || node.URIs[0].String() != "spiffe://portcullis/dataplane/n1" {
		t.Errorf("node certificate: CA %v, URIs %v", node.IsCA, node.URIs)
	}
	if d := node.NotAfter.Sub(node.NotBefore); d != DefaultLifetime+ClockSkew {
		t.Errorf("holds for %v", d)
	}
	cp := leafOf(t, member(t, ca, Controlplane, "c1", now, "cp.example", "127.0.0.1"))
	if fmt.Sprint(cp.DNSNames, cp.IPAddresses) != "[cp.example] [127.0.0.1]" {
		t.Errorf("control plane is %v %v", cp.DNSNames, cp.IPAddresses)
	}
}

func TestIssueRefuses(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	id := Identity{Dataplane, "n1"}
	_, good, err := NewRequest(id)
	if err != nil {
		t.Fatal(err)
	}
	request := func(key crypto.Signer) []byte {
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		return csr
	}
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	for name, c := range map[string]struct {
		csr      []byte
		id       Identity
		lifetime time.Duration
	}{
		"no request":       {nil, id, 0},
		"forged signature": {forged, id, 0},
		"RSA":              {request(rsaKey), id, 0},
		"P-224":            {request(p224), id, 0},
		"huge":             {make([]byte, maxRequest+1), id, 0},
		"no name":          {good, Identity{Role: Dataplane}, 0},
		"unknown role":     {good, Identity{"root", "x"}, 0},
		"too long":         {good, id, MaxLifetime + 1},
		"negative":         {good, id, -1},
	} {
		if _, err := ca.Issue(c.csr, c.id, c.lifetime, now); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if got, err := RequestedIdentity(good); err != nil || got != id {
		t.Errorf("asked for %v, %v", got, err)
	}
	if _, err := RequestedIdentity(request(p224)); err == nil {
		t.Error("a request without a name names someone")
	}
}

func TestRotation(t *testing.T) {
	now := time.Now()
	ca := newCA(t, now)
	before := member(t, ca, Dataplane, "n1", now)
	next, err := ca.Rotate(now, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(next.Authorities()) != 2 || len(ca.Authorities()) != 1 {
		t.Fatal("the new CA must trust two, the old one is unchanged")
	}
	if _, err := next.Rotate(now.Add(time.Hour), 0); err == nil {
		t.Error("a second rotation before the first one counts")
	}
	during := member(t, next, Dataplane, "n2", now.Add(23*time.Hour))
	after := member(t, next, Dataplane, "n3", now.Add(25*time.Hour))
	signer := func(l *Live) string { return string(l.State().Certificates[1]) }
	if signer(before) != signer(during) || signer(during) == signer(after) {
		t.Error("the new authority signs too early or not at all")
	}
	// A member that has learnt of the new authority knows certificates of both.
	if err := verify([]*x509.Certificate{leafOf(t, after)}, during.cur.Load().roots, x509.ExtKeyUsageClientAuth, now.Add(26*time.Hour)); err != nil {
		t.Error(err)
	}
	if err := verify([]*x509.Certificate{leafOf(t, before)}, after.cur.Load().roots, x509.ExtKeyUsageClientAuth, now.Add(23*time.Hour)); err != nil {
		t.Error(err)
	}
	third, err := next.Rotate(now.Add(48*time.Hour), 0)
	if err != nil || len(third.Authorities()) != 3 {
		t.Fatalf("%d authorities, %v", len(third.Authorities()), err)
	}
	fourth, err := third.Rotate(now.Add(48*time.Hour+MaxLifetime), 0)
	if err != nil || len(fourth.Authorities()) != 3 {
		t.Errorf("%d authorities, %v: the oldest signs nothing that still holds", len(fourth.Authorities()), err)
	}
}

func TestRotationIsBounded(t *testing.T) {
	now := time.Now()
	ca, rotations := newCA(t, now), 0
	var err error
	for next := ca; err == nil; rotations++ {
		ca = next
		now = now.Add(25 * time.Hour)
		next, err = ca.Rotate(now, 0)
	}
	if len(ca.Authorities()) != maxPins {
		t.Errorf("%d authorities after %d rotations: %v", len(ca.Authorities()), rotations, err)
	}
	if _, err := NewJoinToken(ca.Pins()); err != nil {
		t.Error(err)
	}
}

func TestCABytes(t *testing.T) {
	now := time.Now()
	ca, err := newCA(t, now).Rotate(now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	data, err := ca.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseCA(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := back.Marshal()
	if err != nil || !bytes.Equal(data, again) {
		t.Error("does not round-trip")
	}
	if back.signer(now.Add(2 * time.Hour)).cert.Equal(back.signer(now).cert) {
		t.Error("forgot when the new authority signs")
	}
	other, _ := newCA(t, now).Marshal()
	cut := bytes.Index(data, []byte(`"key":"`))
	for name, bad := range map[string][]byte{
		"empty":         nil,
		"no authority":  []byte(`{"authorities":[]}`),
		"unknown field": []byte(`{"authorities":[],"x":1}`),
		"another's key": append(append(bytes.Clone(data[:cut]), other[bytes.Index(other, []byte(`"key":"`)):]...), ' '),
		"cut":           data[:len(data)/2],
		"key is no key": bytes.Replace(data, []byte(`"key":"`), []byte(`"key":"AAAA`), 1),
	} {
		if _, err := ParseCA(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestVersionSignatures(t *testing.T) {
	key, err := NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	stored, err := key.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if key, err = ParseSigningKey(stored); err != nil {
		t.Fatal(err)
	}
	other, _ := NewSigningKey()
	ders := make([][]byte, 2)
	for i, k := range []SigningKey{other, key} {
		if ders[i], err = k.Public(); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := ParseVerifyKeys(ders)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(rt *rapid.T) {
		e, r := rapid.Uint64().Draw(rt, "epoch"), rapid.Int64().Draw(rt, "revision")
		digest := rapid.SliceOf(rapid.Byte()).Draw(rt, "digest")
		sig := key.SignVersion(e, r, digest)
		if err := keys.VerifyVersion(e, r, digest, sig); err != nil {
			rt.Fatal(err)
		}
		for _, err := range []error{
			keys.VerifyVersion(e+1, r, digest, sig),
			keys.VerifyVersion(e, r+1, digest, sig),
			keys.VerifyVersion(e, r, append(digest, 0), sig),
			keys.VerifyVersion(e, r, digest, sig[1:]),
			keys[:1].VerifyVersion(e, r, digest, sig),
		} {
			if !errors.Is(err, ErrSignature) {
				rt.Fatalf("accepted: %v", err)
			}
		}
	})
	if _, err := ParseVerifyKeys(nil); err == nil {
		t.Error("no keys accepted")
	}
	if _, err := ParseVerifyKeys([][]byte{stored}); err == nil {
		t.Error("a private key accepted as a public one")
	}
	if s := fmt.Sprintf("%v %#v %s %x", key, key, key, key); strings.TrimSpace(strings.ReplaceAll(s, "(secret)", "")) != "" {
		t.Errorf("prints %s", s)
	}
}
