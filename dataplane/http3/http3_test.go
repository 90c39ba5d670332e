package http3

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"
	"go.uber.org/goleak"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a server on loopback and a client that trusts it.
type rig struct {
	*testing.T
	server *Server
	at     string
	roots  *x509.CertPool
	stop   context.CancelFunc
	ended  chan error
	client *http.Client
}

func newRig(t *testing.T, c Config, sniDecides bool) *rig {
	t.Helper()
	return newRigDraining(t, c, sniDecides, 0)
}

func newRigDraining(t *testing.T, c Config, sniDecides bool, drain time.Duration) *rig {
	t.Helper()
	certificate, roots := selfSigned(t)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if c.Refuse == nil {
		c.Refuse = func(e *exchange.Exchange, reason string, status int) *exchange.Response {
			return text(status, reason+": "+e.Why.Detail)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	r := &rig{T: t, server: New(c, drain), at: pc.LocalAddr().String(), roots: roots, stop: stop, ended: make(chan error, 1)}
	go func() {
		r.ended <- r.server.Run(ctx, Socket{Conn: pc, TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}, SNIDecides: func() bool { return sniDecides }})
	}()
	transport := r.transport()
	r.client = &http.Client{Transport: transport}
	t.Cleanup(func() {
		stop()
		transport.Close()
		if err, open := <-r.ended; open && err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return r
}

// transport reaches the server under any name.
func (r *rig) transport() *quichttp3.Transport {
	return &quichttp3.Transport{
		TLSClientConfig: &tls.Config{RootCAs: r.roots, NextProtos: []string{quichttp3.NextProtoH3}},
		Dial: func(ctx context.Context, _ string, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return quic.DialAddrEarly(ctx, r.at, t, q)
		},
	}
}

func (r *rig) do(req *http.Request) (*http.Response, string) {
	r.Helper()
	resp, err := r.client.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.Fatal(err)
	}
	return resp, string(body)
}

func request(t *testing.T, method, url string, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func text(status int, s string) *exchange.Response {
	return &exchange.Response{Status: status, Body: exchange.Body{Reader: io.NopCloser(strings.NewReader(s)), Length: int64(len(s))}}
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "api.example"}, DNSNames: []string{"api.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

func TestExchange(t *testing.T) {
	type seen struct {
		exchange.Request
		fields []exchange.Field
		id     string
	}
	handled := make(chan seen, 1)
	r := newRig(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		one := seen{e.Request, slices.Clone(e.Request.Header.Fields()), strings.Clone(e.ID)}
		one.Header = exchange.Header{}
		handled <- one
		resp := text(201, "made")
		resp.Header = exchange.HeaderOf(exchange.Field{Name: "X-Made", Value: "1"}, exchange.Field{Name: "Connection", Value: "close"},
			exchange.Field{Name: "Set-Cookie", Value: "a=1"}, exchange.Field{Name: "Set-Cookie", Value: "b=2"})
		return resp
	}}, false)
	req := request(t, "GET", "https://api.example/a/b?x=1&y", nil)
	for name, value := range map[string]string{"Authorization": "Bearer t", "X-Forwarded-For": "1.2.3.4", "X-Request-Id": "client-chosen", "X_User": "admin", "Cookie": "a=1"} {
		req.Header.Set(name, value)
	}
	resp, body := r.do(req)
	if resp.StatusCode != 201 || body != "made" || resp.ContentLength != 4 || resp.Header.Get("X-Made") != "1" ||
		resp.Header.Get("Connection") != "" || len(resp.Header["Set-Cookie"]) != 2 || len(resp.Header.Get("X-Request-Id")) != 32 {
		t.Errorf("%d %q %v", resp.StatusCode, body, resp.Header)
	}
	got := <-handled
	if got.Method != "GET" || got.Path != "/a/b" || got.Query != "x=1&y" || got.Host != "api.example" || got.Authority != "api.example" ||
		got.Scheme != "https" || got.Proto != "HTTP/3.0" || got.Peer.String() != "127.0.0.1" || got.TLS == nil ||
		got.TLS.ServerName != "api.example" || got.TLS.ALPN != "h3" || got.Body.Reader != nil || got.Upgrade != "" {
		t.Errorf("%+v", got)
	}
	h := exchange.HeaderOf(got.fields...)
	if h.Get("authorization") != "Bearer t" || h.Get("X-Forwarded-For") != "127.0.0.1" || got.id != resp.Header.Get("X-Request-Id") ||
		h.Get("X_User") != "" || h.Get("X-Forwarded-Proto") != "https" || h.Get("Cookie") != "a=1" || h.Get("Host") != "" {
		t.Errorf("%v", got.fields)
	}
}

func TestBodiesStreamBothWays(t *testing.T) {
	r := newRig(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		// An echo that answers as it reads.
		resp := &exchange.Response{Status: 200, Body: exchange.Body{Reader: e.Request.Body.Reader, Length: -1}}
		resp.Body.Trailer = func() exchange.Header { return exchange.HeaderOf(exchange.Field{Name: "Grpc-Status", Value: "0"}) }
		return resp
	}}, false)
	in, out := io.Pipe()
	resp, err := r.client.Do(request(t, "POST", "https://api.example/", in))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, part := range []string{"one", "two", strings.Repeat("x", 100_000)} {
		go out.Write([]byte(part))
		back := make([]byte, len(part))
		if _, err := io.ReadFull(resp.Body, back); err != nil || string(back) != part {
			t.Fatalf("%.10q: %v", back, err)
		}
	}
	out.Close()
	if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%q %v %v", rest, err, resp.Trailer)
	}
}

func TestRefusals(t *testing.T) {
	handled := 0
	var mu sync.Mutex
	r := newRig(t, Config{
		Settings: func() *admission.Settings { return &admission.Settings{MaxHeaderBytes: 4096, MaxBodyBytes: 1000} },
		Handle: func(e *exchange.Exchange) *exchange.Response {
			mu.Lock()
			handled++
			mu.Unlock()
			if e.Request.Path == "/panic" {
				panic("broken")
			}
			if e.Request.Body.Reader != nil {
				if _, err := io.ReadAll(e.Request.Body.Reader); err != nil {
					if errors.Is(err, exchange.ErrTooLarge) {
						return text(413, "late")
					}
					return text(400, err.Error())
				}
			}
			return text(200, "ok")
		},
	}, true)
	big := bytes.Repeat([]byte("x"), 2000)
	for _, c := range []struct {
		name    string
		status  int
		handled int
		make    func(*http.Request)
		body    io.Reader
	}{
		{"fine", 200, 1, func(*http.Request) {}, nil},
		{"another host than the handshake's", 421, 0, func(r *http.Request) { r.Host = "other.example" }, nil},
		{"trace", 501, 0, func(r *http.Request) { r.Method = "TRACE" }, nil},
		{"lower-case method", 400, 0, func(r *http.Request) { r.Method = "get" }, nil},
		{"encoded slash", 400, 0, func(r *http.Request) { r.URL.Opaque = "/a%2fb" }, nil},
		{"header bomb", 431, 0, func(r *http.Request) { r.Header.Set("X-A", strings.Repeat("a", 5000)) }, nil},
		{"too many fields", 431, 0, func(r *http.Request) {
			for range 201 {
				r.Header.Add("A", "b")
			}
		}, nil},
		{"declared too large", 413, 0, func(r *http.Request) { r.Method = "POST" }, bytes.NewReader(big)},
		{"undeclared too large", 413, 1, func(r *http.Request) { r.Method = "POST" }, io.MultiReader(bytes.NewReader(big))},
		{"a GET with a body", 413, 1, func(*http.Request) {}, io.MultiReader(bytes.NewReader(big))},
		{"panic", 500, 1, func(r *http.Request) { r.URL.Path = "/panic" }, nil},
	} {
		mu.Lock()
		handled = 0
		mu.Unlock()
		req := request(t, "GET", "https://api.example/", c.body)
		c.make(req)
		resp, body := r.do(req)
		mu.Lock()
		if resp.StatusCode != c.status || handled != c.handled {
			t.Errorf("%s: %d %q, handled %d times; want %d, %d", c.name, resp.StatusCode, body, handled, c.status, c.handled)
		}
		mu.Unlock()
	}
}

// A body that breaks resets the stream: the client must not take it for whole.
func TestShortBodies(t *testing.T) {
	r := newRig(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		from := io.MultiReader(strings.NewReader("half"), failing{})
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: io.NopCloser(from), Length: -1}}
	}}, false)
	resp, err := r.client.Do(request(t, "GET", "https://api.example/", nil))
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("a short body was taken for whole")
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("broken") }

func TestClientThatLeavesEndsTheExchange(t *testing.T) {
	began, ended := make(chan struct{}), make(chan struct{})
	r := newRig(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		close(began)
		<-e.Context.Done()
		close(ended)
		return text(499, "")
	}}, false)
	ctx, leave := context.WithCancel(t.Context())
	req := request(t, "GET", "https://api.example/", nil).WithContext(ctx)
	failed := make(chan error, 1)
	go func() {
		_, err := r.client.Do(req)
		failed <- err
	}()
	<-began
	leave()
	<-ended
	if <-failed == nil {
		t.Error("answered")
	}
}

func TestDrainFinishesWhatIsInFlight(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	r := newRig(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		close(began)
		<-release
		return text(200, "whole")
	}}, false)
	answers := make(chan string, 1)
	go func() {
		body := ""
		defer func() { answers <- body }()
		_, body = r.do(request(t, "GET", "https://api.example/", nil))
	}()
	<-began
	r.stop()
	if n := r.server.InFlight(); n != 1 {
		t.Error("in flight:", n)
	}
	close(release)
	if got := <-answers; got != "whole" {
		t.Error(got)
	}
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	close(r.ended)
}

func TestDrainHasADeadline(t *testing.T) {
	began := make(chan struct{})
	r := newRigDraining(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		close(began)
		<-e.Context.Done()
		return text(200, "")
	}}, false, 50*time.Millisecond)
	go r.client.Do(request(t, "GET", "https://api.example/", nil))
	<-began
	r.stop()
	if err := <-r.ended; !errors.Is(err, ErrCut) {
		t.Error(err)
	}
	close(r.ended)
}

func TestAltSvc(t *testing.T) {
	if got := AltSvc(8443); got != `h3=":8443"; ma=86400` {
		t.Error(got)
	}
}
