package nethttp

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
	"time"
)

// What parseHead accepts, net/http reads in the same way: method, target, host,
// fields and framing.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", handshake, "POST /a?b HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "OPTIONS * HTTP/1.0\r\nhost: [::1]\r\nX-A:\tb \r\n\r\n",
		"GET http://a/ HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if end, err := headEnd([]byte(text), 0); err != nil || end != len(text) {
			return
		}
		h := parseHead(text)
		if h.refused != nil {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil {
			t.Fatalf("%q: accepted here, refused by net/http: %v", text, err)
		}
		if r.Method != h.method || r.RequestURI != h.target || r.ContentLength != h.length || r.Proto != h.proto {
			t.Fatalf("%q: %+v here, %s %s %s %d in net/http", text, h, r.Method, r.RequestURI, r.Proto, r.ContentLength)
		}
		if (len(r.TransferEncoding) > 0) != (h.length < 0) {
			t.Fatalf("%q: codings %v, length %d", text, r.TransferEncoding, h.length)
		}
		count := 0
		for _, v := range r.Header {
			count += len(v)
		}
		framing := 1 // Host
		if h.length < 0 {
			framing++
		}
		if count != len(h.fields)-framing {
			// net/http moves Trailer and Pragma about; nothing else may differ.
			if r.Header.Get("Cache-Control") == "" && len(r.Trailer) == 0 && !strings.Contains(strings.ToLower(text), "trailer") {
				t.Fatalf("%q: %d fields here, %d in net/http", text, len(h.fields), count)
			}
		}
	})
}

// What chunks accepts, net/http's reader decodes to the same end, however the
// bytes are cut.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"0\r\n\r\n", "2\r\nok\r\n0\r\n\r\nGET", "00A\r\n0123456789\r\n0\r\nX: y\r\n\r\n", "2;x\r\nok\r\n0\r\n\r\n"} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		var whole, parts chunks
		n, done, err := whole.scan(b)
		total := 0
		for rest := b; len(rest) > 0; {
			k, end, perr := parts.scan(rest[:min(len(rest), int(cut)+1)])
			total += k
			rest = rest[k:]
			if end || perr != nil {
				if end != done || (perr != nil) != (err != nil) {
					t.Fatalf("%q cut by %d: %t %v, whole: %t %v", b, cut, end, perr, done, err)
				}
				break
			}
		}
		if err == nil && total != n {
			t.Fatalf("%q: %d bytes whole, %d in parts", b, n, total)
		}
		if !done {
			return
		}
		in := bufio.NewReader(bytes.NewReader(b[:n]))
		if _, err := io.ReadAll(httputil.NewChunkedReader(in)); err != nil {
			t.Fatalf("%q: accepted here, refused by net/http: %v", b[:n], err)
		}
		trailer, _ := io.ReadAll(in)
		if !bytes.HasSuffix(trailer, []byte("\r\n")) || bytes.HasPrefix(bytes.TrimSuffix(trailer, []byte("\r\n")), []byte("\r\n")) {
			t.Fatalf("%q: net/http leaves %q", b[:n], trailer)
		}
	})
}

// Whatever comes, conn never panics, never hands on what it has not vetted, and
// hands on the same messages however the bytes are cut.
func FuzzConn(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET //"), uint8(4), uint8(1))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n\n"), uint8(1), uint8(9))
	f.Fuzz(func(t *testing.T, b []byte, in, out uint8) {
		whole, wholeHeads := drain(b, len(b)+1, 1<<16)
		parts, partHeads := drain(b, int(in)+1, int(out)+1)
		// Of a line that turns out broken, parts may have been handed on.
		if !strings.HasPrefix(parts, whole) || wholeHeads != partHeads {
			t.Fatalf("%q: %q (%d heads) whole, %q (%d heads) in parts", b, whole, wholeHeads, parts, partHeads)
		}
		if good, _, _ := strings.Cut(whole, " / HTTP/1.1\r\nHost: refused"); !bytes.HasPrefix(b, []byte(strings.TrimSuffix(strings.TrimSuffix(good, "GET"), "HEAD"))) {
			t.Fatalf("%q became %q", b, whole)
		}
	})
}

// drain reads all that a connection hands on of the bytes.
func drain(b []byte, in, out int) (string, int) {
	c := &conn{Conn: &script{b: b, cut: in}, server: New(Config{})}
	var got strings.Builder
	p := make([]byte, out)
	for {
		n, err := c.Read(p)
		got.Write(p[:n])
		if err != nil {
			return got.String(), len(c.heads)
		}
	}
}

// script is a connection on which the bytes come a few at a time.
type script struct {
	net.Conn
	b   []byte
	cut int
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.b[:min(len(s.b), s.cut)])
	s.b = s.b[n:]
	return n, nil
}

func (s *script) SetReadDeadline(time.Time) error { return nil }
