package http1

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// wire is a connection on which bytes come a few at a time and then the end.
// What is written is kept.
type wire struct {
	in  []byte
	cut int
	out bytes.Buffer
}

func (s *wire) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p, s.in[:min(len(s.in), s.cut)])
	s.in = s.in[n:]
	return n, nil
}

func (s *wire) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *wire) Close() error                     { return nil }
func (s *wire) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *wire) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *wire) SetDeadline(time.Time) error      { return nil }
func (s *wire) SetReadDeadline(time.Time) error  { return nil }
func (s *wire) SetWriteDeadline(time.Time) error { return nil }

// message is a request as a server understood it.
type message struct {
	method, target, host, proto string
	fields                      []string
	body                        string
	broken                      bool
}

// serveWire returns what reaches the handler, and what is answered.
func serveWire(b []byte, cut int) (seen []message, answers string) {
	s := NewServer(Config{Refuse: refusing, Handle: func(e *exchange.Exchange) *exchange.Response {
		r := &e.Request
		m := message{method: strings.Clone(r.Method), target: strings.Clone(r.Target), host: strings.Clone(r.Host), proto: r.Proto}
		for _, f := range r.Header.Fields() {
			if !admission.Foreign(f.Name) {
				m.fields = append(m.fields, http.CanonicalHeaderKey(f.Name)+": "+f.Value)
			}
		}
		if r.Body.Reader != nil {
			body, err := io.ReadAll(r.Body.Reader)
			m.body, m.broken = string(body), err != nil
		}
		seen = append(seen, m)
		return plain(200, "ok")
	}})
	conn := &wire{in: bytes.Clone(b), cut: cut}
	s.Serve(conn, &admission.Conn{}, nil)
	return seen, conn.out.String()
}

// Whatever comes: the server never panics, understands the same however the
// bytes are cut, and net/http reads every request that is accepted in the same
// way, to the last byte of its body.
func FuzzServer(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET //",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n\n",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n2\r\nok\r\n0\r\nX-A: b\r\n\r\nGET /x HTTP/1.0\r\nHost: b\r\n\r\n",
		handshake, "OPTIONS * HTTP/1.0\r\nhost: [::1]\r\nConnection: keep-alive\r\nX-A:\tb \r\n\r\nGET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(s), uint8(4))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		seen, answers := serveWire(b, len(b)+1)
		parts, _ := serveWire(b, int(cut)+1)
		if !equalMessages(seen, parts) {
			t.Fatalf("%q: %+v whole, %+v in parts", b, seen, parts)
		}
		theirs := bufio.NewReader(bytes.NewReader(b))
		for _, m := range seen {
			r, err := http.ReadRequest(theirs)
			if err != nil {
				t.Fatalf("%q: %+v accepted here, refused by net/http: %v", b, m, err)
			}
			body, err := io.ReadAll(r.Body)
			if m.broken {
				break
			}
			if err != nil || string(body) != m.body || r.Method != m.method || r.RequestURI != m.target || r.Proto != m.proto {
				t.Fatalf("%q: %+v here, %+v %q %v in net/http", b, m, r, body, err)
			}
			for _, field := range m.fields {
				name, value, _ := strings.Cut(field, ": ")
				if !slices.Contains(r.Header[name], value) {
					t.Fatalf("%q: field %q here, %q in net/http", b, field, r.Header[name])
				}
			}
		}
		for out := bufio.NewReader(strings.NewReader(answers)); ; {
			if _, err := out.Peek(1); err != nil {
				break
			}
			// Which were asked for with HEAD is known of those that were accepted.
			method := "GET"
			if len(seen) > 0 {
				method, seen = seen[0].method, seen[1:]
			}
			resp, err := http.ReadResponse(out, &http.Request{Method: method})
			if err == nil && resp.StatusCode == 100 {
				continue
			}
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
			}
			if err != nil && !strings.Contains(string(b), "HEAD") && !strings.Contains(answers, " 100 ") {
				t.Fatalf("%q: answers %q: %v", b, answers, err)
			}
		}
	})
}

func equalMessages(a, b []message) bool {
	return slices.EqualFunc(a, b, func(x, y message) bool {
		// Of a broken body, more or less may have been handed on.
		if x.broken {
			x.body, y.body = "", ""
		}
		return fmt.Sprint(x) == fmt.Sprint(y)
	})
}

// pieces is a body that comes in pieces of a size.
type pieces struct {
	rest string
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	n := copy(b, p.rest[:min(len(p.rest), p.size)])
	p.rest = p.rest[n:]
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (*pieces) Close() error { return nil }

// What the server writes, net/http reads back equal, in every framing.
func FuzzAnswer(f *testing.F) {
	f.Add("GET", 1, 200, "Content-Type", "text/html", "hello", 2, true, 1)
	f.Add("GET", 0, 200, "a", " b\r\nX: y ", strings.Repeat("0123456789", 9000), 70000, false, 1)
	f.Add("HEAD", 1, 404, "Set-Cookie", "a", "abc", 1, true, 9)
	f.Add("GET", 1, 204, "ETag", "x\x00\x7f", "", 1, false, 5000)
	f.Add("GET", 1, 200, "0:", "a", "", 1, true, 1)
	f.Fuzz(func(t *testing.T, method string, minor, status int, name, value, body string, size int, known bool, repeat int) {
		if method != "GET" && method != "HEAD" || status < 200 || status > 599 || len(body) == 0 && !known {
			return
		}
		minor &= 1
		body = strings.Repeat(body, repeat&31+1)
		length := int64(-1)
		if known {
			length = int64(len(body))
		}
		s := NewServer(Config{Refuse: refusing, Handle: func(*exchange.Exchange) *exchange.Response {
			return &exchange.Response{
				Status: status, Header: exchange.HeaderOf(exchange.Field{Name: name, Value: value}, exchange.Field{Name: "X-After", Value: "1"}),
				Body: exchange.Body{Reader: &pieces{body, size&0xffff + 1}, Length: length},
			}
		}})
		conn := &wire{in: fmt.Appendf(nil, "%s / HTTP/1.%d\r\nHost: a\r\nConnection: keep-alive\r\n\r\n", method, minor), cut: 1 << 20}
		s.Serve(conn, &admission.Conn{}, nil)
		resp, err := http.ReadResponse(bufio.NewReader(&conn.out), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%v", err)
		}
		if method == "HEAD" || status == 204 || status == 304 {
			body = ""
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || string(got) != body || resp.StatusCode != status || resp.Header.Get("X-After") != "1" || resp.Header.Get("Date") == "" {
			t.Fatalf("%d %v, %d bytes %v, want %d and %d", resp.StatusCode, resp.Header, len(got), err, status, len(body))
		}
		if exchange.HopByHop(name) || !isToken(name) || slices.Contains([]string{"Date", "X-After", "X-Request-Id"}, http.CanonicalHeaderKey(name)) {
			return
		}
		clean := strings.Map(func(r rune) rune {
			if r < ' ' && r != '\t' || r == 0x7f {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(value, "?"))
		if got := strings.ToValidUTF8(resp.Header.Get(name), "?"); got != strings.Trim(clean, " \t") {
			t.Fatalf("%s: %q came back as %q", name, value, got)
		}
	})
}

// isToken tells whether our parser takes all of s for the name of a field.
func isToken(s string) bool {
	var h requestHead
	err := parseRequest([]byte("GET / HTTP/1.1\r\nHost: a\r\n"+s+": x\r\n\r\n"), &h)
	return err == nil && len(h.fields) == 2 && h.fields[1].Name == s
}

// hand is a connection in memory that carries one request at a time, without
// allocating.
type hand struct {
	wire
	requests chan []byte
	answered chan int
}

func (h *hand) Read(p []byte) (int, error) {
	b, ok := <-h.requests
	if !ok {
		return 0, os.ErrClosed
	}
	return copy(p, b), nil
}

func (h *hand) Write(p []byte) (int, error) {
	h.answered <- len(p)
	return len(p), nil
}
