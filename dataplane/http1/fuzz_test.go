package http1

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
)

// What parseRequest accepts, net/http reads in the same way: method, target,
// fields and framing.
func FuzzRequestHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "POST /a?b HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "OPTIONS * HTTP/1.0\r\nhost: [::1]\r\nX-A:\tb \r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if end, err := headEnd([]byte(s), 0); err != nil || end != len(s) {
			return
		}
		var h requestHead
		if parseRequest([]byte(s), &h) != nil {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(s)))
		if err != nil {
			// net/http looks into the target and the host, which is not done here.
			if !strings.Contains(err.Error(), "parse") && !strings.Contains(err.Error(), "Host") {
				t.Fatalf("%q: accepted here, refused by net/http: %v", s, err)
			}
			return
		}
		if r.Method != h.method || r.RequestURI != h.target || r.ContentLength != h.length || r.ProtoMinor != int(h.minor) ||
			(len(r.TransferEncoding) > 0) != (h.length < 0) || r.Close == h.persistent() && h.minor == 1 {
			t.Fatalf("%q: %+v here, %+v in net/http", s, h, r)
		}
		same(t, s, &h.head, r.Header)
	})
}

// What parseResponse accepts, net/http reads in the same way.
func FuzzResponseHead(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\nX-A:\tb \r\n\r\n", "HTTP/1.0 200\r\n\r\n",
		"HTTP/1.1 204 \r\nA:\r\n\r\n", "HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
	} {
		f.Add(s, false)
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, head bool) {
		if end, err := headEnd([]byte(s), 0); err != nil || end != len(s) {
			return
		}
		method := "GET"
		if head {
			method = "HEAD"
		}
		var h responseHead
		if parseResponse([]byte(s), method, &h) != nil {
			return
		}
		r, err := http.ReadResponse(bufio.NewReader(strings.NewReader(s)), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%q: accepted here, refused by net/http: %v", s, err)
		}
		length := r.ContentLength
		if head || h.status == 304 {
			length = 0
		}
		if want := max(h.length, -1); r.StatusCode != h.status || length != want {
			t.Fatalf("%q: %+v here, status %d, length %d in net/http", s, h, r.StatusCode, length)
		}
		same(t, s, &h.head, r.Header)
	})
}

// same tells whether both found the same fields. net/http moves some about.
func same(t *testing.T, s string, h *head, theirs http.Header) {
	moved := map[string]bool{"Host": true, "Transfer-Encoding": true, "Trailer": true, "Connection": true, "Content-Length": true, "Pragma": true, "Cache-Control": true}
	seen := map[string]int{}
	for _, f := range h.fields {
		name := http.CanonicalHeaderKey(f.Name)
		if moved[name] {
			continue
		}
		values := theirs[name]
		if seen[name] >= len(values) || values[seen[name]] != f.Value {
			t.Fatalf("%q: field %q here, %q in net/http", s, f, values)
		}
		seen[name]++
	}
	for name, values := range theirs {
		if !moved[name] && len(values) != seen[name] {
			t.Fatalf("%q: %d fields %s here, %d in net/http", s, seen[name], name, len(values))
		}
	}
}

// dribble is a connection that gives its bytes in pieces, and then ends.
type dribble struct {
	script
	size int
}

func (d *dribble) Write(p []byte) (int, error) { return len(p), nil }

func (d *dribble) Read(p []byte) (int, error) {
	if len(d.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.left[:min(d.size, len(d.left))])
	d.left = d.left[n:]
	return n, nil
}

// An answer that the client takes whole, net/http reads to the same status and
// the same body; it is the same however it arrives.
func FuzzClientAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nX: y\r\n\r\n",
		"HTTP/1.0 200\r\n\r\nuntil close", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\nmore",
	} {
		f.Add(s, uint8(2), uint8(5))
	}
	f.Fuzz(func(t *testing.T, s string, size, room uint8) {
		status, body, err := dribbled(s, len(s)+1, 4096)
		again, bodyAgain, errAgain := dribbled(s, int(size)+1, int(room)+1)
		if status != again || body != bodyAgain || (err == nil) != (errAgain == nil) {
			t.Fatalf("%q: %d %q %v whole, %d %q %v in pieces", s, status, body, err, again, bodyAgain, errAgain)
		}
		if err != nil {
			return
		}
		r := bufio.NewReader(strings.NewReader(s))
		for {
			resp, err := http.ReadResponse(r, &http.Request{Method: "GET"})
			if err != nil {
				t.Fatalf("%q: taken here, refused by net/http: %v", s, err)
			}
			if resp.StatusCode < 200 {
				continue
			}
			theirs, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != status || string(theirs) != body {
				t.Fatalf("%q: %d %q here, %d %q %v in net/http", s, status, body, resp.StatusCode, theirs, err)
			}
			return
		}
	})
}

func dribbled(s string, size, room int) (status int, body string, err error) {
	c := NewClientConn(&dribble{script{left: []byte(s)}, size})
	resp, err := c.Do(callFor("GET"))
	if err != nil {
		return 0, "", err
	}
	defer c.Finish()
	if resp.Body.Reader == nil {
		return resp.Status, "", nil
	}
	var text []byte
	p := make([]byte, room)
	for {
		n, err := resp.Body.Reader.Read(p)
		text = append(text, p[:n]...)
		if err == io.EOF {
			return resp.Status, string(text), nil
		}
		if err != nil {
			return resp.Status, string(text), err
		}
	}
}

// What the scanner accepts, net/http decodes to the same bytes and the same end,
// however it arrives.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "2\r\nok\r\n0\r\n\r\nrest", "A\r\n0123456789\r\n00\r\nX: y\r\n\r\n", "1\r\na\r\nf\r\n0123"} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, s string, size int) {
		var whole, parts chunks
		data, rest, done, err := dechunk(&whole, s, len(s)+1)
		if size = size&0xff + 1; err == nil {
			again, _, doneAgain, errAgain := dechunk(&parts, s, size)
			if again != data || doneAgain != done || errAgain != nil {
				t.Fatalf("%q by %d: %q %t %v, want %q %t", s, size, again, doneAgain, errAgain, data, done)
			}
		}
		if err != nil || !done {
			return
		}
		theirs, err := io.ReadAll(httputil.NewChunkedReader(strings.NewReader(s[:len(s)-rest])))
		if err != nil || string(theirs) != data {
			t.Fatalf("%q: %q here, %q %v in net/http", s, data, theirs, err)
		}
	})
}
