package http3

import (
	"io"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"

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
			names := r.transport().TLSClientConfig
			names.ServerName = "api.example"
			conn, err := quic.DialAddr(t.Context(), r.at, names, &quic.Config{InitialStreamReceiveWindow: 16, MaxStreamReceiveWindow: 16})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.CloseWithError(0, "")
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
