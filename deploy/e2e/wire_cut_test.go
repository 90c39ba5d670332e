package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/deploy/cluster"
)

// The access log says of every answer that was cut short how it was, whatever
// protocol it went out by.
func TestAccessLogSaysHowAnswersAreCut(t *testing.T) {
	log := &logBuffer{}
	up := newScript(t, func(c *played, r *http.Request) bool {
		c.say(chunked + "5\r\n01234\r\n")
		switch {
		case strings.HasPrefix(r.URL.Path, "/breaks/"):
			return false
		case strings.HasPrefix(r.URL.Path, "/whole/"):
			c.say("0\r\n\r\n")
			return true
		}
		c.hold()
		return false
	})
	documents := publicTo("breaks", up.URL) + publicTo("whole", up.URL) + publicTo("silent", up.URL) + publicTo("held", up.URL)
	documents = strings.Replace(documents, "matches: [{path: {prefix: /silent}}]", "timeouts: {idle: 0.3s}\n  matches: [{path: {prefix: /silent}}]", 1)
	s := startSecured(t, cluster.Config{AccessLog: log, Drain: 100 * time.Millisecond}, documents)
	// ask returns once the answer has begun; nil when it has ended before the client
	// saw that, which a reset of HTTP/3 makes it do.
	ask := func(ctx context.Context, p protocol, path string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, "GET", p.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := p.Do(req)
		if err != nil {
			if p.name != "HTTP/3" {
				t.Fatalf("%s: %v", p.name, err)
			}
			return nil
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	check := func(path, want string) {
		t.Helper()
		line := log.lineOf(s.harness, path)
		if cut, _ := line["cut"].(string); cut != want || line["status"] != 200.0 {
			t.Errorf("the log says %v, want %q", line, want)
		}
	}
	protocols := s.protocols(t)
	for i, p := range protocols {
		way := "/" + strconv.Itoa(i)
		for path, want := range map[string]string{"/whole": "", "/breaks": "upstream", "/silent": "idle_timeout"} {
			if resp := ask(t.Context(), p, path+way); resp != nil {
				if b, err := io.ReadAll(resp.Body); (err != nil) != (want != "") || string(b) != "01234" && p.name != "HTTP/3" {
					t.Errorf("%s: %s: %q %v", p.name, path, b, err)
				}
				if detail := s.record(t, resp.Header.Get("X-Request-Id")).Detail; (detail != "") != (want != "") {
					t.Errorf("%s: %s: the record says %q", p.name, path, detail)
				}
			}
			check(path+way, want)
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	for i, p := range protocols {
		ask(ctx, p, "/held/gone/"+strconv.Itoa(i))
		ask(t.Context(), p, "/held/stop/"+strconv.Itoa(i))
	}
	leave()
	for i := range protocols {
		check("/held/gone/"+strconv.Itoa(i), "client_gone")
	}
	// It says itself what it had to cut.
	_ = s.StopNode(0)
	for i := range protocols {
		check("/held/stop/"+strconv.Itoa(i), "node_stopping")
	}
}

// lineOf returns the log's line of the one request for a path, once it is written.
func (l *logBuffer) lineOf(h *harness, path string) (line map[string]any) {
	h.t.Helper()
	h.until("the access log's line of "+path, func() error {
		for text := range strings.Lines(l.String()) {
			if strings.Contains(text, `"path":"`+path+`"`) && strings.HasSuffix(text, "\n") {
				return json.Unmarshal([]byte(text), &line)
			}
		}
		return errors.New("there is none")
	})
	return line
}

// A request whose body breaks gets its answer as long as there is none yet, from
// whichever upstream: the client's own fault is 400, the upstream's 502.
func TestBodiesThatBreakAtOnceAreAnswered(t *testing.T) {
	h := start(t, cluster.Config{})
	two := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	two.Config.Protocols = new(http.Protocols)
	two.Config.Protocols.SetUnencryptedHTTP2(true)
	two.Start()
	t.Cleanup(two.Close)
	h.apply(publicTo("one", h.up.URL) + publicTo("two", two.URL, "protocol: http2"))
	for _, path := range []string{"/one", "/two"} {
		for name, text := range map[string]string{
			"a chunk's size":       head("POST", path, "Transfer-Encoding: chunked") + "x\r\n",
			"a chunk's end":        head("POST", path, "Transfer-Encoding: chunked") + "1\r\nab\r\n",
			"the end":              head("POST", path, "Content-Length: 5"),
			"the end of the chunk": head("POST", path, "Transfer-Encoding: chunked"),
		} {
			c := h.dial(t, 0)
			c.send(t, text)
			if strings.HasPrefix(name, "the end") {
				_ = c.Conn.(interface{ CloseWrite() error }).CloseWrite()
			}
			a, err := c.receive("POST")
			if err != nil || a.Status != 400 || !strings.Contains(a.Body, `"request_malformed"`) {
				t.Errorf("%s to %s: %d %q %v", name, path, a.Status, a.Body, err)
			}
			if err := c.ended(); err != nil {
				t.Errorf("%s to %s: %v", name, path, err)
			}
		}
	}
}
