package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/identity/certtest"
)

// gatewayHost is whom the certificate of a secure harness is for.
const gatewayHost = "gw.example"

// secured is a harness whose node also speaks TLS, HTTP/2 and HTTP/3, on the socket
// "https".
type secured struct {
	*harness
	ca *certtest.Authority
}

func startSecured(t *testing.T, cfg cluster.Config, documents string) *secured {
	t.Helper()
	cfg.Sockets = map[string]string{"http": "127.0.0.1:0", "https": "127.0.0.1:0"}
	s := &secured{start(t, cfg), certtest.New(t, "public")}
	pair := s.ca.Issue(t, certtest.Spec{Hosts: []string{gatewayHost}})
	s.apply(fmt.Sprintf(`
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec:
  listeners: [{name: http}, {name: https, http3: true, tls: {certificates: [shown]}}]
  limits: {maxBodyBytes: 20000000}
---
apiVersion: portcullis.dev/v1
kind: Certificate
metadata: {name: shown}
spec: {certificate: %q, privateKey: %q}
`, pair.CertPEM, pair.KeyPEM) + documents)
	return s
}

// https is where node 0 speaks TLS.
func (s *secured) https() string { return s.Sockets()[0]["https"] }

// protocol is one way to speak to a node.
type protocol struct {
	name, url string
	*http.Client
}

// protocols are all of them.
func (s *secured) protocols(t *testing.T) []protocol {
	trust := &tls.Config{RootCAs: s.ca.Pool(), ServerName: gatewayHost}
	at := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, s.https())
	}
	one, two := &http.Transport{TLSClientConfig: trust.Clone(), DialContext: at, DisableCompression: true}, &http.Transport{TLSClientConfig: trust.Clone(), DialContext: at, DisableCompression: true, ForceAttemptHTTP2: true}
	three := &http3.Transport{TLSClientConfig: trust.Clone(), DisableCompression: true, Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
		return quic.DialAddrEarly(ctx, s.https(), c, q)
	}}
	plain := &http.Transport{DisableCompression: true}
	t.Cleanup(func() {
		one.CloseIdleConnections()
		two.CloseIdleConnections()
		plain.CloseIdleConnections()
		_ = three.Close()
	})
	clear, secure := "http://"+s.Addresses()[0], "https://"+gatewayHost
	return []protocol{
		{"HTTP/1.1", clear, &http.Client{Transport: plain}},
		{"HTTP/1.1 over TLS", secure, &http.Client{Transport: one}},
		{"HTTP/2 in clear text", clear, s.http2(t)},
		{"HTTP/2 over TLS", secure, &http.Client{Transport: two}},
		{"HTTP/3", secure, &http.Client{Transport: three}},
	}
}

// tool finds a program that may not be installed.
func tool(t *testing.T, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	if path := "/usr/sbin/" + name; exists(path) {
		return path
	}
	t.Skipf("%s IS NOT INSTALLED: nodes are not tried with it", strings.ToUpper(name))
	return ""
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// curl runs curl against node 0, which it knows as gatewayHost, and returns what
// it prints and its exit code.
func (s *secured) curl(t *testing.T, stdin string, args ...string) (string, int) {
	t.Helper()
	path := tool(t, "curl")
	authority := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(authority, []byte(s.ca.CertPEM), 0o600); err != nil {
		t.Fatal(err)
	}
	var to []string
	for _, address := range []string{s.Addresses()[0], s.https()} {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		to = append(to, "--resolve", gatewayHost+":"+port+":127.0.0.1")
	}
	cmd := exec.CommandContext(t.Context(), path, append(append(to, "-q", "-sS", "--max-time", "30", "--cacert", authority), args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = []string{"PATH=/usr/bin:/bin"} // no proxy
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() < 0 {
		t.Fatalf("curl: %v %s", err, complaint.String())
	}
	if complaint.Len() > 0 {
		t.Logf("curl says %s", complaint.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}
