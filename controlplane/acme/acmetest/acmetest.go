// Package acmetest runs a certificate authority in the test's process: Let's
// Encrypt's own test server, Pebble, which validates over real connections. It must
// not know who is tested with it.
package acmetest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
	"go.uber.org/goleak"
)

// Authority is a running authority. Every host name leads to 127.0.0.1, but those
// below "nowhere.example" lead nowhere.
type Authority struct {
	// Directory is its URL, CA the PEM to trust it by.
	Directory, CA string
	// Roots vouch for what it issues.
	Roots *x509.CertPool
	// Requests counts what it was asked, Questions those of them that asked when to
	// renew a certificate.
	Requests, Questions atomic.Int64

	down     atomic.Bool
	store    *db.MemoryStore
	replaced atomic.Pointer[string]
}

// Leak is what an authority leaves behind: its validator never ends.
func Leak() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/letsencrypt/pebble/v2/va.VAImpl.processTasks")
}

// Start runs an authority that validates at a port of 127.0.0.1 and issues for a
// lifetime, until the test ends.
func Start(t testing.TB, httpPort int, lifetime time.Duration) *Authority {
	t.Helper()
	// Pebble is told in no other way. Not t.Setenv, which keeps tests from running side
	// by side: it is the same for all of them. A proof must be made anew each time.
	for name, value := range map[string]string{"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"} {
		if err := os.Setenv(name, value); err != nil {
			t.Fatal(err)
		}
	}
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	issuer := ca.New(quiet, store, "", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: uint64(lifetime / time.Second)}})
	validator := va.New(quiet, httpPort, 0, true, resolver(t), store)
	// It says nothing of when to look again: seconds are its unit.
	front := wfe.New(quiet, store, validator, issuer, true, false, 0, 0)
	a := &Authority{Roots: x509.NewCertPool(), store: store}
	handler := front.Handler()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.Requests.Add(1)
		if a.down.Load() {
			http.Error(w, "down for maintenance", http.StatusServiceUnavailable)
			return
		}
		a.note(w, r)
		handler.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = quiet
	t.Cleanup(server.Close)
	a.Directory = server.URL + wfe.DirectoryPath
	a.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	if !a.Roots.AppendCertsFromPEM(issuer.GetRootCert(0).PEM()) {
		t.Fatal("the authority has no root")
	}
	return a
}

// SetDown has every request refused, or none.
func (a *Authority) SetDown(down bool) { a.down.Store(down) }

// Suggest sets the answer to when the first certificate of a chain is to be renewed,
// which says nothing of when to ask again.
func (a *Authority) Suggest(t testing.TB, chain, answer string) {
	t.Helper()
	if err := a.store.SetARIResponse(leafOf(t, chain).SerialNumber, answer); err != nil {
		t.Fatal(err)
	}
}

// Replaces is which certificate the newest order that named one replaces (RFC 9773,
// 5); empty when none did.
func (a *Authority) Replaces() string {
	if id := a.replaced.Load(); id != nil {
		return *id
	}
	return ""
}

// note looks at a request without consuming it.
func (a *Authority) note(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.Path, "/renewalInfo/") {
		a.Questions.Add(1)
		// Pebble gives an answer that was set no type of its own.
		w.Header().Set("Content-Type", "application/json")
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	var signed struct{ Payload string }
	var order struct{ Replaces string }
	if json.Unmarshal(body, &signed) != nil {
		return
	}
	payload, err := base64.RawURLEncoding.DecodeString(signed.Payload)
	if err == nil && json.Unmarshal(payload, &order) == nil && order.Replaces != "" {
		a.replaced.Store(&order.Replaces)
	}
}

func leafOf(t testing.TB, chain string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(chain))
	if block == nil {
		t.Fatal("no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// resolver serves DNS and returns its address.
func resolver(t testing.TB) string {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(answer)}
	started, ended := make(chan struct{}), make(chan error, 1)
	server.NotifyStartedFunc = func() { close(started) }
	go func() { ended <- server.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		_ = server.Shutdown()
		<-ended
	})
	return conn.LocalAddr().String()
}

func answer(w dns.ResponseWriter, req *dns.Msg) {
	resp := new(dns.Msg)
	resp.SetReply(req)
	for _, q := range req.Question {
		switch {
		case strings.HasSuffix(q.Name, "nowhere.example."):
			resp.Rcode = dns.RcodeNameError
		case q.Qtype == dns.TypeA:
			resp.Answer = append(resp.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1),
			})
		}
	}
	_ = w.WriteMsg(resp)
}
