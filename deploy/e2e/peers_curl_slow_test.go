//go:build slow

package e2e_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/deploy/cluster"
)

// goUpstream is a server of net/http that says what it got.
func goUpstream(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/go/file":
			http.ServeContent(w, r, "file", time.Unix(1e9, 0), strings.NewReader(strings.Repeat("0123456789", 1000)))
		case "/go/gzip":
			w.Header().Set("Content-Encoding", "gzip")
			zip := gzip.NewWriter(w)
			_, _ = io.WriteString(zip, strings.Repeat("squeezed ", 1000))
			_ = zip.Close()
		case "/go/full":
			http.Error(w, "full", http.StatusRequestEntityTooLarge)
		default:
			sum := sha256.New()
			n, err := io.Copy(sum, r.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			fmt.Fprintf(w, "%s %s %d %x", r.Method, r.URL.Path, n, sum.Sum(nil)[:8])
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// curl, as people and scripts use it, speaks to a node in each of the ways that it
// knows.
func TestSlowCurl(t *testing.T) {
	tool(t, "curl")
	k := newES256(t, "k1")
	s := startSecured(t, cluster.Config{}, publicTo("go", goUpstream(t))+issuerWith(k)+
		routeYAML("closed", "matches: [{path: {prefix: /closed}}]", "policies: [{jwt: {issuers: [ext], audiences: [https://api.example]}}]"))
	big := strings.Repeat("0123456789abcdef", 3<<16)
	told := func(method, path, body string) string {
		sum := sha256.Sum256([]byte(body))
		return fmt.Sprintf("%s %s %d %x", method, path, len(body), sum[:8])
	}
	_, clearPort, _ := net.SplitHostPort(s.Addresses()[0])
	_, securePort, _ := net.SplitHostPort(s.https())
	for _, way := range []struct {
		name, url, version string
		args               []string
	}{
		{"HTTP/1.1", "http://" + gatewayHost + ":" + clearPort, "1.1", nil},
		{"HTTP/1.0", "http://" + gatewayHost + ":" + clearPort, "1.1", []string{"-0"}}, // answers are of the server's version
		{"upgrade to h2c", "http://" + gatewayHost + ":" + clearPort, "1.1", []string{"--http2"}},
		{"prior knowledge", "http://" + gatewayHost + ":" + clearPort, "2", []string{"--http2-prior-knowledge"}},
		{"HTTP/1.1 over TLS", "https://" + gatewayHost + ":" + securePort, "1.1", []string{"--http1.1"}},
		{"HTTP/2 over TLS", "https://" + gatewayHost + ":" + securePort, "2", []string{"--http2"}},
		{"TLS 1.2", "https://" + gatewayHost + ":" + securePort, "2", []string{"--http2", "--tls-max", "1.2"}},
	} {
		for _, c := range []struct {
			name, stdin, path string
			args              []string
			want              string
			code              int
		}{
			{"GET", "", "/go/a?b=c", nil, told("GET", "/go/a", ""), 0},
			{"POST", "", "/go/a", []string{"-d", "x=y"}, told("POST", "/go/a", "x=y"), 0},
			{"large POST", big, "/go/a", []string{"--data-binary", "@-"}, told("POST", "/go/a", big), 0},
			{"upload of a known length", big, "/go/a", []string{"-X", "PUT", "--data-binary", "@-", "-H", "Expect: 100-continue"}, told("PUT", "/go/a", big), 0},
			{"upload", big, "/go/a", []string{"-T", "-"}, told("PUT", "/go/a", big), 0},
			{"expectation", "", "/go/a", []string{"-d", "x=y", "-H", "Expect: 100-continue"}, told("POST", "/go/a", "x=y"), 0},
			{"range", "", "/go/file", []string{"-r", "5-14", "-o", "-", "-D", "/dev/null"}, "5678901234", 0},
			{"range of the end", "", "/go/file", []string{"-r", "-3"}, "789", 0},
			{"compressed", "", "/go/gzip", []string{"--compressed"}, strings.Repeat("squeezed ", 1000), 0},
			{"not modified", "", "/go/file", []string{"-z", "Mon, 10 Sep 2001 00:00:00 GMT"}, "", 0},
			{"refused", "", "/closed", []string{"-f"}, "", 22},
			{"allowed", "", "/closed/x", []string{"--oauth2-bearer", k.token()}, "ok /closed/x", 0},
		} {
			if way.name == "HTTP/1.0" && (c.name == "upload" || c.name == "expectation") {
				continue // it has neither chunks nor interim answers
			}
			t.Run(way.name+", "+c.name, func(t *testing.T) {
				args := append(append(append([]string{}, way.args...), c.args...), "-w", "\n%{http_version} %{time_total}", way.url+c.path)
				out, code := s.curl(t, c.stdin, args...)
				body, told, _ := cutLast(out, "\n")
				var version string
				var took float64
				if _, err := fmt.Sscan(told, &version, &took); err != nil || version != way.version {
					t.Errorf("HTTP/%s, want %s", told, way.version)
				}
				if body != c.want || code != c.code {
					t.Errorf("exit %d, %.100q, want %d, %.100q", code, body, c.code, c.want)
				}
				// curl waits a second for who does not say that it may go on.
				if c.name == "expectation" && took > 0.9 {
					t.Errorf("the client was not told to go on: %v s", took)
				}
			})
		}
		t.Run(way.name+", HEAD", func(t *testing.T) {
			out, code := s.curl(t, "", append(append([]string{}, way.args...), "-I", way.url+"/go/file")...)
			if lower := strings.ToLower(out); code != 0 || !strings.Contains(lower, "content-length: 10000\r\n") || !strings.Contains(lower, "accept-ranges: bytes\r\n") || !strings.HasSuffix(out, "\r\n\r\n") {
				t.Errorf("exit %d, %q", code, out)
			}
		})
		t.Run(way.name+", two on one connection", func(t *testing.T) {
			if way.name == "prior knowledge" {
				t.Skip("curl 7.88 fails at this with any server")
			}
			out, code := s.curl(t, "", append(append([]string{}, way.args...), "-o", "/dev/null", "-o", "/dev/null", "-w", "%{http_code}/%{num_connects} ", way.url+"/go/a", way.url+"/go/b")...)
			want := "200/1 200/0 "
			if way.name == "HTTP/1.0" {
				want = "200/1 200/1 "
			}
			if code != 0 || out != want {
				t.Errorf("exit %d, %q, want %q", code, out, want)
			}
		})
		t.Run(way.name+", refused while it sends", func(t *testing.T) {
			for _, size := range []int{1, 3 << 20} {
				for range 5 {
					out, code := s.curl(t, strings.Repeat("x", size), append(append([]string{}, way.args...), "--data-binary", "@-", "-o", "/dev/null", "-w", "%{http_code}", way.url+"/closed")...)
					if code != 0 || out != "401" {
						t.Errorf("%d bytes: exit %d, %q", size, code, out)
					}
				}
			}
		})
		t.Run(way.name+", too large", func(t *testing.T) {
			huge := bytes.Repeat([]byte("x"), 21_000_000)
			out, _ := s.curl(t, string(huge), append(append([]string{}, way.args...), "--data-binary", "@-", "-H", "Expect: 100-continue", "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", way.url+"/go/a")...)
			if !strings.HasPrefix(out, "413 ") || way.version == "1.1" && way.name != "HTTP/1.0" && out != "413 0" {
				t.Errorf("%q: the answer comes in place of 100 Continue", out)
			}
		})
	}
}

// cutLast is strings.Cut at the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
