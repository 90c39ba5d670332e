package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"portcullis.dev/portcullis/deploy/cluster"
	"portcullis.dev/portcullis/pkg/identity/certtest"
)

// frames is one HTTP/2 connection to a node, on which a test writes what it likes.
type frames struct {
	net.Conn
	*http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
	decoder *hpack.Decoder
	fields  []hpack.HeaderField
	next    uint32
}

func newFrames(t *testing.T, conn net.Conn) *frames {
	t.Helper()
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	f := &frames{Conn: conn, Framer: http2.NewFramer(conn, conn), next: 1}
	f.AllowIllegalWrites = true
	f.encoder = hpack.NewEncoder(&f.block)
	f.decoder = hpack.NewDecoder(4096, func(field hpack.HeaderField) { f.fields = append(f.fields, field) })
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return f
}

// ask sends one request of names and values in turn, and reads its answer.
func (f *frames) ask(t *testing.T, pairs ...string) answer {
	t.Helper()
	f.block.Reset()
	for i := 0; i+1 < len(pairs); i += 2 {
		if err := f.encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}); err != nil {
			t.Fatal(err)
		}
	}
	id := f.next
	f.next += 2
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: f.block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	a := answer{Header: http.Header{}}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("%q: %v", pairs, err)
		}
		ended := false
		switch frame := frame.(type) {
		case *http2.HeadersFrame:
			f.fields = nil
			if _, err := f.decoder.Write(frame.HeaderBlockFragment()); err != nil {
				t.Fatal(err)
			}
			for _, field := range f.fields {
				if field.Name == ":status" {
					_, _ = fmt.Sscan(field.Value, &a.Status)
				} else {
					a.Header.Add(field.Name, field.Value)
				}
			}
			ended = frame.StreamEnded()
		case *http2.DataFrame:
			a.Body += string(frame.Data())
			ended = frame.StreamEnded()
		case *http2.RSTStreamFrame:
			ended = frame.StreamID == id
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			t.Fatalf("%q: %v", pairs, frame)
		}
		if ended && frame.Header().StreamID == id {
			if a.Status >= 400 {
				_ = json.Unmarshal([]byte(a.Body), &a)
			}
			return a
		}
	}
}

// asked is the head of a request by frames.
func asked(path string, more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", path}, more...)
}

// What is refused in HTTP/1.1 is refused in HTTP/2 and HTTP/3, what passes reaches
// the upstream as the same request: no front end believes what another would not.
func TestThreatsInEveryProtocol(t *testing.T) {
	k := newES256(t, "k1")
	s := startSecured(t, cluster.Config{}, threatRoutes(k))
	for name, run := range map[string]func(*testing.T, *secured, keyPair){
		"paths by frames": threatFramePaths, "heads by frames": threatFrameHeads, "alike": threatsAlike,
	} {
		t.Run(name, func(t *testing.T) {
			s.up.take()
			run(t, s, k)
		})
	}
}

func (s *secured) frames(t *testing.T) *frames {
	conn, err := net.Dial("tcp", s.Addresses()[0])
	if err != nil {
		t.Fatal(err)
	}
	return newFrames(t, conn)
}

func threatFramePaths(t *testing.T, s *secured, _ keyPair) {
	f := s.frames(t)
	targets := append(slices.Clone(ambiguousPaths), "", "*", "svc/Method", "admin", "?", "?/admin", "#", "/admin#", "/public#/admin", "/x?y#z", "http://a/admin", "http://b/public", "//a/admin",
		"/admin HTTP/1.1\r\nX: y", "/x?a=%zz", "/x?"+strings.Repeat("a=1&", 1000)+"a=1")
	for _, target := range targets {
		refused(t, target, f.ask(t, asked(target)...), 400, "request_malformed")
		s.untouched(t, target)
	}
	for _, target := range []string{"/%61dmin", "/admin?", "/admin?x=/public", "/admin?/public", "/admin?/../public", "/%65xact", "/people/a%20b/s%65crets"} {
		refused(t, target, f.ask(t, asked(target)...), 401, "credential_missing")
		s.untouched(t, target)
	}
	for target, want := range map[string]string{"/%41b": "/Ab", "/a%7eb": "/a~b", "/a%c3%a9": "/a%C3%A9", "/a|b": "/a%7Cb", "/a?x=%2e%2e/&y=//": "/a?x=%2e%2e/&y=//", "/a%23b": "/a%23b"} {
		a := f.ask(t, asked(target)...)
		if got := s.up.take(); a.Status != 200 || len(got) != 1 || got[0].Target != want {
			t.Errorf("%s: %d, the upstream saw %v, want %s", target, a.Status, got, want)
		}
	}
}

// Each row is a head that HTTP/1.1 would turn into another message.
func threatFrameHeads(t *testing.T, s *secured, k keyPair) {
	f := s.frames(t)
	credential := "Bearer " + k.token()
	for _, more := range [][]string{
		{"x-a", "b\r\nx-portcullis-subject: root"}, {"x-a", "b\nc"}, {"x-a", "b\x00"}, {"x-a", "b\r"}, {"x-a\r\nhost", "b"}, {"x-a: b\r\nx-c", "d"}, {"X-A", "b"}, {"x a", "b"}, {"", "b"},
		{"connection", "x-portcullis-subject"}, {"connection", "close"}, {"transfer-encoding", "chunked"}, {"upgrade", "h2c"}, {"keep-alive", "5"}, {"proxy-connection", "close"}, {"te", "gzip"},
		{"host", "b"}, {"host", "a", "host", "a"}, {"content-length", "5"}, {"content-length", "0", "content-length", "5"}, {"content-length", "+0"}, {":path", "/public"}, {":method", "GET"}, {":authority", "b"}, {":protocol", "websocket"},
	} {
		a := f.ask(t, asked("/admin", append(more, "authorization", credential)...)...)
		refused(t, fmt.Sprintf("%q", more), a, 400, "request_malformed")
		s.untouched(t, fmt.Sprintf("%q", more))
	}
	for what, pairs := range map[string][]string{
		"no authority": {":method", "GET", ":scheme", "http", ":path", "/"}, "user": {":method", "GET", ":scheme", "http", ":path", "/", ":authority", "u@a"},
		"Kelvin": {":method", "GET", ":scheme", "http", ":path", "/", ":authority", "\u212aa"}, "lower case": {":method", "get", ":scheme", "http", ":path", "/", ":authority", "a"},
		"smuggled method": {":method", "GET /admin HTTP/1.1\r\n", ":scheme", "http", ":path", "/", ":authority", "a"}, "smuggled scheme": {":method", "GET", ":scheme", "http://a/admin?", ":path", "/", ":authority", "a"},
		"CONNECT": {":method", "CONNECT", ":authority", "a:80"}, "field before": {"x-a", "b", ":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a"},
	} {
		refused(t, what, f.ask(t, pairs...), 0, "request_malformed")
		s.untouched(t, what)
	}
	refused(t, "twice", f.ask(t, asked("/admin", "authorization", credential, "authorization", credential)...), 400, "credential_duplicate")
	// Crumbs of a cookie are one field for who speaks HTTP/1.1 (RFC 9113, 8.2.3).
	f.ask(t, asked("/public", "cookie", "a=b", "cookie", "c=d")...)
	if got := s.up.take(); len(got) != 1 || !slices.Equal(got[0].Header["Cookie"], []string{"a=b; c=d"}) {
		t.Errorf("crumbs: %v", got)
	}
}

// threatsAlike sends the same requests in every protocol.
func threatsAlike(t *testing.T, s *secured, k keyPair) {
	var forged [][2]string
	for _, name := range identityFields {
		forged = append(forged, [2]string{name, "forged"}, [2]string{strings.ToLower(name), "forged again"})
	}
	for _, line := range forwardedLines {
		name, value, _ := strings.Cut(line, ": ")
		forged = append(forged, [2]string{name, value})
	}
	for _, name := range []string{"X_Portcullis_Subject", "X-Portcullis_Subject", "x.portcullis.subject", "X_Forwarded_For", "Content_Length", "X~User", "authorization_", "Proxy", "Proxy-Authorization"} {
		forged = append(forged, [2]string{name, "forged"})
	}
	forged = append(forged, [2]string{"X-User", "one"}, [2]string{"X-User", "two"}, [2]string{"TE", "trailers"})
	rows := map[string]struct {
		path, token string
		status      int
		reason      string
	}{
		"public": {"/public", "", 200, ""}, "failing on a public route": {"/public", "nonsense", 200, ""}, "admin": {"/admin", "", 401, "credential_missing"}, "failing": {"/admin", newES256(t, k.kid).token(), 401, "token_bad_signature"},
		"allowed": {"/admin", k.token(), 200, ""}, "without the claims": {"/admin", k.token("sub", omit), 200, ""}, "odd claims": {"/admin", k.token("sub", "a b\u00e9%", "roles", []string{"x,admin"}), 200, ""},
		"encoded slash": {"/x%2fadmin", "", 400, "request_malformed"}, "dots": {"/x/../admin", "", 400, "request_malformed"}, "encoded dots": {"/x/%2e%2e/admin", "", 400, "request_malformed"}, "matrix": {"/..;/admin", "", 400, "request_malformed"},
		"double": {"/%252fadmin", "", 400, "request_malformed"}, "canonical": {"/%61dmin", "", 401, "credential_missing"}, "folded": {"/x%c3%a9?y=%2f", "", 200, ""},
	}
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		row := rows[name]
		var first *seen
		for _, p := range s.protocols(t) {
			what := name + " over " + p.name
			a := p.forge(t, row.path, row.token, forged)
			got := s.up.take()
			if row.reason != "" {
				refused(t, what, a, row.status, row.reason)
				if len(got) > 0 {
					t.Errorf("%s: the upstream saw %v", what, got)
				}
				continue
			}
			if a.Status != row.status || len(got) != 1 {
				t.Errorf("%s: %d %s, the upstream saw %v", what, a.Status, a.Body, got)
				continue
			}
			if all := fmt.Sprint(got[0].Header); strings.Contains(all, "forged") || strings.Contains(all, "9.9.9.9") || strings.Contains(all, "evil") || got[0].Method != "GET" {
				t.Errorf("%s: what the client says of itself passed: %v", what, got[0])
			}
			// What is this connection's own is not compared.
			for _, own := range []string{"X-Request-Id", "Traceparent", "X-Forwarded-Proto", "X-Forwarded-Host", "User-Agent"} {
				got[0].Header.Del(own)
			}
			if got[0].Host = ""; first == nil {
				first = &got[0]
			} else if fmt.Sprint(*first) != fmt.Sprint(got[0]) {
				t.Errorf("%s: the upstream saw\n%v\nand over HTTP/1.1\n%v", what, got[0], *first)
			}
		}
	}
}

// forge sends a GET with fields that are not the client's to set.
func (p protocol) forge(t *testing.T, path, token string, fields [][2]string) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", p.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.URL.Opaque, req.URL.RawQuery = path, ""
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for _, f := range fields {
		req.Header[f[0]] = append(req.Header[f[0]], f[1])
	}
	resp, err := p.Do(req)
	if err != nil {
		t.Fatalf("%s: %v", p.name, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{Status: resp.StatusCode, Header: resp.Header, Body: string(body)}
}

// Where clients are verified by the name of the handshake, a request bears that
// name, in every protocol; a connection that was made for one host does not serve
// another (coalescing).
func TestThreatNameOfTheHandshake(t *testing.T) {
	h := start(t, cluster.Config{Sockets: map[string]string{"http": "127.0.0.1:0", "mtls": "127.0.0.1:0"}})
	ca := certtest.New(t, "ca")
	shown := ca.Issue(t, certtest.Spec{Hosts: []string{"one.example", "two.example", "*.wild.example"}})
	mine := ca.Issue(t, certtest.Spec{Name: "client"}).TLS(t)
	h.apply(fmt.Sprintf(`
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec: {listeners: [{name: http}, {name: mtls, http3: true, tls: {certificates: [shown], clientCertificates: {ca: %q}}}]}
---
apiVersion: portcullis.dev/v1
kind: Certificate
metadata: {name: shown}
spec: {certificate: %q, privateKey: %q}
`, ca.CertPEM, shown.CertPEM, shown.KeyPEM) + routeYAML("open", "public: true"))
	address := h.Sockets()[0]["mtls"]
	for _, c := range []struct {
		sni, host string
		status    int
	}{
		{"one.example", "one.example", 200}, {"one.example", "ONE.Example", 200}, {"ONE.example", "one.example", 200}, {"one.example", "one.example:443", 200}, {"one.example", "one.example:8443", 200}, {"a.wild.example", "a.wild.example", 200},
		{"one.example", "two.example", 421}, {"one.example", "a.wild.example", 421}, {"a.wild.example", "b.wild.example", 421}, {"one.example", "127.0.0.1", 421}, {"one.example", "one.example.evil", 421}, {"", "one.example", 421},
	} {
		trust := &tls.Config{RootCAs: ca.Pool(), ServerName: c.sni, Certificates: []tls.Certificate{mine}}
		if c.sni == "" {
			// A name that is an address is not sent.
			trust.ServerName, trust.InsecureSkipVerify = "127.0.0.1", true
		}
		for _, name := range []string{"HTTP/1.1", "HTTP/2", "HTTP/3"} {
			what := fmt.Sprintf("%s: handshake %q, request %q", name, c.sni, c.host)
			a := onOwn(t, name, address, trust, c.host)
			got := h.up.take()
			if a.Status != c.status || len(got) != 0 == (c.status == 421) {
				t.Errorf("%s: %d %s, the upstream saw %v", what, a.Status, a.Body, got)
			}
			if c.status == 421 {
				refused(t, what, a, 421, "misdirected_request")
			}
		}
	}
}

// onOwn asks for a host on a connection of its own.
func onOwn(t *testing.T, protocol, address string, trust *tls.Config, host string) answer {
	t.Helper()
	trust = trust.Clone()
	switch protocol {
	case "HTTP/3":
		transport := &http3.Transport{TLSClientConfig: trust, Dial: func(ctx context.Context, _ string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
			c.ServerName = trust.ServerName
			return quic.DialAddrEarly(ctx, address, c, q)
		}}
		defer func() { _ = transport.Close() }()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", "https://"+host+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{Status: resp.StatusCode, Header: resp.Header, Body: string(body)}
	case "HTTP/2":
		trust.NextProtos = []string{"h2"}
	}
	conn, err := tls.Dial("tcp", address, trust)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if protocol == "HTTP/2" {
		return newFrames(t, conn).ask(t, ":method", "GET", ":scheme", "https", ":authority", host, ":path", "/")
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request("GET", "/", "Host: "+host)); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return parseReplies(t, string(text))[0]
}
