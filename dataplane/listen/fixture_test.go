package listen

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity/certtest"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end by an event; it is no promise.
const patience = 30 * time.Second

// rig is a node's sockets with the real front end behind them.
type rig struct {
	*Listeners
	http1 *http1.Server
	lns   map[string]net.Listener
	stop  context.CancelFunc
	ended chan error
}

// front answers with what is known of the request.
func front(handle func(*exchange.Exchange) *exchange.Response) *http1.Server {
	answer := func(status int, text string) *exchange.Response {
		return &exchange.Response{Status: status, Body: exchange.Body{Reader: io.NopCloser(strings.NewReader(text)), Length: int64(len(text))}}
	}
	if handle == nil {
		handle = func(*exchange.Exchange) *exchange.Response { return nil }
	}
	return http1.NewServer(http1.Config{
		Handle: func(e *exchange.Exchange) *exchange.Response {
			if resp := handle(e); resp != nil {
				return resp
			}
			text := e.Request.Scheme + " " + e.Request.Host
			if t := e.Request.TLS; t != nil {
				text += fmt.Sprintf(" sni=%s alpn=%s", t.ServerName, t.ALPN)
				if len(t.Verified) > 0 {
					text += " client=" + t.Verified[0].Subject.CommonName
				}
			}
			return answer(200, text)
		},
		Refuse: func(e *exchange.Exchange, reason string, status int) *exchange.Response {
			return answer(status, reason)
		},
		HeaderTimeout: 2 * patience,
	})
}

// start runs sockets of the names until the test ends.
func start(t testing.TB, c Config, names ...string) *rig {
	t.Helper()
	lns := map[string]net.Listener{}
	for _, name := range names {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		lns[name] = ln
	}
	return startOn(t, c, lns)
}

// startOn runs the sockets until the test ends.
func startOn(t testing.TB, c Config, lns map[string]net.Listener) *rig {
	t.Helper()
	r := &rig{lns: lns, ended: make(chan error, 1)}
	if c.HTTP1 == nil {
		r.http1 = front(func(e *exchange.Exchange) *exchange.Response { return r.Challenge(e) })
		c.HTTP1 = r.http1
	}
	c.Drain = patience
	var err error
	if r.Listeners, err = New(c, r.lns); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	var running sync.WaitGroup
	running.Go(func() { r.ended <- r.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return r
}

// use makes documents the configuration.
func (r *rig) use(t testing.TB, resources ...*configv1.Resource) {
	t.Helper()
	checked, err := config.Check(resources)
	if err != nil {
		t.Fatal(err)
	}
	settings, err := r.Compile(checked, r.Live())
	if err != nil {
		t.Fatal(err)
	}
	r.Apply(settings)
}

func gateway(listeners ...*configv1.Listener) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "default", Name: "default"},
		Spec: &configv1.Resource_Gateway{Gateway: &configv1.Gateway{Listeners: listeners}}}
}

func https(adjust func(*configv1.ListenerTLS), certificates ...string) *configv1.Listener {
	l := &configv1.Listener{Name: "https", Tls: &configv1.ListenerTLS{Certificates: certificates}}
	if adjust != nil {
		adjust(l.Tls)
	}
	return l
}

func certificate(name string, p certtest.Pair) *configv1.Resource {
	return &configv1.Resource{Metadata: &configv1.Metadata{Workspace: "default", Name: name},
		Spec: &configv1.Resource_Certificate{Certificate: &configv1.Certificate{Certificate: p.CertPEM, PrivateKey: p.KeyPEM}}}
}

// shake connects and returns the open connection, whose certificate is not
// verified.
func (r *rig) shake(t testing.TB, name string, c *tls.Config) (*tls.Conn, error) {
	t.Helper()
	c = c.Clone()
	c.InsecureSkipVerify = true
	raw, err := net.Dial("tcp", r.lns[name].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(patience))
	conn := tls.Client(raw, c)
	return conn, conn.Handshake()
}

// client is an HTTP client whose requests all go to one socket.
func (r *rig) client(t testing.TB, name string, c *tls.Config) *http.Client {
	transport := &http.Transport{
		TLSClientConfig: c,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", r.lns[name].Addr().String())
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func get(t testing.TB, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func pool(authorities ...*certtest.Authority) *x509.CertPool {
	p := x509.NewCertPool()
	for _, a := range authorities {
		p.AddCert(a.Cert)
	}
	return p
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
