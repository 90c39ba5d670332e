package http2

import (
	"bytes"
	"net"
	"runtime"
	"testing"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// answered is a small fixed answer.
type answered struct{ bytes.Reader }

func (*answered) Close() error { return nil }

// exchangeMany runs n requests, one at a time, on one connection over TCP.
func exchangeMany(tb testing.TB, n int, reset func()) {
	payload := bytes.Repeat([]byte("x"), 100)
	var body answered
	resp := &exchange.Response{Status: 200, Header: exchange.HeaderOf(exchange.Field{Name: "Content-Type", Value: "text/plain"})}
	server := NewServer(Config{
		Handle: func(e *exchange.Exchange) *exchange.Response {
			body.Reset(payload)
			resp.Body = exchange.Body{Reader: &body, Length: int64(len(payload))}
			return resp
		},
		Refuse: func(e *exchange.Exchange, reason string, status int) *exchange.Response { return text(status, reason) },
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err == nil {
			server.Serve(c, &admission.Conn{Peer: admission.PeerOf(c.RemoteAddr().String())}, nil)
		}
	}()
	f := &front{t: tb, addr: ln.Addr().String(), server: server}
	r := f.dialSilent()
	r.must(r.write(Preface))
	r.must(r.WriteSettings())
	head := []string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a.example", "user-agent", "bench", "accept", "*/*"}
	r.headers(1, true, head...)
	r.receive(1)
	block := r.encode(head...)
	var request bytes.Buffer
	framer := h2.NewFramer(&request, nil)
	answer := make([]byte, 4096)
	tail := make([]byte, 0, 8192)
	reset()
	for i := range n {
		request.Reset()
		id := uint32(2*i + 3)
		if err := framer.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: true, EndHeaders: true}); err != nil {
			tb.Fatal(err)
		}
		if _, err := r.Conn.Write(request.Bytes()); err != nil {
			tb.Fatal(err)
		}
		// The answer ends with the payload.
		for tail = tail[:0]; !bytes.HasSuffix(tail, payload); {
			k, err := r.Conn.Read(answer)
			if err != nil {
				tb.Fatal(err)
			}
			tail = append(tail, answer[:k]...)
			if len(tail) > 4096 {
				tail = append(tail[:0], tail[len(tail)-256:]...)
			}
		}
		if i%500 == 0 {
			// The payloads use up the connection's window.
			r.must(r.WriteWindowUpdate(0, 60_000))
		}
	}
	r.Conn.Close()
	<-done
}

func BenchmarkSmallAnswer(b *testing.B) {
	b.ReportAllocs()
	exchangeMany(b, b.N, b.ResetTimer)
}

func TestRequestsCostFewAllocations(t *testing.T) {
	const n = 2000
	var before, after runtime.MemStats
	exchangeMany(t, n, func() { runtime.ReadMemStats(&before) })
	runtime.ReadMemStats(&after)
	if each := float64(after.Mallocs-before.Mallocs) / n; each > 5 {
		t.Errorf("%.1f allocations a request, want at most 5", each)
	}
}
