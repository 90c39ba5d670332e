package admission

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// request makes an exchange as a front end hands it over, of "Name: value" lines.
func request(fields ...string) *exchange.Exchange {
	e := &exchange.Exchange{}
	e.Request.Host, e.Request.Authority, e.Request.Method, e.Request.Path = "api.test", "api.test:81", "GET", "/"
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		e.Request.Header.Add(name, value)
	}
	return e
}

func dump(h *exchange.Header) string {
	var b strings.Builder
	for _, f := range h.Fields() {
		fmt.Fprintf(&b, "%s: %s\n", f.Name, f.Value)
	}
	return b.String()
}

func TestWhatIsNotTheClientsToSay(t *testing.T) {
	c := &Conn{Peer: netip.MustParseAddr("127.0.0.1")}
	e := request("Host: api.test:81", "X_User: root", "x.user: root", "X-Keep: 1", "x-keep: 2", "X~User: root",
		"Connection: close, X-Hop", "connection: x-hop2", "X-Hop: 1", "X-Hop2: 1", "Keep-Alive: x", "TE: trailers", "Trailer: x", "Upgrade: h2c", "HTTP2-Settings: x",
		"Proxy-Authorization: x", "Proxy-Connection: x", "Content_Length: 3", "Transfer_Encoding: chunked",
		"X-Forwarded-For: 9.9.9.9", "x-forwarded-proto: https", "X-Forwarded-Host: evil", "X-FORWARDED-PORT: 1", "X-Forwarded-Prefix: /x", "X-Forwarded-Uri: /x",
		"X-Forwarded: x", "X_Forwarded_For: 9.9.9.9", "Forwarded: for=9.9.9.9", "X-Real-IP: 9.9.9.9", "X-Original-URL: /admin", "X-Rewrite-URL: /admin",
		"X-Portcullis-Subject: root", "x-portcullis-anything: root", "Proxy: http://evil", "Client-IP: 9.9.9.9", "true-client-ip: 9.9.9.9", "X-Cluster-Client-IP: 9",
		"X-Original-Uri: /", "X-Original-Method: PUT", "X-Original-Host: h", "X-Host: h", "X-Client-Ip: 9", "X-Http-Method: PUT", "x-method-override: PUT",
		"X-HTTP-Method-Override: DELETE", "X-Request-Id: chosen-by-the-client", "Expect: 100-continue", "Cookie: a", "Hosts: b", "Proxies: c")
	if refused := c.Admit(e, &Settings{}); refused != nil {
		t.Fatal(refused)
	}
	want := "X-Keep: 1\nx-keep: 2\nCookie: a\nHosts: b\nProxies: c\nX-Forwarded-For: 127.0.0.1\nX-Forwarded-Proto: http\nX-Forwarded-Host: api.test:81\nX-Request-Id: " + e.ID + "\n"
	if got := dump(&e.Request.Header); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(e.ID) != 32 || !exchange.ValidID(e.ID) || e.Request.Scheme != "http" || e.Request.Peer != c.Peer {
		t.Errorf("%q %q %v", e.ID, e.Request.Scheme, e.Request.Peer)
	}
}

func TestForwardedFromTrustedPeers(t *testing.T) {
	settings := &Settings{TrustedProxies: []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"),
	}}
	c := &Conn{Peer: netip.MustParseAddr("127.0.0.1")}
	for fields, want := range map[string]string{
		"X-Forwarded-For: 1.2.3.4":                                        "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-For: 9.9.9.9, 1.2.3.4, 10.0.0.7":                     "http 1.2.3.4 | 1.2.3.4, 10.0.0.7, 127.0.0.1",
		"X-Forwarded-For: 9.9.9.9\nX-Forwarded-For: 1.2.3.4":              "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-For: 10.0.0.1, 10.0.0.2":                             "http 10.0.0.1 | 10.0.0.1, 10.0.0.2, 127.0.0.1",
		"X-Forwarded-For: 1.2.3.4, unknown":                               "http 127.0.0.1 | 127.0.0.1",
		"X-Forwarded-For: [2001:db8::1]:80":                               "http 2001:db8::1 | 2001:db8::1, 127.0.0.1",
		"X-Forwarded-For: 2001:db8::1, fd00::1":                           "http 2001:db8::1 | 2001:db8::1, fd00::1, 127.0.0.1",
		"X-Forwarded-For: ::ffff:1.2.3.4":                                 "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-For: 1.2.3.4:99\nX-Forwarded-Proto: https":           "https 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-Proto: https\nX-Forwarded-Proto: http":               "http 127.0.0.1 | 127.0.0.1",
		"X-Forwarded-Proto: gopher":                                       "http 127.0.0.1 | 127.0.0.1",
		"Forwarded: for=9.9.9.9, For=\"[2001:db8::1]:4711\";proto=https":  "https 2001:db8::1 | 2001:db8::1, 127.0.0.1",
		"Forwarded: for=1.2.3.4;proto=https\nX-Forwarded-For: 1.2.3.4":    "https 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"Forwarded: for=9.9.9.9\nX-Forwarded-For: 1.2.3.4":                "",
		"X-Forwarded-For: 1.2.3.4\nConnection: X-Forwarded-For":           "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-For: " + strings.Repeat("10.0.0.1,", 50) + "1.2.3.4": "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X_Forwarded_For: 1.2.3.4":                                        "http 127.0.0.1 | 127.0.0.1",
		"Connection: " + strings.Repeat("a,", 40):                         "",
	} {
		e := request(strings.Split(fields, "\n")...)
		refused := c.Admit(e, settings)
		if want == "" {
			if refused == nil || refused.Status != 400 || refused.Reason != ReasonMalformed {
				t.Errorf("%q: %v", fields, refused)
			}
			continue
		}
		if refused != nil {
			t.Fatal(refused)
		}
		got := e.Request.Scheme + " " + e.Request.Peer.String() + " | " + e.Request.Header.Get("X-Forwarded-For")
		if got != want {
			t.Errorf("%.80q: got %q, want %q", fields, got, want)
		}
	}
	e := request("X-Request-Id: from-the-balancer")
	if refused := c.Admit(e, settings); refused != nil || e.ID != "from-the-balancer" {
		t.Errorf("a trusted peer's request id became %q, %v", e.ID, refused)
	}
}

// Whatever an untrusted peer sends, the upstream is told the same of it.
func TestAnUntrustedPeerCannotSayWhereItIs(t *testing.T) {
	c := &Conn{Peer: netip.MustParseAddr("192.0.2.7")}
	name := rapid.SampledFrom([]string{"X-Forwarded-For", "x-forwarded-for", "Forwarded", "X-Forwarded-Proto", "X_Forwarded_For", "X-Real-Ip", "Connection"})
	value := rapid.SampledFrom([]string{"1.2.3.4", "for=1.2.3.4;proto=https", "https", "X-Forwarded-For, X-Request-Id, X-Forwarded-Proto", ""})
	rapid.Check(t, func(t *rapid.T) {
		e := request()
		for range rapid.IntRange(0, 6).Draw(t, "fields") {
			e.Request.Header.Add(name.Draw(t, "name"), value.Draw(t, "value"))
		}
		if refused := c.Admit(e, &Settings{}); refused != nil {
			t.Fatal(refused)
		}
		if got := dump(&e.Request.Header); got != "X-Forwarded-For: 192.0.2.7\nX-Forwarded-Proto: http\nX-Forwarded-Host: api.test:81\nX-Request-Id: "+e.ID+"\n" {
			t.Fatal(got)
		}
	})
}

func TestTheHostIsTheNameThatDecided(t *testing.T) {
	for name, want := range map[string]bool{"api.test": true, "API.test.": true, "": false, "other.test": false, ".": false} {
		c := &Conn{TLS: &exchange.PeerTLS{Version: tls.VersionTLS13, ServerName: name}, SNIDecides: true}
		e := request()
		refused := c.Admit(e, &Settings{})
		if (refused == nil) != want || refused != nil && (refused.Status != 421 || refused.Reason != ReasonMisdirected) {
			t.Errorf("%q: %v", name, refused)
		}
		if e.ID == "" || e.Request.Scheme != "https" || e.Request.TLS != c.TLS {
			t.Errorf("%q: %+v", name, e.Request)
		}
		c.SNIDecides = false
		if refused := c.Admit(request(), &Settings{}); refused != nil {
			t.Errorf("%q: %v though nothing hangs on it", name, refused)
		}
	}
	if refused := (&Conn{SNIDecides: true}).Admit(request(), &Settings{}); refused == nil {
		t.Error("a plain connection passes where the handshake decides")
	}
}

func TestADeclaredBodyBeyondTheLimitIsRefused(t *testing.T) {
	e := request()
	e.Request.Body.Length = 11
	refused := (&Conn{}).Admit(e, &Settings{MaxBodyBytes: 10})
	if refused == nil || refused.Status != 413 || refused.Reason != ReasonTooLarge || !errors.Is(refused, exchange.ErrTooLarge) {
		t.Error(refused)
	}
	if strings.Contains(dump(&e.Request.Header), "X-Forwarded-For") {
		t.Error("an address that is none is passed on")
	}
}

func TestLimits(t *testing.T) {
	if s := (&Settings{}); s.HeaderLimit() != 64<<10 || s.BodyLimit() != 10<<20 {
		t.Error("zero", s.HeaderLimit(), s.BodyLimit())
	}
	if s := (&Settings{MaxHeaderBytes: 2 << 20, MaxBodyBytes: 5}); s.HeaderLimit() != 1<<20 || s.BodyLimit() != 5 {
		t.Error("set", s.HeaderLimit(), s.BodyLimit())
	}
}

func TestPeerOf(t *testing.T) {
	for address, want := range map[string]string{"1.2.3.4:5": "1.2.3.4", "[::ffff:1.2.3.4]:5": "1.2.3.4", "[fe80::1%eth0]:5": "fe80::1", "@": "invalid IP", "pipe": "invalid IP"} {
		if got := PeerOf(address).String(); got != want {
			t.Errorf("%s: %s", address, got)
		}
	}
}

func TestAnUntrustedPeerCostsNoAllocation(t *testing.T) {
	c := &Conn{Peer: netip.MustParseAddr("192.0.2.7")}
	settings := &Settings{TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	e := &exchange.Exchange{}
	ids := map[string]bool{}
	one := func() {
		e.Reset()
		e.Request.Host, e.Request.Authority = "api.test", "api.test"
		for _, name := range []string{"Host", "User-Agent", "Accept", "Authorization", "Connection", "X-Forwarded-For", "X-Request-Id"} {
			e.Request.Header.Add(name, "x")
		}
		if refused := c.Admit(e, settings); refused != nil {
			t.Error(refused)
		}
	}
	if n := testing.AllocsPerRun(100, one); n != 0 {
		t.Errorf("%v allocations", n)
	}
	for range 100 {
		one()
		ids[strings.Clone(e.ID)] = true
	}
	if len(ids) != 100 {
		t.Errorf("%d ids for 100 requests", len(ids))
	}
}
