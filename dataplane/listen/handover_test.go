package listen

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	quicgo "github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http3"
	"portcullis.dev/portcullis/pkg/identity/certtest"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// A process with a successor accepts no more, but answers each of its connections
// once more before it lets it go.
func TestHandOver(t *testing.T) {
	r := start(t, Config{}, HTTP)
	conn, err := net.Dial("tcp", r.lns[HTTP].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	ask := func() *http.Response {
		t.Helper()
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatal(err)
		}
		return resp
	}
	if resp := ask(); resp.StatusCode != 200 || resp.Close {
		t.Fatal(resp)
	}
	r.HandOver()
	r.HandOver()
	for {
		late, err := net.Dial("tcp", r.lns[HTTP].Addr().String())
		if err != nil {
			break
		}
		late.Close()
	}
	select {
	case err := <-r.ended:
		t.Fatal("ended with a connection in use:", err)
	default:
	}
	// The sockets are closed first; a request in between is answered as ever.
	for until := time.Now().Add(patience); ; {
		resp := ask()
		if resp.StatusCode != 200 || !resp.Close && time.Now().After(until) {
			t.Fatalf("after handing over: %d, close %v", resp.StatusCode, resp.Close)
		}
		if resp.Close {
			break
		}
	}
	conn.Close()
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	r.ended <- nil
}

func TestConnectionsAreRefusedWhenMemoryIsShort(t *testing.T) {
	var short atomic.Bool
	r := start(t, Config{Refuse: short.Load}, HTTP)
	client := r.client(t, HTTP, nil)
	if status, _ := get(t, client, "http://a.example/"); status != 200 {
		t.Fatal(status)
	}
	short.Store(true)
	if status, _ := get(t, client, "http://a.example/"); status != 200 {
		t.Error("an open connection:", status)
	}
	if _, err := r.client(t, HTTP, nil).Get("http://a.example/"); err == nil {
		t.Error("a new connection is served")
	}
	if r.Stats().Refused == 0 {
		t.Errorf("%+v", r.Stats())
	}
	short.Store(false)
	if status, _ := get(t, r.client(t, HTTP, nil), "http://a.example/"); status != 200 {
		t.Error("when there is memory again:", status)
	}
}

// HTTP/3 follows the live settings: it comes, is announced, takes another
// certificate, and goes.
func TestHTTP3(t *testing.T) {
	three := http3.New(http3.Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		text := e.Request.Proto + " " + e.Request.TLS.ServerName
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: io.NopCloser(strings.NewReader(text)), Length: int64(len(text))}}
	}}, patience)
	var short atomic.Bool
	r := start(t, Config{HTTP3: three, Refuse: short.Load}, "https")
	ca := certtest.New(t, "ca")
	first, second := ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}}), ca.Issue(t, certtest.Spec{Hosts: []string{"b.example"}})
	use := func(offered bool, pair certtest.Pair) {
		t.Helper()
		l := https(nil, "shop")
		l.Http3 = offered
		r.use(t, gateway(l), certificate("shop", pair))
	}
	at := r.lns["https"].Addr().String()
	client := func(name string) *http.Client {
		transport := &quichttp3.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool(ca), ServerName: name},
			QUICConfig:      &quicgo.Config{HandshakeIdleTimeout: time.Second},
			Dial: func(ctx context.Context, _ string, c *tls.Config, q *quicgo.Config) (*quicgo.Conn, error) {
				return quicgo.DialAddrEarly(ctx, at, c, q)
			},
		}
		t.Cleanup(func() { transport.Close() })
		return &http.Client{Transport: transport, Timeout: patience}
	}
	// until waits for the UDP port, which follows the settings a little later.
	until := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); !done(); {
			if time.Now().After(deadline) {
				t.Fatal(what, "did not come")
			}
		}
	}
	use(true, first)
	until("HTTP/3", func() bool { return r.quic.altSvc("https") != "" })
	if status, text := get(t, client("a.example"), "https://a.example/"); status != 200 || text != "HTTP/3.0 a.example" {
		t.Errorf("%d %q", status, text)
	}
	use(true, second)
	if status, text := get(t, client("b.example"), "https://b.example/"); status != 200 || text != "HTTP/3.0 b.example" {
		t.Errorf("%d %q", status, text)
	}
	short.Store(true)
	if resp, err := client("b.example").Get("https://b.example/"); err == nil {
		resp.Body.Close()
		t.Error("a connection is served while memory is short")
	}
	short.Store(false)
	if r.Stats().Refused == 0 {
		t.Errorf("%+v", r.Stats())
	}
	tcp := r.client(t, "https", &tls.Config{RootCAs: pool(ca)})
	resp, err := tcp.Get("https://b.example/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
	use(false, second)
	until("the end of HTTP/3", func() bool { return r.quic.altSvc("https") == "" && r.quic.of("https") == nil })
	until("the port", func() bool {
		pc, err := net.ListenPacket("udp", at)
		if err == nil {
			pc.Close()
		}
		return err == nil
	})
	// A port that is taken is a condition, not a reason to refuse.
	taken, err := net.ListenPacket("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	use(true, second)
	until("the condition", func() bool { return strings.Contains(r.problem("https"), "HTTP/3") })
	taken.Close()
	until("HTTP/3 again", func() bool { return r.quic.altSvc("https") != "" })
	if got := r.problem("https"); got != "" {
		t.Error(got)
	}
}

func TestUnservedHTTP3(t *testing.T) {
	r := start(t, Config{}, HTTP)
	r.use(t, gateway(&configv1.Listener{Name: HTTP}))
	if r.quic.wanted(HTTP) != nil || r.quic.altSvc(HTTP) != "" || r.quic.problem(HTTP) != "" {
		t.Error("clear text and HTTP/3")
	}
}
