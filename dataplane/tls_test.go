package dataplane

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	quichttp3 "github.com/quic-go/quic-go/http3"

	"portcullis.dev/portcullis/pkg/identity"
	"portcullis.dev/portcullis/pkg/identity/certtest"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const document = "---\napiVersion: portcullis.dev/v1\n"

// TestTLS takes a request through a node that speaks TLS on both of its sides: to
// the client under the Gateway's certificate, to upstreams that are known by
// authority, name and pinned key, and that know the node by its certificate.
func TestTLS(t *testing.T) {
	ca, internal, stranger := certtest.New(t, "ca"), certtest.New(t, "internal"), certtest.New(t, "stranger")
	shop := ca.Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})
	own := internal.Issue(t, certtest.Spec{Name: "node"})
	far := internal.Issue(t, certtest.Spec{Hosts: []string{"orders.internal"}})

	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "sni=%s client=%s proto=%s", r.TLS.ServerName, r.TLS.PeerCertificates[0].Subject.CommonName, r.Header.Get("X-Forwarded-Proto"))
	}))
	up.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	up.TLS = &tls.Config{Certificates: []tls.Certificate{far.TLS(t)}, ClientCAs: internal.Pool(), ClientAuth: tls.RequireAndVerifyClientCert}
	up.StartTLS()
	t.Cleanup(up.Close)

	https := socket(t)
	cfg := Config{
		Name: "n1", DataDir: t.TempDir(), Control: []string{nowhere(t)}, Listeners: map[string]net.Listener{"http": socket(t), "https": https},
		Drain: patience, Log: slog.New(slog.DiscardHandler),
	}
	state := issue(t, newCA(t), identity.Identity{Role: identity.Dataplane, Name: "n1"})
	if err := state.Save(filepath.Join(cfg.DataDir, "identity")); err != nil {
		t.Fatal(err)
	}
	n, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := run(t, n)
	n.welcome(&controlv1.Welcome{TicketKeys: [][]byte{make([]byte, 32)}})

	upstream := func(name, authority, server, extra string) string {
		return document + "kind: Upstream\nmetadata: {name: " + name + "}\nspec:\n  endpoints: [{url: " + up.URL + "}]\n  tls: {ca: " +
			strconv.Quote(authority) + ", serverName: " + server + ", " + extra + "}\n" +
			document + "kind: Route\nmetadata: {name: " + name + "}\nspec: {public: true, matches: [{path: {prefix: /" + name + "}}], backends: [{upstream: " + name + "}]}\n"
	}
	mutual := "certificate: " + strconv.Quote(own.CertPEM) + ", privateKey: " + strconv.Quote(own.KeyPEM)
	apply(t, n, 1, document+"kind: Gateway\nmetadata: {name: default}\nspec: {listeners: [{name: https, tls: {certificates: [shop]}, http3: true}]}\n"+
		document+"kind: Certificate\nmetadata: {name: shop}\nspec: {certificate: "+strconv.Quote(shop.CertPEM)+", privateKey: "+strconv.Quote(shop.KeyPEM)+"}\n"+
		upstream("good", internal.CertPEM, "orders.internal", mutual)+
		upstream("pinned", internal.CertPEM, "orders.internal", mutual+", pins: ["+stranger.Pin()+", "+far.Pin()+"]")+
		upstream("misplaced", internal.CertPEM, "orders.internal", mutual+", pins: ["+stranger.Pin()+"]")+
		upstream("foreign", stranger.CertPEM, "orders.internal", mutual)+
		upstream("misnamed", internal.CertPEM, "other.internal", mutual)+
		upstream("unknown", internal.CertPEM, "orders.internal", "pins: ["+far.Pin()+"]"))
	await(t, "ready", func() bool { return n.Ready() == nil })

	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.example"}, DisableKeepAlives: true,
	}
	client := &http.Client{Transport: transport, Timeout: patience}
	for path, want := range map[string]string{
		"good": "sni=orders.internal client=node proto=https", "pinned": "sni=orders.internal client=node proto=https",
		"misplaced": "upstream_unavailable", "foreign": "upstream_unavailable", "misnamed": "upstream_unavailable", "unknown": "upstream_unavailable",
	} {
		resp, err := client.Get("https://" + https.Addr().String() + "/" + path)
		if err != nil {
			t.Fatal(path, err)
		}
		text, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !strings.Contains(string(text), want) || (resp.StatusCode == 200) != strings.HasPrefix(want, "sni") {
			t.Errorf("%s: %d %q, %v; want %q", path, resp.StatusCode, text, err, want)
		}
	}
	// The same by HTTP/3, once an answer has announced it.
	await(t, "Alt-Svc", func() bool {
		resp, err := client.Get("https://" + https.Addr().String() + "/good")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.Header.Get("Alt-Svc") != ""
	})
	three := &quichttp3.Transport{TLSClientConfig: transport.TLSClientConfig}
	resp, err := (&http.Client{Transport: three, Timeout: patience}).Get("https://" + https.Addr().String() + "/good")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.Proto != "HTTP/3.0" || resp.StatusCode != 200 || string(text) != "sni=orders.internal client=node proto=https" {
		t.Errorf("%s %s %q %v", resp.Proto, resp.Status, text, err)
	}
	if err := three.Close(); err != nil {
		t.Error(err)
	}
	// One that is taken away is not served, and the node says so.
	apply(t, n, 2, gatewayDoc)
	if conn, err := tls.Dial("tcp", https.Addr().String(), transport.TLSClientConfig); err == nil {
		_ = conn.Close()
		t.Error("a listener that is gone is served")
	}
	conditions := n.listenerConditions()
	if len(conditions) != 2 || conditions[0].Problem != "" || !strings.Contains(conditions[1].Problem, "no listener") {
		t.Errorf("%v", conditions)
	}
	files, err := n.Sockets()
	if err != nil || len(files) != 2 {
		t.Errorf("%v, %v", files, err)
	}
	for _, f := range files {
		_ = f.Close()
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
