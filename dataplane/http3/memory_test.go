package http3

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// What a trailer says lies in memory of the upstream's connection, which is
// another request's once this exchange has ended.
func TestTrailersOutliveTheirExchange(t *testing.T) {
	r := newRig(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		memory := []byte("mine")
		e.Done = append(e.Done, func(*exchange.Exchange) { copy(memory, "them") })
		resp := text(200, "body")
		resp.Body.Trailer = func() exchange.Header {
			return exchange.HeaderOf(exchange.Field{Name: "X-Whose", Value: unsafe.String(&memory[0], len(memory))})
		}
		return resp
	}}, false)
	resp, err := r.client.Do(request(t, "GET", "https://api.example/", nil))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Fatal(err)
	}
	if got := resp.Trailer.Get("X-Whose"); got != "mine" {
		t.Errorf("the trailer is %q", got)
	}
}

// A client that takes nothing is waited for no longer than WriteTimeout, whether
// there is a body or not.
func TestClientsThatTakeNothing(t *testing.T) {
	for name, body := range map[string]exchange.Body{
		"head alone": {}, "stream": {Reader: io.NopCloser(strings.NewReader("x")), Length: -1},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan struct{})
			r := newRig(t, Config{WriteTimeout: 50 * time.Millisecond, Handle: func(e *exchange.Exchange) *exchange.Response {
				e.Done = append(e.Done, func(*exchange.Exchange) { close(ended) })
				resp := &exchange.Response{Status: 200, Body: body}
				resp.Header.Add("X-Long", strings.Repeat("x", 4000))
				return resp
			}}, false)
			conn := r.dial(&quic.Config{InitialStreamReceiveWindow: 16, MaxStreamReceiveWindow: 16})
			stream, err := (&quichttp3.Transport{}).NewClientConn(conn).OpenRequestStream(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.SendRequestHeader(request(t, "GET", "https://api.example/", nil)); err != nil {
				t.Fatal(err)
			}
			if err := stream.Close(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Error("the exchange still waits for its client")
			}
		})
	}
}

func (r *rig) dial(c *quic.Config) *quic.Conn {
	r.Helper()
	names := r.transport().TLSClientConfig
	names.ServerName = "api.example"
	conn, err := quic.DialAddr(r.Context(), r.at, names, c)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = conn.CloseWithError(0, "") })
	return conn
}

// Room is made for a head when its length is announced: one beyond the limit that
// is live when the connection comes is refused before anything of it is sent.
func TestHeadsThatAreOnlyAnnounced(t *testing.T) {
	var limit atomic.Int64
	r := newRig(t, Config{Settings: func() *admission.Settings { return &admission.Settings{MaxHeaderBytes: int(limit.Load())} }}, false)
	for _, most := range []int64{4 << 10, 64 << 10} {
		limit.Store(most)
		stream, err := r.dial(nil).OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		head := quicvarint.Append(quicvarint.Append(nil, 1), uint64(2*most+1)) // HEADERS, RFC 9114, 7.2.2
		if _, err := stream.Write(head); err != nil {
			t.Fatal(err)
		}
		_ = stream.SetReadDeadline(time.Now().Add(10 * time.Second))
		if answer, err := io.ReadAll(stream); err != nil || len(answer) == 0 {
			t.Errorf("%d bytes are awaited: %q, %v", 2*most+1, answer, err)
		}
	}
}

// Neither packets nor a head that does not end keep a connection open for ever.
func TestConnectionsWithoutARequestEnd(t *testing.T) {
	r := newRig(t, Config{IdleTimeout: 300 * time.Millisecond, Handle: func(*exchange.Exchange) *exchange.Response { return text(200, "") }}, false)
	conn := r.dial(&quic.Config{KeepAlivePeriod: 20 * time.Millisecond})
	stream, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Write([]byte{1, 10, 0}); err != nil { // HEADERS of ten bytes
		t.Fatal(err)
	}
	select {
	case <-conn.Context().Done():
	case <-time.After(10 * time.Second):
		t.Error("the connection is open")
	}
}

// retries counts the Retry packets that come in (RFC 9000, 17.2.5).
type retries struct {
	net.PacketConn
	n atomic.Int64
}

func (r *retries) ReadFrom(p []byte) (int, net.Addr, error) {
	n, from, err := r.PacketConn.ReadFrom(p)
	if n > 0 && p[0]&0xf0 == 0xf0 {
		r.n.Add(1)
	}
	return n, from, err
}

// When many handshakes begin, clients prove their address first.
func TestFloodsOfHandshakes(t *testing.T) {
	r := newRig(t, Config{Handle: func(*exchange.Exchange) *exchange.Response { return text(200, "") }}, false)
	at, err := net.ResolveUDPAddr("udp", r.at)
	if err != nil {
		t.Fatal(err)
	}
	names := r.transport().TLSClientConfig
	names.ServerName = "api.example"
	for _, flood := range []bool{false, true} {
		if flood {
			r.server.unverified.AllowN(time.Now().Add(time.Minute), unverifiedRate)
		}
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		seen := &retries{PacketConn: pc}
		transport := &quic.Transport{Conn: seen}
		conn, err := transport.Dial(t.Context(), at, names, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.CloseWithError(0, "")
		_ = transport.Close()
		_ = pc.Close()
		if got := seen.n.Load(); got > 0 != flood {
			t.Errorf("in a flood %t: %d retries", flood, got)
		}
	}
}
