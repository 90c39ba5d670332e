package listen

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"portcullis.dev/portcullis/pkg/identity/certtest"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// TestServerNames: which certificate is shown for which name.
func TestServerNames(t *testing.T) {
	ca := certtest.New(t, "ca")
	issue := func(hosts ...string) certtest.Pair { return ca.Issue(t, certtest.Spec{Name: hosts[0], Hosts: hosts}) }
	r := start(t, Config{}, "https")
	r.use(t, gateway(https(nil, "first", "shop", "wild", "mixed")),
		certificate("first", issue("first.example")), certificate("shop", issue("shop.example", "a.shop.example")),
		certificate("wild", issue("*.shop.example")), certificate("mixed", issue("MiXed.example")))
	for sni, want := range map[string]string{
		"first.example":    "first.example",
		"shop.example":     "shop.example",
		"SHOP.Example":     "shop.example",
		"a.shop.example":   "shop.example", // exact before wildcard
		"b.shop.example":   "*.shop.example",
		"B.SHOP.EXAMPLE":   "*.shop.example",
		"b.c.shop.example": "first.example", // one label only
		"mixed.example":    "MiXed.example",
		"other.example":    "first.example",
		"":                 "first.example",
		// Not host names: refused (RFC 6066, 3).
		"shop.example.":            "-",
		"shop.example\x00.evil":    "-",
		"\x00":                     "-",
		".shop.example":            "-",
		"shop..example":            "-",
		"shop.example:443":         "-",
		"shop.ex\u212aample":       "-",
		strings.Repeat("a", 64):    "-",
		strings.Repeat("a.", 130):  "-",
		"*.shop.example":           "-",
		"shop.example/../x":        "-",
		"user@shop.example":        "-",
		"xn--bcher-kva.shop.examp": "first.example",
	} {
		if want == "-" {
			if err := r.forge(t, sni); err == nil || !strings.Contains(err.Error(), "remote error") {
				t.Errorf("%q: %v; want an alert", sni, err)
			}
			continue
		}
		conn, err := r.shake(t, "https", &tls.Config{ServerName: sni})
		if err != nil {
			t.Errorf("%q: %v", sni, err)
			continue
		}
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("%q: shown %q; want %q", sni, got, want)
		}
	}
}

// forge shakes hands with a name that crypto/tls's client would not send.
func (r *rig) forge(t *testing.T, sni string) error {
	t.Helper()
	raw, err := net.Dial("tcp", r.lns["https"].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(patience))
	stand := strings.Repeat("z", len(sni))
	return tls.Client(&rewriting{raw, []byte(stand), []byte(sni)}, &tls.Config{ServerName: stand, InsecureSkipVerify: true}).Handshake()
}

// rewriting replaces bytes on their way out.
type rewriting struct {
	net.Conn
	from, to []byte
}

func (c *rewriting) Write(b []byte) (int, error) {
	if _, err := c.Conn.Write(bytes.ReplaceAll(b, c.from, c.to)); err != nil {
		return 0, err
	}
	return len(b), nil
}

// TestAlgorithms: of two certificates for a name a client gets the one that it can
// verify, and rather one that is valid.
func TestAlgorithms(t *testing.T) {
	ca := certtest.New(t, "ca")
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	host, past := []string{"shop.example"}, time.Now().Add(-time.Hour)
	r := start(t, Config{}, "https")
	r.use(t, gateway(https(nil, "old", "ecdsa", "rsa")),
		certificate("old", ca.Issue(t, certtest.Spec{Name: "old", Hosts: host, NotBefore: past.Add(-time.Hour), NotAfter: past})),
		certificate("ecdsa", ca.Issue(t, certtest.Spec{Name: "ecdsa", Hosts: host})),
		certificate("rsa", ca.Issue(t, certtest.Spec{Name: "rsa", Hosts: host, Key: key})))
	for want, c := range map[string]*tls.Config{
		"ecdsa": {},
		"rsa":   {MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}},
	} {
		c.ServerName = "shop.example"
		conn, err := r.shake(t, "https", c)
		if err != nil {
			t.Fatal(want, err)
		}
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("shown %q; want %q", got, want)
		}
	}
}

func TestStapling(t *testing.T) {
	root := certtest.New(t, "root")
	below := root.Intermediate(t, "below")
	now := time.Now()
	r := start(t, Config{}, "https")
	for name, c := range map[string]struct {
		until time.Time
		sent  bool
	}{"new": {now.Add(time.Hour), true}, "old": {now.Add(-time.Minute), false}} {
		pair := below.Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})
		der := below.Staple(t, pair.Cert, ocsp.Good, now.Add(-time.Hour), c.until)
		cert := certificate("shop", pair)
		cert.GetCertificate().OcspResponse = base64.StdEncoding.EncodeToString(der)
		r.use(t, gateway(https(nil, "shop")), cert)
		conn, err := r.shake(t, "https", &tls.Config{ServerName: "shop.example"})
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().OCSPResponse; bytes.Equal(got, der) != c.sent || !c.sent && got != nil {
			t.Errorf("%s: stapled %d bytes", name, len(got))
		}
	}
}

func TestVersions(t *testing.T) {
	pair := certtest.New(t, "ca").Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})
	r := start(t, Config{}, "https")
	r.use(t, gateway(https(nil, "shop")), certificate("shop", pair))
	shake := func(version uint16) error {
		_, err := r.shake(t, "https", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: version})
		return err
	}
	if err := shake(tls.VersionTLS11); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	if err := errors.Join(shake(tls.VersionTLS12), shake(tls.VersionTLS13)); err != nil {
		t.Error(err)
	}
	r.use(t, gateway(https(func(l *configv1.ListenerTLS) { l.MinVersion = configv1.TLSVersion_TLS_VERSION_1_3 }, "shop")), certificate("shop", pair))
	if err := shake(tls.VersionTLS12); err == nil {
		t.Error("TLS 1.2 is spoken where 1.3 is the least")
	}
	if err := shake(tls.VersionTLS13); err != nil {
		t.Error(err)
	}
}

// TestSharedTickets: two nodes with the cluster's keys resume each other's
// sessions, also through a rotation.
func TestSharedTickets(t *testing.T) {
	pair := certtest.New(t, "ca").Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})
	nodes := []*rig{start(t, Config{}, "https"), start(t, Config{}, "https")}
	keys := make([][]byte, 3)
	for i := range keys {
		keys[i] = make([]byte, 32)
		_, _ = rand.Read(keys[i])
	}
	for i, n := range nodes {
		if i == 0 { // before there is a listener, and after
			if err := n.SetTicketKeys(keys[:1]); err != nil {
				t.Fatal(err)
			}
		}
		n.use(t, gateway(https(nil, "shop")), certificate("shop", pair))
		if err := n.SetTicketKeys(keys[:1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := nodes[0].SetTicketKeys([][]byte{{1}}); err == nil {
		t.Error("a key of one byte")
	}
	if err := nodes[0].SetTicketKeys(nil); err != nil {
		t.Error(err)
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, n := range nodes {
			if err := n.SetTicketKeys(keys[:1]); err != nil {
				t.Fatal(err)
			}
		}
		c := &tls.Config{ServerName: "shop.example", MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
		resumed := func(n *rig) bool {
			conn, err := n.shake(t, "https", c)
			if err != nil {
				t.Fatal(err)
			}
			// The ticket of TLS 1.3 comes with what is read first.
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(conn); err != nil {
				t.Fatal(err)
			}
			return conn.ConnectionState().DidResume
		}
		if resumed(nodes[0]) || !resumed(nodes[1]) || !resumed(nodes[0]) {
			t.Errorf("%x: the nodes do not share sessions", version)
		}
		// One node is told earlier than the other.
		rotated := [][]byte{keys[1], keys[0]}
		if err := nodes[1].SetTicketKeys(rotated); err != nil {
			t.Fatal(err)
		}
		if !resumed(nodes[1]) {
			t.Errorf("%x: the rotation lost the session", version)
		}
		if err := nodes[0].SetTicketKeys(rotated); err != nil {
			t.Fatal(err)
		}
		if !resumed(nodes[0]) {
			t.Errorf("%x: the nodes do not share sessions after the rotation", version)
		}
		// A reload keeps the keys.
		nodes[0].use(t, gateway(https(nil, "shop")), certificate("shop", pair))
		if !resumed(nodes[0]) {
			t.Errorf("%x: a reload lost the session", version)
		}
		if err := nodes[0].SetTicketKeys(keys[2:]); err != nil {
			t.Fatal(err)
		}
		if resumed(nodes[0]) {
			t.Errorf("%x: resumed under a key that is gone", version)
		}
	}
}

// TestHotReload changes the certificate while clients connect and ask: no request
// fails, connections go on, and who comes anew sees the new one.
func TestHotReload(t *testing.T) {
	ca := certtest.New(t, "ca")
	issue := func(name string) certtest.Pair {
		return ca.Issue(t, certtest.Spec{Name: name, Hosts: []string{"shop.example"}})
	}
	r := start(t, Config{}, "https")
	r.use(t, gateway(https(nil, "shop")), certificate("shop", issue("0")))
	old := r.client(t, "https", &tls.Config{RootCAs: ca.Pool()})
	var reused atomic.Bool
	get(t, old, "https://shop.example/")
	ctx, stop := context.WithCancel(t.Context())
	var asked atomic.Int64
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			kept, fresh := r.client(t, "https", &tls.Config{RootCAs: ca.Pool()}), r.client(t, "https", &tls.Config{RootCAs: ca.Pool()})
			fresh.Transport.(*http.Transport).DisableKeepAlives = true
			for ctx.Err() == nil {
				for _, c := range []*http.Client{kept, fresh} {
					resp, err := c.Get("https://shop.example/")
					if err != nil {
						t.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					asked.Add(1)
				}
			}
		})
	}
	for _, name := range []string{"1", "2", "3", "4", "5"} {
		before := asked.Load()
		r.use(t, gateway(https(nil, "shop")), certificate("shop", issue(name)))
		conn, err := r.shake(t, "https", &tls.Config{ServerName: "shop.example"})
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != name {
			t.Errorf("shown %q; want %q", got, name)
		}
		for end := time.Now().Add(patience); asked.Load() < before+20 && !t.Failed(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("no progress")
			}
		}
	}
	stop()
	load.Wait()
	// The first connection is still there, with the first certificate.
	req, _ := http.NewRequest("GET", "https://shop.example/", nil)
	resp, err := old.Do(req.WithContext(traced(t.Context(), &reused)))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if !reused.Load() || resp.TLS.PeerCertificates[0].Subject.CommonName != "0" {
		t.Errorf("an established connection was not kept: reused %t, %q", reused.Load(), resp.TLS.PeerCertificates[0].Subject.CommonName)
	}
}

func TestClientCertificates(t *testing.T) {
	ca, clients, others := certtest.New(t, "ca"), certtest.New(t, "clients"), certtest.New(t, "others")
	past := time.Now().Add(-time.Minute)
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	good := clients.Issue(t, certtest.Spec{Name: "good", Usage: usage})
	foreign := others.Issue(t, certtest.Spec{Name: "foreign", Usage: usage})
	expired := clients.Issue(t, certtest.Spec{Name: "expired", Usage: usage, NotBefore: past.Add(-time.Hour), NotAfter: past})
	r := start(t, Config{}, "https")
	verify := func(optional bool, authority *certtest.Authority) {
		r.use(t, gateway(https(func(l *configv1.ListenerTLS) {
			l.ClientCertificates = &configv1.ClientCertificates{Ca: authority.CertPEM, Optional: optional}
		}, "shop")), certificate("shop", ca.Issue(t, certtest.Spec{Hosts: []string{"shop.example", "other.example"}})))
	}
	dial := func(shown *certtest.Pair, cache tls.ClientSessionCache) (string, error) {
		c := &tls.Config{RootCAs: ca.Pool(), ClientSessionCache: cache}
		if shown != nil {
			cert := shown.TLS(t)
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
		}
		client := r.client(t, "https", c)
		resp, err := client.Get("https://shop.example/")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	for _, optional := range []bool{false, true} {
		verify(optional, clients)
		if text, err := dial(&good, nil); err != nil || !strings.Contains(text, "client=good") {
			t.Errorf("optional %t: %q, %v", optional, text, err)
		}
		if text, err := dial(nil, nil); (err == nil) != optional || strings.Contains(text, "client=") {
			t.Errorf("optional %t, none: %q, %v", optional, text, err)
		}
		for _, bad := range []*certtest.Pair{&foreign, &expired} {
			if text, err := dial(bad, nil); err == nil {
				t.Errorf("optional %t, %s: %q", optional, bad.Cert.Subject.CommonName, text)
			}
		}
	}
	// Where clients are verified by the name of the handshake, requests bear it.
	verify(true, clients)
	for host, want := range map[string]int{"shop.example": 200, "SHOP.example:8443": 200, "shop.example.": 200, "other.example": 421, "localhost": 421} {
		conn, err := r.shake(t, "https", &tls.Config{ServerName: "shop.example"})
		if err != nil {
			t.Fatal(err)
		}
		if got := ask(t, conn, host); got != want {
			t.Errorf("Host %s: %d; want %d", host, got, want)
		}
	}
	conn, err := r.shake(t, "https", &tls.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got := ask(t, conn, "shop.example"); got != 421 {
		t.Errorf("without SNI: %d", got)
	}
	// A session does not outlive the trust in who vouched for it.
	verify(false, clients)
	cache := tls.NewLRUClientSessionCache(1)
	if _, err := dial(&good, cache); err != nil {
		t.Fatal(err)
	}
	verify(false, others)
	if text, err := dial(&good, cache); err == nil {
		t.Errorf("a session outlived its authority: %q", text)
	}
	// Without client certificates any name will do.
	r.use(t, gateway(https(nil, "shop")), certificate("shop", ca.Issue(t, certtest.Spec{Hosts: []string{"shop.example"}})))
	if conn, err = r.shake(t, "https", &tls.Config{ServerName: "shop.example"}); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, conn, "other.example"); got != 200 {
		t.Errorf("another host: %d", got)
	}
}

// ask sends a request and returns the status of its answer.
func ask(t *testing.T, conn net.Conn, host string) int {
	t.Helper()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// traced notes whether the request's connection was there before.
func traced(ctx context.Context, reused *atomic.Bool) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused.Store(i.Reused) }})
}
