package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"portcullis.dev/portcullis/deploy/cluster"
)

// badAnswer is what an upstream sends in place of an answer.
type badAnswer struct {
	method, text string
	// ends: the upstream closes behind it. Else it waits for whatever comes.
	ends bool
	// late is sent once the client has its answer: on the connection that carries
	// the next one, if it is used again.
	late string
	// body is what the client may get for an answer, status what it gets: 502 for a
	// refusal. cut: it is no whole answer, its connection ends.
	status int
	body   string
	cut    bool
}

const (
	okHead  = "HTTP/1.1 200 OK\r\n"
	chunked = okHead + "Transfer-Encoding: chunked\r\n\r\n"
	// stray is what an attacker who rules one answer would like to be the next.
	stray = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray"
)

// badAnswers cannot be read in exactly one way, or end too early or too late.
func badAnswers() map[string]badAnswer {
	refused := func(text string) badAnswer { return badAnswer{text: text, status: 502} }
	cut := func(text string, ends bool) badAnswer {
		return badAnswer{text: text, ends: ends, status: 200, cut: true}
	}
	rows := map[string]badAnswer{
		"length and chunks":         refused(okHead + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + stray),
		"chunks and length":         refused(okHead + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + stray),
		"two lengths":               refused(okHead + "Content-Length: 0\r\nContent-Length: 43\r\n\r\n" + stray),
		"list of lengths":           refused(okHead + "Content-Length: 0, 43\r\n\r\n" + stray),
		"signed length":             refused(okHead + "Content-Length: +2\r\n\r\nok"),
		"negative length":           refused(okHead + "Content-Length: -1\r\n\r\nok"),
		"hex length":                refused(okHead + "Content-Length: 0x2\r\n\r\nok"),
		"length with a unit":        refused(okHead + "Content-Length: 2 bytes\r\n\r\nok"),
		"empty length":              refused(okHead + "Content-Length:\r\n\r\nok"),
		"huge length":               refused(okHead + "Content-Length: 99999999999999999999\r\n\r\nok"),
		"misspelt chunked":          refused(okHead + "Transfer-Encoding: chunke\r\n\r\n0\r\n\r\n"),
		"gzip, chunked":             refused(okHead + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
		"chunked twice":             refused(okHead + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
		"identity":                  refused(okHead + "Transfer-Encoding: identity\r\n\r\nok"),
		"chunks in HTTP/1.0":        refused("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
		"vertical tab":              refused(okHead + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
		"blank before the colon":    refused(okHead + "Content-Length : 2\r\n\r\nok"),
		"obs-fold":                  refused(okHead + "X-A: b\r\n c\r\nContent-Length: 2\r\n\r\nok"),
		"fold in the first line":    refused("HTTP/1.1 200 OK\r\n X: y\r\nContent-Length: 2\r\n\r\nok"),
		"NUL in a value":            refused(okHead + "X-A: b\x00c\r\nContent-Length: 2\r\n\r\nok"),
		"NUL in a name":             refused(okHead + "X\x00A: b\r\nContent-Length: 2\r\n\r\nok"),
		"NUL in the phrase":         refused("HTTP/1.1 200 O\x00K\r\nContent-Length: 2\r\n\r\nok"),
		"bare LF":                   refused("HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
		"bare LF between fields":    refused(okHead + "X-A: b\nContent-Length: 2\r\n\r\nok"),
		"bare CR":                   refused(okHead + "X-A: b\rContent-Length: 2\r\n\r\nok"),
		"no colon":                  refused(okHead + "X-A\r\nContent-Length: 2\r\n\r\nok"),
		"empty name":                refused(okHead + ": b\r\nContent-Length: 2\r\n\r\nok"),
		"empty line before":         refused("\r\n" + okHead + "Content-Length: 2\r\n\r\nok"),
		"status of two digits":      refused("HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok"),
		"status of four digits":     refused("HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok"),
		"status of letters":         refused("HTTP/1.1 two OK\r\nContent-Length: 2\r\n\r\nok"),
		"status 000":                refused("HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nok"),
		"status 099":                refused("HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nok"),
		"status 600":                refused("HTTP/1.1 600 OK\r\nContent-Length: 2\r\n\r\nok"),
		"signed status":             refused("HTTP/1.1 -20 OK\r\nContent-Length: 2\r\n\r\nok"),
		"HTTP/2.0":                  refused("HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
		"HTTP/1.2":                  refused("HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nok"),
		"lower case":                refused("http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
		"ICY":                       refused("ICY 200 OK\r\nContent-Length: 2\r\n\r\nok"),
		"another protocol":          refused("SSH-2.0-OpenSSH_9.2\r\n\r\n"),
		"TLS":                       refused("\x15\x03\x03\x00\x02\x02\x46\r\n\r\n"),
		"a request":                 refused(head("GET", "/admin")),
		"unasked switch":            refused("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + stray),
		"switch to nothing":         refused("HTTP/1.1 101 Switching Protocols\r\n\r\n" + stray),
		"204 with a length":         refused("HTTP/1.1 204 No Content\r\nContent-Length: 43\r\n\r\n" + stray),
		"204 in chunks":             refused("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n2b\r\n" + stray + "\r\n0\r\n\r\n"),
		"interim with a length":     refused("HTTP/1.1 103 Early Hints\r\nContent-Length: 43\r\n\r\n" + stray),
		"flood of interim answers":  refused(strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 1000) + stray),
		"flood of large hints":      refused(strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: <"+strings.Repeat("x", 60<<10)+">\r\n\r\n", 10) + stray),
		"flood of fields":           refused(okHead + strings.Repeat("X-A: b\r\n", 5000) + "\r\n"),
		"flood of options":          refused(okHead + "Connection: " + strings.Repeat("a,", 500) + "\r\n\r\n"),
		"ends in the first line":    {text: "HTTP/1.1 20", ends: true, status: 502},
		"ends in a field":           {text: okHead + "X-A: b", ends: true, status: 502},
		"ends before the last line": {text: okHead + "X-A: b\r\n", ends: true, status: 502},
		"ends behind a hint":        {text: "HTTP/1.1 103 Early Hints\r\n\r\n", ends: true, status: 502},

		"short body":             cut(okHead+"Content-Length: 10\r\n\r\nshort", true),
		"short chunk":            cut(chunked+"a\r\nshort", true),
		"no last chunk":          cut(chunked+"2\r\nok\r\n", true),
		"no end of the trailer":  cut(chunked+"2\r\nok\r\n0\r\n", true),
		"chunk size of letters":  cut(chunked+"2\r\nok\r\ng\r\n", false),
		"chunk size signed":      cut(chunked+"2\r\nok\r\n+2\r\nok\r\n0\r\n\r\n", false),
		"chunk size 0x":          cut(chunked+"2\r\nok\r\n0x2\r\nok\r\n0\r\n\r\n", false),
		"chunk size beyond":      cut(chunked+"2\r\nok\r\n10000000000000002\r\nok\r\n0\r\n\r\n", false),
		"chunk size and a blank": cut(chunked+"2\r\nok\r\n2 \r\nok\r\n0\r\n\r\n", false),
		"chunk extension":        cut(chunked+"2\r\nok\r\n2;x=\"\n\"\r\nok\r\n0\r\n\r\n", false),
		"chunk with bare LF":     cut(chunked+"2\r\nok\r\n2\nok\r\n0\r\n\r\n", false),
		"chunk without its end":  cut(chunked+"2\r\nok\r\n2\r\nokok0\r\n\r\n", false),
		"trailer with a blank":   cut(chunked+"2\r\nok\r\n0\r\nX-A : b\r\n\r\n", false),
		"trailer folded":         cut(chunked+"2\r\nok\r\n0\r\nX-A: b\r\n c\r\n\r\n", false),
		"endless trailer":        cut(chunked+"2\r\nok\r\n0\r\n"+strings.Repeat("X-A: "+strings.Repeat("b", 1000)+"\r\n", 1000), false),

		"a length, twice the same": {text: okHead + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
		"no phrase":                {text: "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok", status: 200, body: "ok"},
		"until it ends":            {text: okHead + "\r\nok", ends: true, status: 200, body: "ok"},
		"HTTP/1.0":                 {text: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok" + stray, status: 200, body: "ok"},
	}
	// A body where there is none, and more than there may be: at once, and later.
	for name, row := range map[string]badAnswer{
		"long body":   {method: "GET", text: okHead + "Content-Length: 2\r\n\r\nok", status: 200, body: "ok"},
		"long chunks": {method: "GET", text: chunked + "2\r\nok\r\n0\r\n\r\n", status: 200, body: "ok"},
		"empty":       {method: "GET", text: okHead + "Content-Length: 0\r\n\r\n", status: 200},
		"HEAD":        {method: "HEAD", text: okHead + "Content-Length: 43\r\n\r\n", status: 200},
		"204":         {method: "GET", text: "HTTP/1.1 204 No Content\r\n\r\n", status: 204},
		"304":         {method: "GET", text: "HTTP/1.1 304 Not Modified\r\nContent-Length: 43\r\n\r\n", status: 304},
	} {
		late := row
		row.text += stray
		late.late = stray
		rows[name+" with more"], rows[name+" with more, later"] = row, late
	}
	return rows
}

// badUpstream plays the rows by the last part of the path, and good answers.
func badUpstream(t *testing.T, rows map[string]badAnswer) (*script, map[string]string, chan chan struct{}) {
	paths, later := map[string]string{}, make(chan chan struct{})
	byPath := map[string]badAnswer{}
	for name, row := range rows {
		paths[name] = fmt.Sprintf("/bad/%d", len(paths))
		byPath[paths[name]] = row
	}
	return newScript(t, func(c *played, r *http.Request) bool {
		row, bad := byPath[r.URL.Path]
		if !bad {
			c.say(reply("200 OK", "good"))
			return true
		}
		c.say(row.text)
		switch {
		case row.ends:
			return false
		case row.late != "":
			if sent, ok := <-later; ok {
				c.say(row.late)
				close(sent)
			}
		}
		return true
	}), paths, later
}

// Whatever an upstream sends, its client gets one whole refusal, or, once a head
// is out, a connection that ends; the next request on the same connections gets
// the answer to itself, from a connection that was never out of step.
func TestBadAnswers(t *testing.T) {
	h := start(t, cluster.Config{})
	rows := badAnswers()
	up, paths, later := badUpstream(t, rows)
	defer close(later)
	h.apply(publicTo("bad", up.URL))
	for name, row := range rows {
		t.Run(name, func(t *testing.T) { row.overHTTP1(t, h, up, paths[name], later) })
		t.Run(name+", to HTTP/2", func(t *testing.T) { row.overHTTP2(t, h, up, paths[name], later) })
	}
}

func (row *badAnswer) ask() string {
	if row.method == "" {
		return "GET"
	}
	return row.method
}

func (row *badAnswer) overHTTP1(t *testing.T, h *harness, up *script, path string, later chan chan struct{}) {
	up.take()
	c := h.dial(t, 0)
	a, err := c.ask(t, row.ask(), path)
	switch {
	case row.cut:
		// A node that has not begun its answer may still refuse.
		if a.Status == 502 {
			refused(t, path, a, 502, "upstream_unavailable")
		} else if err == nil {
			t.Errorf("an answer that is none is whole: %+v", a)
		}
	case err != nil:
		t.Fatal(err)
	case row.status == 502:
		refused(t, path, a, 502, "upstream_unavailable")
		if r := h.record(t, a.RequestID); r.Reason != "upstream_unavailable" || r.Status != 502 || r.Detail == "" {
			t.Errorf("the record says %v", r)
		}
	case a.Status != row.status || a.Body != row.body:
		t.Errorf("%d %q, want %d %q", a.Status, a.Body, row.status, row.body)
	}
	row.speakLate(later)
	if row.cut && a.Status != 502 {
		if err := c.ended(); err != nil {
			t.Error(err)
		}
		c = h.dial(t, 0)
	}
	for range 3 {
		if a := c.get(t, "/bad/good"); a.Status != 200 || a.Body != "good" {
			t.Errorf("the next answer: %d %q", a.Status, a.Body)
		}
	}
	row.separate(t, up)
}

func (row *badAnswer) overHTTP2(t *testing.T, h *harness, up *script, path string, later chan chan struct{}) {
	up.take()
	client := h.http2(t)
	ask := func(method, path string) (int, string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, method, "http://"+h.Addresses()[0]+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		defer func() { _ = resp.Body.Close() }()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), err
	}
	status, body, err := ask(row.ask(), path)
	switch {
	case row.cut:
		if err == nil && status != 502 {
			t.Errorf("an answer that is none is whole: %d %q", status, body)
		}
	case err != nil || status != row.status || status != 502 && body != row.body || status == 502 && !strings.Contains(body, `"upstream_unavailable"`):
		t.Errorf("%d %q %v, want %d %q", status, body, err, row.status, row.body)
	}
	row.speakLate(later)
	for range 3 {
		if status, body, err := ask("GET", "/bad/good"); status != 200 || body != "good" || err != nil {
			t.Errorf("the next answer: %d %q %v", status, body, err)
		}
	}
	row.separate(t, up)
}

// speakLate has the upstream send what comes late, now.
func (row *badAnswer) speakLate(later chan chan struct{}) {
	if row.late != "" {
		sent := make(chan struct{})
		later <- sent
		<-sent
	}
}

// separate fails when the connection of a bad answer carried another request.
func (row *badAnswer) separate(t *testing.T, up *script) {
	t.Helper()
	seen := up.take()
	whole := row.status != 502 && !row.cut && !strings.Contains(row.text, stray) && row.late == ""
	used := map[string]string{}
	for _, s := range seen {
		request, conn, _ := strings.Cut(s, " on ")
		if before, again := used[conn]; again && before != "GET /bad/good" && !whole {
			t.Errorf("the connection of %s carried %s", before, request)
		}
		used[conn] = request
	}
	if len(seen) != 4 {
		t.Errorf("the upstream was asked %q, want 4 requests", seen)
	}
}

// http2 is a client that speaks HTTP/2 in clear text.
func (h *harness) http2(t *testing.T) *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}
