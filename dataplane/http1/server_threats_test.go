package http1

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

func lines(s ...string) string { return strings.Join(s, "\r\n") + "\r\n\r\n" }

// Every request here is answered with a refusal, its connection is closed, and
// neither it nor what follows it on the connection reaches the handler.
func TestWhatCanBeReadInTwoWaysIsRefused(t *testing.T) {
	f := start(t, Config{})
	get := "GET / HTTP/1.1\r\nHost: a\r\n"
	post := "POST / HTTP/1.1\r\nHost: a\r\n"
	refused := map[string]string{
		"length and coding":         lines(post+"Content-Length: 4", "Transfer-Encoding: chunked") + "0\r\n\r\n",
		"coding and length":         lines(post+"Transfer-Encoding: chunked", "Content-Length: 4") + "0\r\n\r\n",
		"two lengths":               lines(post+"Content-Length: 4", "Content-Length: 5") + "abcde",
		"one length twice":          lines(post+"Content-Length: 4", "Content-Length: 4") + "abcd",
		"list of lengths":           lines(post+"Content-Length: 4, 4") + "abcd",
		"signed length":             lines(post+"Content-Length: +4") + "abcd",
		"negative length":           lines(post + "Content-Length: -4"),
		"hexadecimal length":        lines(post + "Content-Length: 0x4"),
		"blank in the length":       lines(post + "Content-Length: 4 4"),
		"empty length":              lines(post + "Content-Length:"),
		"overflowing length":        lines(post + "Content-Length: 18446744073709551617"),
		"two codings":               lines(post+"Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + "0\r\n\r\n",
		"list of codings":           lines(post+"Transfer-Encoding: gzip, chunked") + "0\r\n\r\n",
		"identity":                  lines(post + "Transfer-Encoding: identity"),
		"misspelt chunked":          lines(post + "Transfer-Encoding: xchunked"),
		"quoted chunked":            lines(post + "Transfer-Encoding: \"chunked\""),
		"vertical tab chunked":      lines(post + "Transfer-Encoding: \vchunked"),
		"coding in HTTP/1.0":        lines("POST / HTTP/1.0\r\nHost: a", "Transfer-Encoding: chunked") + "0\r\n\r\n",
		"folded coding":             lines(post+"Transfer-Encoding:", " chunked"),
		"folded field":              lines(get+"X-A: b", "\tc"),
		"first field folded":        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
		"blank before colon":        lines(get + "X-A : b"),
		"coding, blank, colon":      lines(post+"Transfer-Encoding : chunked", "Content-Length: 4") + "abcd",
		"no colon":                  lines(get + "X-A"),
		"empty name":                lines(get + ": b"),
		"control in name":           lines(get + "X-\x01A: b"),
		"high byte in name":         lines(get + "X-\x80A: b"),
		"NUL in value":              lines(get + "X-A: b\x00c"),
		"control in value":          lines(get + "X-A: b\x7f"),
		"bare CR in value":          lines(get + "X-A: b\rX-B: c"),
		"bare CR ends a line":       "GET / HTTP/1.1\rHost: a\r\n\r\n",
		"bare LF":                   "GET / HTTP/1.1\nHost: a\n\n",
		"bare LF after field":       get + "X-A: b\nX-B: c\r\n\r\n",
		"bare LF ends the head":     get + "X-A: b\r\n\n",
		"empty line first":          "\r\n" + lines(get+"X: y"),
		"no host":                   "GET / HTTP/1.1\r\n\r\n",
		"no host in HTTP/1.0":       "GET / HTTP/1.0\r\n\r\n",
		"two hosts":                 lines(get + "Host: a"),
		"empty host":                "GET / HTTP/1.1\r\nHost:\r\n\r\n",
		"host with user":            "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
		"host with path":            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
		"list of hosts":             "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
		"Kelvin host":               "GET / HTTP/1.1\r\nHost: \u212aelvin\r\n\r\n",
		"absolute form, other host": "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"authority form":            "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
		"connect":                   "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
		"connect with path":         "CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
		"trace":                     "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
		"asterisk with GET":         "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
		"no slash":                  "GET svc/Method HTTP/1.1\r\nHost: a\r\n\r\n",
		"empty target":              "GET  HTTP/1.1\r\nHost: a\r\n\r\n",
		"two blanks":                "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"tab between":               "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"lower-case method":         "get / HTTP/1.1\r\nHost: a\r\n\r\n",
		"lower-case version":        "GET / http/1.1\r\nHost: a\r\n\r\n",
		"version 0.9":               "GET /\r\n\r\n",
		"version 1.2":               "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
		"version 2":                 "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"unknown expectation":       lines(get + "Expect: the-unexpected"),
		"TLS on a plain port":       "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
		"many fields":               lines(get + strings.Repeat("A: b\r\n", maxFields) + "A: b"),
		"many connection options":   lines(get + "Connection: " + strings.Repeat("a,", 40)),
		"many parameters":           "GET /?" + strings.Repeat("a&", 2000) + " HTTP/1.1\r\nHost: a\r\n\r\n",
		"large head":                lines(get + "X-A: " + strings.Repeat("a", 70<<10)),
		"endless head":              get + "X-A: " + strings.Repeat("a", 70<<10),
	}
	for _, path := range []string{
		"//admin", "/./admin", "/../admin", "/a/..;/admin", "/%2e%2e/admin", "/.%2e/", "/a%2fadmin", "/a%2Fadmin", "/a%5cadmin",
		"/a\\admin", "/%252f", "/%252e%252e/", "/admin;x=y", "/;/admin", "/a%00", "/%c0%af", "/%c0%ae%c0%ae/", "/%ff", "/a#b", "/%",
		"/%zz", "/\xc3\xa9", "/a?b#c", "/a?%", "/a%0d%0aX:%20y", "http://a//admin", "http://a/../admin",
	} {
		refused["path "+path] = "GET " + path + " HTTP/1.1\r\nHost: a\r\n\r\n"
	}
	for name, request := range refused {
		t.Run(name, func(t *testing.T) {
			f.t = t
			c := f.dial()
			defer c.Close()
			c.send(request)
			// The request that would be smuggled; the server may have closed already.
			fmt.Fprint(c, "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
			resp, body := c.receive("GET")
			switch {
			case resp.StatusCode < 400 || resp.StatusCode > 501:
				t.Errorf("answered %d %s", resp.StatusCode, body)
			case !strings.HasPrefix(body, "request_malformed: ") && !strings.HasPrefix(body, "request_too_large: "):
				t.Errorf("body %q", body)
			case !resp.Close || resp.Header.Get("X-Request-Id") == "":
				t.Errorf("header %v", resp.Header)
			}
			c.closed()
			if seen := f.reached(); len(seen) > 0 {
				t.Errorf("the handler saw %q", seen)
			}
		})
	}
}

// The head of these is in order; their bodies are not.
func TestBrokenChunksEndTheConnection(t *testing.T) {
	f := start(t, Config{})
	for _, chunks := range []string{
		"2;x=y\r\nok\r\n0\r\n\r\n", "2 \r\nok\r\n0\r\n\r\n", " 2\r\nok\r\n0\r\n\r\n", "+2\r\nok\r\n0\r\n\r\n", "0x2\r\nok\r\n0\r\n\r\n",
		"-1\r\n\r\n", "g\r\n", "\r\nok\r\n0\r\n\r\n", "2\nok\r\n0\r\n\r\n", "2\r\nok\n0\r\n\r\n", "2\r\nokk\r\n0\r\n\r\n", "2\r\nok0\r\n\r\n",
		"2\rok\r\n0\r\n\r\n", "1000000000000000000002\r\nok", "0\r\nX : y\r\n\r\n", "0\r\nX: y\n\r\n", "0\r\n X: y\r\n\r\n", "0\r\n\n",
		"0\r\nX: " + strings.Repeat("y", maxTrailerBytes) + "\r\n\r\n", "2\r\nok\r\n0;x\r\n\r\n",
	} {
		c := f.dial()
		c.send(lines("POST / HTTP/1.1\r\nHost: a", "Transfer-Encoding: chunked") + chunks)
		fmt.Fprint(c, "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, body := c.receive("POST"); resp.StatusCode != 400 || !strings.Contains(body, exchange.ErrMalformed.Error()) || !resp.Close {
			t.Errorf("%.40q: %d %q close=%t", chunks, resp.StatusCode, body, resp.Close)
		}
		c.closed()
		c.Close()
		if seen := f.reached(); len(seen) != 1 {
			t.Errorf("%.40q: the handler saw %q", chunks, seen)
		}
	}
}

func TestOrdinaryBodies(t *testing.T) {
	f := start(t, Config{})
	c := f.dial()
	for _, request := range []string{
		lines("POST / HTTP/1.1\r\nHost: a", "Content-Length: 2") + "ok",
		lines("POST / HTTP/1.1\r\nHost: a", "transfer-encoding: Chunked") + "1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
		lines("POST / HTTP/1.1\r\nHost: a", "Transfer-Encoding: chunked", "Trailer: X-User") + "0002\r\nok\r\n000\r\nX-User: root\r\n\r\n",
	} {
		c.send(request)
		if resp, body := c.receive("POST"); resp.StatusCode != 200 || !strings.HasSuffix(body, "body=ok") || strings.Contains(body, "X-User") {
			t.Errorf("%q: %d %q", request, resp.StatusCode, body)
		}
	}
}

func TestPipelinedRequestsAreAnsweredInTurnAndTheBadOneLast(t *testing.T) {
	f := start(t, Config{})
	c := f.dial()
	c.send(lines("GET /1 HTTP/1.1\r\nHost: a") + lines("POST /2 HTTP/1.1\r\nHost: a", "Content-Length: 4") + "GET " +
		lines("GET /3 HTTP/1.1\r\nHost: a") + lines("GET //4 HTTP/1.1\r\nHost: a") + lines("GET /5 HTTP/1.1\r\nHost: a"))
	for _, want := range []int{200, 200, 200, 400} {
		if resp, body := c.receive("GET"); resp.StatusCode != want {
			t.Errorf("got %d %q, want %d", resp.StatusCode, body, want)
		}
	}
	c.closed()
	if seen := f.reached(); !slices.Equal(seen, []string{"GET /1", "POST /2", "GET /3"}) {
		t.Errorf("the handler saw %q", seen)
	}
}

func TestHeadersThatMustNotReachTheUpstream(t *testing.T) {
	f := start(t, Config{})
	_, body := f.once(lines("GET /a%41?q HTTP/1.1", "Host: API.example.com:8080", "X_User: root", "x.user: root", "X-Keep: 1", "x-keep: 2", "X~User: root",
		"Connection: close, X-Hop", "connection: x-hop2", "X-Hop: 1", "X-Hop2: 1", "Keep-Alive: x", "TE: trailers", "Trailer: x", "Upgrade: h2c", "HTTP2-Settings: x",
		"Proxy-Authorization: x", "Proxy-Connection: x", "Content_Length: 3", "Transfer_Encoding: chunked",
		"X-Forwarded-For: 9.9.9.9", "x-forwarded-proto: https", "X-Forwarded-Host: evil", "X-FORWARDED-PORT: 1", "X-Forwarded-Prefix: /x", "X-Forwarded-Uri: /x",
		"X-Forwarded: x", "X_Forwarded_For: 9.9.9.9", "Forwarded: for=9.9.9.9", "X-Real-IP: 9.9.9.9", "X-Original-URL: /admin", "X-Rewrite-URL: /admin",
		"X-Portcullis-Subject: root", "x-portcullis-anything: root", "Proxy: http://evil", "Client-IP: 9.9.9.9",
		"X-HTTP-Method-Override: DELETE", "X-Request-Id: chosen-by-the-client", "Expect: 100-continue"))
	line, fields, _ := strings.Cut(body, "\n")
	if line != "GET /aA?q host=api.example.com authority=api.example.com:8080 scheme=http peer=127.0.0.1" {
		t.Error(line)
	}
	id := fields[strings.LastIndex(fields, " ")+1:]
	want := "X-Keep: 1\nx-keep: 2\nX-Forwarded-For: 127.0.0.1\nX-Forwarded-Proto: http\nX-Forwarded-Host: api.example.com:8080\nX-Request-Id: " + id
	if fields != want || len(id) != 33 {
		t.Errorf("got\n%s\nwant\n%s", fields, want)
	}
}

func TestForwardedFromTrustedPeers(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	f := start(t, Config{Settings: func() *admission.Settings { return &admission.Settings{TrustedProxies: trusted} }})
	for request, want := range map[string]string{
		"X-Forwarded-For: 1.2.3.4":                                                "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-For: 9.9.9.9, 1.2.3.4, 10.0.0.7":                             "http 1.2.3.4 | 1.2.3.4, 10.0.0.7, 127.0.0.1",
		"X-Forwarded-For: 9.9.9.9\r\nX-Forwarded-For: 1.2.3.4":                    "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-For: 10.0.0.1, 10.0.0.2":                                     "http 10.0.0.1 | 10.0.0.1, 10.0.0.2, 127.0.0.1",
		"X-Forwarded-For: 1.2.3.4, unknown":                                       "http 127.0.0.1 | 127.0.0.1",
		"X-Forwarded-For: [2001:db8::1]:80":                                       "http 2001:db8::1 | 2001:db8::1, 127.0.0.1",
		"X-Forwarded-For: 2001:db8::1, fd00::1":                                   "http 2001:db8::1 | 2001:db8::1, fd00::1, 127.0.0.1",
		"X-Forwarded-For: ::ffff:1.2.3.4":                                         "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-For: 1.2.3.4:99\r\nX-Forwarded-Proto: https":                 "https 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http":                     "http 127.0.0.1 | 127.0.0.1",
		"X-Forwarded-Proto: gopher":                                               "http 127.0.0.1 | 127.0.0.1",
		"Forwarded: for=9.9.9.9, For=\"[2001:db8::1]:4711\";proto=https":          "https 2001:db8::1 | 2001:db8::1, 127.0.0.1",
		"Forwarded: for=1.2.3.4;proto=https\r\nX-Forwarded-For: 1.2.3.4":          "https 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"Forwarded: for=9.9.9.9\r\nX-Forwarded-For: 1.2.3.4":                      "",
		"X-Forwarded-For: 1.2.3.4\r\nConnection: X-Forwarded-For":                 "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X-Forwarded-For: " + strings.Repeat("10.0.0.1,", 50) + "1.2.3.4\r\nA: b": "http 1.2.3.4 | 1.2.3.4, 127.0.0.1",
		"X_Forwarded_For: 1.2.3.4":                                                "http 127.0.0.1 | 127.0.0.1",
	} {
		resp, body := f.once(lines("GET / HTTP/1.1", "Host: a", request))
		if want == "" {
			if resp.StatusCode != 400 {
				t.Errorf("%q: %d %q", request, resp.StatusCode, body)
			}
			continue
		}
		line, fields, _ := strings.Cut(body, "\n")
		_, at, _ := strings.Cut(line, "scheme=")
		_, chain, _ := strings.Cut(fields, "X-Forwarded-For: ")
		chain, _, _ = strings.Cut(chain, "\n")
		if got := strings.Replace(at, "peer=", "", 1) + " | " + chain; got != want {
			t.Errorf("%.80q: got %q, want %q", request, got, want)
		}
	}
	resp, _ := f.once(lines("GET / HTTP/1.1", "Host: a", "X-Request-Id: from-the-balancer"))
	if got := resp.Header.Get("X-Request-Id"); got != "from-the-balancer" {
		t.Errorf("a trusted peer's request id became %q", got)
	}
}
