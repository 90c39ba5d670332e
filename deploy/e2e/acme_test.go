package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/controlplane"
	"portcullis.dev/portcullis/controlplane/acme/acmetest"
	"portcullis.dev/portcullis/deploy/cluster"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// site is a Certificate by ACME, a socket that shows it, and a route behind it.
const site = `
apiVersion: portcullis.dev/v1
kind: Certificate
metadata: {name: site}
spec:
  acme: {directory: %q, email: ops@shop.example, hostnames: [%s], termsAgreed: true, ca: %q}
---
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec:
  listeners: [{name: http}, {name: https, tls: {certificates: [site]}}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: open}
spec: {public: true, matches: [{path: {prefix: /open}}], backends: [{upstream: up}]}
`

// startWithAuthority runs two nodes with sockets in clear text and with TLS, and an
// authority that looks at the first one.
func startWithAuthority(t *testing.T, lifetime time.Duration) (*harness, *acmetest.Authority) {
	t.Helper()
	h := start(t, cluster.Config{
		Nodes: 2, Sockets: map[string]string{"http": "127.0.0.1:0", "https": "127.0.0.1:0"},
		ACME: controlplane.ACME{AllowLoopback: true, Backoff: 200 * time.Millisecond},
	})
	_, port, err := net.SplitHostPort(h.Addresses()[0])
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return h, acmetest.Start(t, number, lifetime)
}

// leaf returns the certificate that node i shows for a name, verified.
func (h *harness) leaf(i int, host string, roots *x509.CertPool) (*x509.Certificate, error) {
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: patience}, Config: &tls.Config{ServerName: host, RootCAs: roots}}
	conn, err := dialer.DialContext(h.t.Context(), "tcp", h.Sockets()[i]["https"])
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// certificate returns the status of the one certificate.
func (h *harness) certificate() (*adminv1.CertificateStatus, error) {
	resp, err := h.admin.Status(h.t.Context(), &adminv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	if len(resp.Certificates) != 1 {
		return nil, fmt.Errorf("%d certificates", len(resp.Certificates))
	}
	return resp.Certificates[0], nil
}

// From `apply` to a handshake: both nodes show the one certificate that the control
// plane has obtained, and the private key is nowhere to be read.
func TestCertificateByACME(t *testing.T) {
	h, authority := startWithAuthority(t, 90*24*time.Hour)
	h.apply(fmt.Sprintf(site, authority.Directory, "api.shop.example, www.shop.example", authority.CA))
	var shown [2]*x509.Certificate
	for i := range shown {
		h.until("a handshake", func() (err error) {
			shown[i], err = h.leaf(i, "www.shop.example", authority.Roots)
			return err
		})
	}
	if !shown[0].Equal(shown[1]) || len(shown[0].DNSNames) != 2 {
		t.Errorf("the nodes show %v and %v", shown[0].DNSNames, shown[1].DNSNames)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{ServerName: "api.shop.example", RootCAs: authority.Roots}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("https://" + h.Sockets()[1]["https"] + "/open/x")
	if err != nil {
		t.Fatal(err)
	}
	if _ = resp.Body.Close(); resp.StatusCode != 200 {
		t.Errorf("answered %d", resp.StatusCode)
	}
	status, err := h.certificate()
	if err != nil || status.Problem != "" || status.Ordering || status.ExpiresAt == nil || !status.RefreshAt.AsTime().Before(status.ExpiresAt.AsTime()) {
		t.Errorf("status %v, %v", status, err)
	}
	got, err := h.admin.Get(t.Context(), &adminv1.GetRequest{Kind: "IssuedCertificate", Name: "site"})
	if err != nil {
		t.Fatal(err)
	}
	if issued := got.Resource.GetIssuedCertificate(); strings.Contains(issued.PrivateKey, "KEY") || len(issued.Challenges) > 0 || issued.Certificate == "" {
		t.Errorf("reads as %v", issued)
	}
	// Each write is in the history, by the control plane.
	history, err := h.admin.History(t.Context(), &adminv1.HistoryRequest{Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	for i, reason := range []string{"acme: issued", "acme: challenges"} {
		if e := history.Entries[i]; e.Author != "system" || e.Reason != reason || strings.Contains(e.String(), "PRIVATE KEY") {
			t.Errorf("history has %v, want %s", e, reason)
		}
	}
	// Challenges of the past are answered no more; a route may have the path.
	if a := h.get(0, "/.well-known/acme-challenge/"+strings.Repeat("a", 43)); a.Status != 404 {
		t.Errorf("an unknown challenge is answered with %d", a.Status)
	}
	// What belongs to a Certificate goes with it, in one revision.
	change := documents(t, `{apiVersion: portcullis.dev/v1, kind: Gateway, metadata: {name: default}, spec: {listeners: [{name: http}]}}`)
	change.Deletes = []*controlv1.ResourceKey{{Kind: "Certificate", Workspace: "default", Name: "site"}}
	if _, err := h.admin.Apply(t.Context(), &adminv1.ApplyRequest{Change: change}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.admin.Get(t.Context(), &adminv1.GetRequest{Kind: "IssuedCertificate", Name: "site"}); err == nil {
		t.Error("what was issued outlives its Certificate")
	}
}

// An order that cannot succeed says why, is tried again at growing distances, and
// the next that can does.
func TestCertificateByACMEThatFails(t *testing.T) {
	h, authority := startWithAuthority(t, 90*24*time.Hour)
	h.apply(fmt.Sprintf(site, authority.Directory, "nowhere.example", authority.CA))
	h.until("two failures", func() error {
		status, err := h.certificate()
		if err == nil && (status.Failures < 2 || !strings.Contains(status.Problem, "nowhere.example")) {
			err = fmt.Errorf("%d failures: %s", status.Failures, status.Problem)
		}
		return err
	})
	if _, err := h.leaf(0, "nowhere.example", authority.Roots); err == nil {
		t.Error("a socket without certificate shakes hands")
	}
	h.apply(fmt.Sprintf(site, authority.Directory, "api.shop.example", authority.CA))
	h.until("a handshake", func() error { _, err := h.leaf(0, "api.shop.example", authority.Roots); return err })
}
