package http1

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

const browsers = "GET /orders/42?page=2 HTTP/1.1\r\nHost: api.example.com:8080\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\n" +
	"Accept-Encoding: gzip, deflate\r\nAuthorization: Bearer x\r\nCookie: a=b; c=d\r\nConnection: keep-alive\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n"

// rewound is a body that is the same every time.
type rewound struct{ strings.Reader }

func (*rewound) Close() error { return nil }

func again(of string) func(*exchange.Exchange) *exchange.Response {
	body, taken := &rewound{}, make([]byte, 64)
	resp := &exchange.Response{Status: 200, Header: exchange.HeaderOf(exchange.Field{Name: "Content-Type", Value: "text/plain"}),
		Body: exchange.Body{Reader: body, Length: int64(len(of))}}
	return func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Body.Reader != nil {
			for {
				if _, err := e.Request.Body.Reader.Read(taken); err != nil {
					break
				}
			}
		}
		body.Reset(of)
		return resp
	}
}

func TestAKeptConnectionCostsNoAllocation(t *testing.T) {
	for name, request := range map[string]string{
		"GET":          browsers,
		"POST":         "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
		"POST chunked": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\n\r\n",
	} {
		h := &hand{requests: make(chan []byte), answered: make(chan int)}
		s := NewServer(Config{Refuse: refusing, Handle: again("hello")})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.Serve(h, &admission.Conn{Peer: netip.MustParseAddr("192.0.2.1")}, nil)
		}()
		text, writes := []byte(request), 0
		one := func() {
			h.requests <- text
			<-h.answered
			writes++
		}
		// The first ones allocate what is kept; Date does once a second.
		for range 10 {
			one()
		}
		if n := testing.AllocsPerRun(1000, one); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
		close(h.requests)
		<-ended
		// What is idle is small: 10,000 of them should not need more than 120 MB.
		c := &conn{}
		if size := int(unsafe.Sizeof(*c)) + readBuffer; size > 8<<10 {
			t.Errorf("a connection has %d bytes", size)
		}
	}
}

func BenchmarkServer(b *testing.B) {
	for _, size := range []int{100, 10_000, 1_000_000} {
		b.Run(strings.Replace(time.Duration(size).String(), "ns", "B", 1), func(b *testing.B) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer ln.Close()
			s := NewServer(Config{Refuse: refusing, Handle: again(strings.Repeat("x", size))})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if c, err := ln.Accept(); err == nil {
					s.Serve(c, connOf(c), nil)
				}
			}()
			c, err := net.Dial("tcp", ln.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			io.WriteString(c, browsers)
			buffer := make([]byte, 64<<10)
			n, err := c.Read(buffer)
			if err != nil {
				b.Fatal(err)
			}
			head := strings.Index(string(buffer[:n]), "\r\n\r\n") + 4
			for n < head+size {
				k, err := c.Read(buffer)
				if err != nil {
					b.Fatal(err)
				}
				n += k
			}
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				io.WriteString(c, browsers)
				for n := 0; n < head+size; {
					k, err := c.Read(buffer)
					if err != nil {
						b.Fatal(err)
					}
					n += k
				}
			}
			c.Close()
			<-ended
		})
	}
}

// BenchmarkLoop is what a request costs without the kernel.
func BenchmarkLoop(b *testing.B) {
	s := NewServer(Config{Refuse: refusing, Handle: again(strings.Repeat("x", 100))})
	conn := &repeating{left: b.N}
	b.ReportAllocs()
	b.ResetTimer()
	s.Serve(conn, &admission.Conn{Peer: netip.MustParseAddr("192.0.2.1")}, nil)
}

// repeating is a connection on which a request comes so many times.
type repeating struct {
	wire
	left int
}

func (r *repeating) Read(p []byte) (int, error) {
	if r.left--; r.left < 0 {
		return 0, io.EOF
	}
	return copy(p, browsers), nil
}

func (*repeating) Write(p []byte) (int, error) { return len(p), nil }
