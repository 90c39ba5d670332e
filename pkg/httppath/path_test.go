package httppath

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestCanonicalPath(t *testing.T) {
	for path, want := range map[string]string{
		"/":                                     "/",
		"/orders":                               "/orders",
		"/orders/":                              "/orders/",
		"/Orders/%41%7e":                        "/Orders/A~",
		"/a%2db":                                "/a-b",
		"/caf%c3%a9":                            "/caf%C3%A9",
		"/a%20b":                                "/a%20b",
		"/a%3bb":                                "/a%3Bb",
		"/50%25":                                "/50%25",
		"/50%25x":                               "/50%25x",
		"/%25%":                                 "",
		"/x[0]|^":                               "/x%5B0%5D%7C%5E",
		"/a:b@c,d=e":                            "/a:b@c,d=e",
		"/files/a%3Ab":                          "/files/a:b",
		"/files/a%3ab":                          "/files/a:b",
		"/%21%24%26%27%28%29%2a%2B%2C%3D%3A%40": "/!$&'()*+,=:@",
		"/a%5bb%5D":                             "/a%5Bb%5D",
		"/..%2c/x":                              "/..,/x",
		"/...":                                  "/...",
		"/.well-known/x":                        "/.well-known/x",
		"/a..b/..c/d..":                         "/a..b/..c/d..",
		"":                                      "",
		"orders":                                "",
		"//admin":                               "",
		"/a//b":                                 "",
		"/a//":                                  "",
		"/.":                                    "",
		"/..":                                   "",
		"/./admin":                              "",
		"/a/../admin":                           "",
		"/a/..":                                 "",
		"/%2e/admin":                            "",
		"/%2E%2e/admin":                         "",
		"/.%2e/admin":                           "",
		"/..;/admin":                            "",
		"/..;a=b/admin":                         "",
		"/..%3b/admin":                          "",
		"/%2e%2e%3Bx/admin":                     "",
		"/.;/admin":                             "",
		"/admin;x=y":                            "",
		"/a%2fb":                                "",
		"/a%2Fb":                                "",
		"/a%5cb":                                "",
		"/a\\b":                                 "",
		"/a%00":                                 "",
		"/a\x00":                                "",
		"/a%0d%0aX:y":                           "",
		"/a%7f":                                 "",
		"/a%c2%80":                              "",
		"/a b":                                  "",
		"/a\tb":                                 "",
		"/a#b":                                  "",
		"/a%23b":                                "/a%23b",
		"/a%3fb":                                "/a%3Fb",
		"/%252f":                                "",
		"/%252e%252e/":                          "",
		"/%25%32%66":                            "",
		"/%2532%66":                             "",
		"/%%32%66":                              "",
		"/%":                                    "",
		"/%2":                                   "",
		"/%zz":                                  "",
		"/%u002f":                               "",
		"/%c0%af":                               "",
		"/%e0%80%af":                            "",
		"/%c0%ae%c0%ae/":                        "",
		"/%ff":                                  "",
		"/%ed%a0%80":                            "",
		"/\xc3\xa9":                             "",
		"/a\"b":                                 "",
		"/<x>":                                  "",
		"/{id}":                                 "",
		"/" + strings.Repeat("a/", 3):           "/a/a/a/",
	} {
		got, err := CanonicalPath(path)
		if want == "" {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%q: got %q, %v; want a malformed request", path, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", path, got, err, want)
		}
	}
}

func TestParseHost(t *testing.T) {
	for authority, want := range map[string]string{
		"api.example.com":               "api.example.com",
		"API.Example.COM:8080":          "api.example.com 8080",
		"api.example.com.":              "api.example.com",
		"api.example.com.:80":           "api.example.com 80",
		"my_service":                    "my_service",
		"127.0.0.1:1":                   "127.0.0.1 1",
		"[::1]":                         "[::1]",
		"[0:0:0:0:0:0:0:1]:443":         "[::1] 443",
		"[2001:DB8::1]":                 "[2001:db8::1]",
		"":                              "",
		":80":                           "",
		".":                             "",
		"..":                            "",
		"a..b":                          "",
		"a.b..":                         "",
		".a":                            "",
		"a:":                            "",
		"a:0":                           "",
		"a:080":                         "",
		"a:+80":                         "",
		"a:65536":                       "",
		"a:80:80":                       "",
		"a b":                           "",
		"a/b":                           "",
		"u@a":                           "",
		"a%41":                          "",
		"a,b":                           "",
		"\u212aelvin":                   "",
		"a\x00":                         "",
		"[::1":                          "",
		"[::1]x":                        "",
		"[fe80::1%25eth0]":              "",
		"[fe80::1%eth0]":                "",
		"[127.0.0.1]":                   "",
		strings.Repeat("a", 64):         "",
		strings.Repeat("a.", 127):       strings.TrimSuffix(strings.Repeat("a.", 127), "."),
		strings.Repeat("a.", 127) + "a": "",
	} {
		host, port, err := ParseHost(authority)
		got := strings.TrimSpace(host + " " + port)
		if want == "" {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%q: got %q, %v; want a malformed request", authority, got, err)
			}
			continue
		}
		if err != nil || got != want {
			t.Errorf("%q: got %q, %v; want %q", authority, got, err, want)
		}
	}
}

func FuzzCanonicalPath(f *testing.F) {
	for _, s := range []string{"/", "/a/b", "/%2e%2e/", "/a%2fb", "/%25%32%46", "/..;/", "/caf%c3%a9", "/[x]", "/%25x", "//", "/a;b", "/a%3Ab%3B%40", "/%2521", "/%25%33%42"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		canonical, err := CanonicalPath(path)
		if err != nil {
			if canonical != "" {
				t.Fatalf("a refused path came back: %q", canonical)
			}
			return
		}
		if again, err := CanonicalPath(canonical); err != nil || again != canonical {
			t.Fatalf("%q: not idempotent: %q -> %q, %v", path, canonical, again, err)
		}
		// What the upstream's parser, here net/url, makes of the canonical bytes has
		// the structure that the policies saw.
		u, err := url.ParseRequestURI(canonical)
		if err != nil {
			t.Fatalf("%q: the upstream cannot parse %q: %v", path, canonical, err)
		}
		if Unescape(canonical) != u.Path {
			t.Fatalf("%q decodes to %q upstream, to %q here", canonical, u.Path, Unescape(canonical))
		}
		// A byte that may stand raw never stands encoded: one path, one spelling.
		for i := range len(canonical) {
			if c, ok := Unhex(canonical, i+1); canonical[i] == '%' && ok && pathClass(c) == plain {
				t.Fatalf("%q keeps %q encoded: %q", path, c, canonical)
			}
		}
		if got := strings.Count(u.Path, "/"); got != strings.Count(canonical, "/") {
			t.Fatalf("%q has %d slashes once decoded", canonical, got)
		}
		if !utf8.ValidString(u.Path) || strings.ContainsAny(u.Path, "\x00\r\n\\") {
			t.Fatalf("%q decodes to %q", canonical, u.Path)
		}
		for _, view := range []string{u.Path, Unescape(u.Path)} {
			for s := range strings.SplitSeq(view, "/") {
				if s, _, _ = strings.Cut(s, ";"); s == "." || s == ".." {
					t.Fatalf("%q hides a dot segment: %q", path, view)
				}
			}
		}
	})
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"a", "A.b.:80", "[::1]:1", "a:0", "[::ffff:1.2.3.4]", "xn--a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, authority string) {
		host, port, err := ParseHost(authority)
		if err != nil {
			return
		}
		joined := host
		if port != "" {
			joined += ":" + port
		}
		h, p, err := ParseHost(joined)
		if err != nil || h != host || p != port {
			t.Fatalf("%q: not idempotent: %q -> %q %q, %v", authority, joined, h, p, err)
		}
		if strings.ContainsAny(host, "ABCDEFGHIJKLMNOPQRSTUVWXYZ/@?#% ") {
			t.Fatalf("%q gave host %q", authority, host)
		}
	})
}
