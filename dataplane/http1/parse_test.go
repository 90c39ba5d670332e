package http1

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
)

func crlf(s ...string) string { return strings.Join(s, "\r\n") + "\r\n\r\n" }

func TestRequestsThatCanBeReadInTwoWays(t *testing.T) {
	get, post := "GET / HTTP/1.1\r\nHost: a\r\n", "POST / HTTP/1.1\r\nHost: a\r\n"
	for name, text := range map[string]string{
		"length and coding":     crlf(post+"Content-Length: 4", "Transfer-Encoding: chunked"),
		"coding and length":     crlf(post+"Transfer-Encoding: chunked", "Content-Length: 4"),
		"coding and no length":  crlf(post+"Transfer-Encoding: chunked", "Content-Length: 0"),
		"two lengths":           crlf(post+"Content-Length: 4", "Content-Length: 5"),
		"one length twice":      crlf(post+"Content-Length: 4", "Content-Length: 4"),
		"no length twice":       crlf(post+"Content-Length: 0", "Content-Length: 0"),
		"list of lengths":       crlf(post + "Content-Length: 4, 4"),
		"signed length":         crlf(post + "Content-Length: +4"),
		"negative length":       crlf(post + "Content-Length: -4"),
		"hexadecimal length":    crlf(post + "Content-Length: 0x4"),
		"underscored length":    crlf(post + "Content-Length: 1_0"),
		"blank in the length":   crlf(post + "Content-Length: 4 4"),
		"empty length":          crlf(post + "Content-Length:"),
		"overflowing length":    crlf(post + "Content-Length: 18446744073709551617"),
		"two codings":           crlf(post+"Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
		"list of codings":       crlf(post + "Transfer-Encoding: gzip, chunked"),
		"identity":              crlf(post + "Transfer-Encoding: identity"),
		"misspelt chunked":      crlf(post + "Transfer-Encoding: xchunked"),
		"quoted chunked":        crlf(post + "Transfer-Encoding: \"chunked\""),
		"vertical tab chunked":  crlf(post + "Transfer-Encoding: \vchunked"),
		"empty coding":          crlf(post + "Transfer-Encoding:"),
		"coding in HTTP/1.0":    crlf("POST / HTTP/1.0\r\nHost: a", "Transfer-Encoding: chunked"),
		"folded coding":         crlf(post+"Transfer-Encoding:", " chunked"),
		"folded field":          crlf(get+"X-A: b", "\tc"),
		"first field folded":    "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
		"blank before colon":    crlf(get + "X-A : b"),
		"no colon":              crlf(get + "X-A"),
		"empty name":            crlf(get + ": b"),
		"control in name":       crlf(get + "X-\x01A: b"),
		"high byte in name":     crlf(get + "X-\x80A: b"),
		"NUL in value":          crlf(get + "X-A: b\x00c"),
		"NUL in a long value":   crlf(get + "X-A: 0123456789abcdef\x00c"),
		"DEL in value":          crlf(get + "X-A: b\x7f"),
		"bare CR in value":      crlf(get + "X-A: b\rX-B: c"),
		"bare CR ends a line":   "GET / HTTP/1.1\rHost: a\r\n\r\n",
		"bare LF":               "GET / HTTP/1.1\nHost: a\n\n",
		"bare LF after field":   get + "X-A: b\nX-B: c\r\n\r\n",
		"bare LF ends the head": get + "X-A: b\r\n\n",
		"empty line first":      "\r\n" + crlf(get+"X: y"),
		"no host":               "GET / HTTP/1.1\r\n\r\n",
		"no host in HTTP/1.0":   "GET / HTTP/1.0\r\n\r\n",
		"two hosts":             crlf(get + "Host: a"),
		"empty target":          "GET  HTTP/1.1\r\nHost: a\r\n\r\n",
		"two blanks":            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
		"two blanks behind":     "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
		"blank behind":          "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
		"tab between":           "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
		"lower-case method":     "get / HTTP/1.1\r\nHost: a\r\n\r\n",
		"lower-case version":    "GET / http/1.1\r\nHost: a\r\n\r\n",
		"version 0.9":           "GET /\r\n\r\n",
		"version 1.2":           "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
		"version 1.10":          "GET / HTTP/1.10\r\nHost: a\r\n\r\n",
		"version 2":             "PRI * HTTP/2.0\r\n\r\n",
		"TLS on a plain port":   "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
		"high byte in target":   "GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
		"NUL in target":         "GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
		"long method":           strings.Repeat("A", 33) + " / HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		var r requestHead
		if end, err := headEnd([]byte(text), 0); err != nil {
			if !errors.Is(err, exchange.ErrMalformed) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		} else if end < 0 {
			t.Errorf("%s: no end", name)
		} else if err := parseRequest([]byte(text)[:end], &r); !errors.Is(err, exchange.ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	var r requestHead
	if err := parseRequest([]byte(crlf(get+strings.Repeat("A: b\r\n", maxFields)+"A: b")), &r); !errors.Is(err, exchange.ErrTooLarge) {
		t.Error("many fields:", err)
	}
}

func TestRequestHead(t *testing.T) {
	var r requestHead
	for range 2 {
		text := crlf("POST /a?b HTTP/1.1", "hOst:a:80", "X-A: \t b\t\xffc ", "X-Empty:", "content-length: 003", "Connection: Close, x", "connection: Upgrade",
			"Upgrade: websocket", "Expect: 100-continue")
		if err := parseRequest([]byte(text), &r); err != nil {
			t.Fatal(err)
		}
		if r.method != "POST" || r.target != "/a?b" || r.minor != 1 || r.host != "a:80" || r.length != 3 || r.options != optionClose|optionUpgrade ||
			r.upgrade != "websocket" || r.expect != "100-continue" || r.expects != 1 || r.websocket() || r.persistent() {
			t.Errorf("%+v", r)
		}
		want := []exchange.Field{{Name: "hOst", Value: "a:80"}, {Name: "X-A", Value: "b\t\xffc"}, {Name: "X-Empty"}, {Name: "content-length", Value: "003"}}
		if !slices.Equal(r.fields[:4], want) || len(r.fields) != 8 {
			t.Errorf("%q", r.fields)
		}
	}
	if err := parseRequest([]byte(crlf("GET / HTTP/1.0", "Host: a", "Connection: keep-alive")), &r); err != nil || r.minor != 0 || r.length != 0 || !r.persistent() {
		t.Errorf("%+v, %v", r, err)
	}
	if err := parseRequest([]byte(crlf("PUT / HTTP/1.1", "Host: a", "transfer-encoding: CHUNKED")), &r); err != nil || r.length != -1 || !r.persistent() {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestResponseHead(t *testing.T) {
	for _, c := range []struct {
		text, method string
		status       int
		length       int64
		persistent   bool
	}{
		{crlf("HTTP/1.1 200 OK", "Content-Length: 5"), "GET", 200, 5, true},
		{crlf("HTTP/1.1 200"), "GET", 200, untilClose, true},
		{crlf("HTTP/1.1 200 "), "GET", 200, untilClose, true},
		{crlf("HTTP/1.0 404 Not \xff Found", "Content-Length: 5"), "GET", 404, 5, false},
		{crlf("HTTP/1.1 200 OK", "Content-Length: 5", "Content-Length: 5"), "GET", 200, 5, true},
		{crlf("HTTP/1.1 200 OK", "Content-Length: 5", "Connection: close"), "HEAD", 200, 0, false},
		{crlf("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), "HEAD", 200, 0, true},
		{crlf("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), "GET", 200, -1, true},
		{crlf("HTTP/1.1 204 x", "Content-Length: 0"), "GET", 204, 0, true},
		{crlf("HTTP/1.1 304 x", "Content-Length: 7"), "GET", 304, 0, true},
		{crlf("HTTP/1.1 304 x", "Transfer-Encoding: chunked"), "GET", 304, 0, true},
		{crlf("HTTP/1.1 101 Switching", "Upgrade: websocket", "Connection: upgrade"), "GET", 101, 0, true},
		{crlf("HTTP/1.1 599 x"), "GET", 599, untilClose, true},
	} {
		var r responseHead
		if err := parseResponse([]byte(c.text), c.method, &r); err != nil || r.status != c.status || r.length != c.length || r.persistent() != c.persistent {
			t.Errorf("%q: %+v, %v", c.text, r, err)
		}
	}
	for _, text := range []string{
		crlf("HTTP/1.1 200 OK", "Content-Length: 5", "Transfer-Encoding: chunked"), crlf("HTTP/1.1 200 OK", "Content-Length: 5", "Content-Length: 6"),
		crlf("HTTP/1.1 200 OK", "Content-Length: 5, 5"), crlf("HTTP/1.1 200 OK", "Content-Length: -1"), crlf("HTTP/1.1 200 OK", "Transfer-Encoding: gzip, chunked"),
		crlf("HTTP/1.0 200 OK", "Transfer-Encoding: chunked"), crlf("HTTP/1.1 204 x", "Content-Length: 1"), crlf("HTTP/1.1 204 x", "Transfer-Encoding: chunked"),
		crlf("HTTP/1.1 100 x", "Content-Length: 1"), crlf("HTTP/1.1 99 x"), crlf("HTTP/1.1 600 x"), crlf("HTTP/1.1 2000 x"), crlf("HTTP/1.1 20x x"), crlf("HTTP/1.1  200 x"),
		crlf("HTTP/1.1\t200 x"), crlf("HTTP/2.0 200 x"), crlf("http/1.1 200 x"), crlf("ICY 200 OK"), crlf("HTTP/1.1 200 O\x00K"), crlf("HTTP/1.1 200 OK", "A : b"),
		crlf("HTTP/1.1 200 OK", "A: b", " c"), crlf("HTTP/1.1 200 OK", "A: b\x00"), crlf("HTTP/1.1 200 OK", "no colon"), crlf("HTTP/1.1"), crlf(""), crlf("HTTP/1.1 200 OK", "", "x"),
		crlf("HTTP/1.1 304 x", "Content-Length: 5", "Transfer-Encoding: chunked"), crlf("HTTP/1.1 200OK"),
	} {
		var r responseHead
		if err := parseResponse([]byte(text), "GET", &r); !errors.Is(err, exchange.ErrMalformed) {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
}

func TestHeadEndFindsTheFirstEmptyLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`(a|b|\r\n|\r\n\r\n|\n|\r){0,12}`).Draw(t, "s")
		known := 0
		for known < len(s) && rapid.Bool().Draw(t, "more") {
			if end, err := headEnd([]byte(s[:known]), 0); end >= 0 || err != nil {
				break
			}
			known++
		}
		if known > 0 {
			known--
		}
		whole, wholeErr := headEnd([]byte(s), 0)
		part, partErr := headEnd([]byte(s), known)
		if whole != part || (wholeErr == nil) != (partErr == nil) {
			t.Fatalf("%q from %d: %d %v, want %d %v", s, known, part, partErr, whole, wholeErr)
		}
		want := strings.Index(s, "\r\n\r\n") + 4
		if strings.HasPrefix(s, "\r\n") {
			want = 2
		}
		bare := strings.Index(strings.ReplaceAll(s, "\r\n", "xx"), "\n")
		switch {
		case wholeErr != nil:
			if bare < 0 {
				t.Fatalf("%q: refused", s)
			}
		case whole >= 0 && whole != want:
			t.Fatalf("%q: %d, want %d", s, whole, want)
		case whole < 0 && (bare >= 0 || want > 3 || want == 2):
			t.Fatalf("%q: no end", s)
		}
	})
}

func TestValueEndIsSkip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "b")
		for i := range b {
			if rapid.IntRange(0, 9).Draw(t, "keep") > 0 {
				b[i] |= 0x20
			}
		}
		if got, want := valueEnd(b, 0), skip(b, 0, inValue); got != want {
			t.Fatalf("%q: %d, want %d", b, got, want)
		}
	})
}

func TestParsingCostsNoAllocation(t *testing.T) {
	request := []byte(crlf("GET /a?b HTTP/1.1", "Host: a", "User-Agent: curl", "Accept: */*", "Connection: keep-alive"))
	response := []byte(crlf("HTTP/1.1 200 OK", "Content-Length: 100", "Content-Type: text/plain"))
	var q requestHead
	var r responseHead
	if n := testing.AllocsPerRun(100, func() {
		if parseRequest(request, &q) != nil || parseResponse(response, "GET", &r) != nil {
			t.Error("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkParseRequest(b *testing.B) {
	request := []byte(crlf("GET /users/42/orders?page=2&sort=asc HTTP/1.1", "Host: api.example.com", "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:141.0) Gecko/20100101 Firefox/141.0",
		"Accept: text/html,application/xhtml+xml", "Accept-Encoding: gzip, deflate, br", "Authorization: Bearer "+strings.Repeat("abcd", 200), "Connection: keep-alive"))
	var r requestHead
	b.SetBytes(int64(len(request)))
	b.ReportAllocs()
	for b.Loop() {
		if end, err := headEnd(request, 0); err != nil || parseRequest(request[:end], &r) != nil {
			b.Fatal(err)
		}
	}
}
