package http2

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

const patience = 20 * time.Second

// front is a running server whose handler records what reaches it.
type front struct {
	t      testing.TB
	addr   string
	server *Server

	mu   sync.Mutex
	seen []string
	ends []exchange.Result
}

// start runs a server in clear text. Its refusals are the reason as text; its
// handler, unless config has one, answers with what it got.
func start(t testing.TB, config Config) *front {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &front{t: t, addr: ln.Addr().String()}
	handle := config.Handle
	if handle == nil {
		handle = echo
	}
	config.Handle = func(e *exchange.Exchange) *exchange.Response {
		f.note(e)
		f.mu.Lock()
		f.seen = append(f.seen, e.Request.Method+" "+e.Request.Path)
		f.mu.Unlock()
		return handle(e)
	}
	config.Refuse = func(e *exchange.Exchange, reason string, status int) *exchange.Response {
		f.note(e)
		return text(status, reason+": "+e.Why.Detail)
	}
	f.server = NewServer(config)
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			served.Go(func() {
				f.server.Serve(c, &admission.Conn{Peer: admission.PeerOf(c.RemoteAddr().String())}, nil)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		f.server.Cut()
		served.Wait()
		if f.server.Open() != 0 {
			t.Error("connections are open after all ended")
		}
		f.empty()
	})
	return f
}

// empty waits until no connection is open.
func (f *front) empty() {
	for f.server.Open() > 0 {
		time.Sleep(time.Millisecond)
	}
}

// note records how the exchange ends.
func (f *front) note(e *exchange.Exchange) {
	e.Done = append(e.Done, func(e *exchange.Exchange) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.ends = append(f.ends, e.Result)
	})
}

func text(status int, s string) *exchange.Response {
	return &exchange.Response{
		Status: status, Body: exchange.Body{Reader: io.NopCloser(strings.NewReader(s)), Length: int64(len(s))},
		Header: exchange.HeaderOf(exchange.Field{Name: "Content-Type", Value: "text/plain"}),
	}
}

// echo answers with the request as the exchange holds it.
func echo(e *exchange.Exchange) *exchange.Response {
	var b strings.Builder
	r := &e.Request
	fmt.Fprintf(&b, "%s %s?%s host=%s authority=%s scheme=%s peer=%s\n", r.Method, r.Path, r.Query, r.Host, r.Authority, r.Scheme, r.Peer)
	for _, f := range r.Header.Fields() {
		fmt.Fprintf(&b, "%s: %s\n", f.Name, f.Value)
	}
	if r.Body.Reader != nil {
		data, err := io.ReadAll(r.Body.Reader)
		if err != nil {
			return text(400, err.Error())
		}
		fmt.Fprintf(&b, "body=%s", data)
		trailer := r.Body.Trailer()
		for _, f := range trailer.Fields() {
			fmt.Fprintf(&b, "\ntrailer %s: %s", f.Name, f.Value)
		}
	}
	return text(200, b.String())
}

// reached returns what the handler saw since the last call.
func (f *front) reached() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	seen := f.seen
	f.seen = nil
	return seen
}

// client returns net/http's client with prior knowledge.
func (f *front) client() *http.Client {
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	transport.Protocols.SetUnencryptedHTTP2(true)
	f.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// raw is a connection on which a test writes what it likes.
type raw struct {
	net.Conn
	*h2.Framer
	t       testing.TB
	block   bytes.Buffer
	encoder *hpack.Encoder
	decoder *hpack.Decoder
	fields  []hpack.HeaderField
}

// dial opens a connection and greets.
func (f *front) dial() *raw {
	f.t.Helper()
	r := f.dialSilent()
	r.must(r.write(Preface))
	r.must(r.WriteSettings())
	return r
}

func (f *front) dialSilent() *raw {
	f.t.Helper()
	c, err := net.Dial("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	f.t.Cleanup(func() { c.Close() })
	return rawOver(f.t, c)
}

func rawOver(t testing.TB, c net.Conn) *raw {
	r := &raw{Conn: c, Framer: h2.NewFramer(c, c), t: t}
	r.AllowIllegalWrites = true
	r.AllowIllegalReads = true
	r.encoder = hpack.NewEncoder(&r.block)
	r.decoder = hpack.NewDecoder(4096, func(f hpack.HeaderField) { r.fields = append(r.fields, f) })
	return r
}

func (r *raw) write(s string) error {
	_, err := io.WriteString(r.Conn, s)
	return err
}

func (r *raw) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// encode returns a header block of names and values in turn.
func (r *raw) encode(pairs ...string) []byte {
	r.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		r.must(r.encoder.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]}))
	}
	return bytes.Clone(r.block.Bytes())
}

// get is the head of an ordinary request, with more fields.
func get(more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":path", "/", ":authority", "a.example"}, more...)
}

func post(more ...string) []string {
	return append([]string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "a.example"}, more...)
}

func (r *raw) headers(id uint32, end bool, pairs ...string) {
	r.t.Helper()
	r.must(r.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: r.encode(pairs...), EndStream: end, EndHeaders: true}))
}

// answer is what a stream came to.
type answer struct {
	status, body string
	header       map[string]string
	trailer      map[string]string
	ended        bool
	reset        h2.ErrCode
	wasReset     bool
}

// outcome reads until the stream, or the connection, has ended; goAway is the
// code of a GOAWAY other than NO_ERROR, closed that the connection ended.
type outcome struct {
	answer
	goAway  h2.ErrCode
	why     string
	gone    bool
	closed  bool
	pingAck int
	other   uint32 // another stream that was reset
	window  uint32 // what the connection was granted
}

// await reads until stop says so or the connection ends.
func (r *raw) await(id uint32, stop func(*outcome) bool) *outcome {
	r.t.Helper()
	o := &outcome{answer: answer{header: map[string]string{}, trailer: map[string]string{}}}
	for !stop(o) {
		frame, err := r.ReadFrame()
		if err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				r.t.Fatalf("nothing came; so far %+v", o)
			}
			o.closed = true
			return o
		}
		r.take(o, id, frame)
	}
	return o
}

func (r *raw) take(o *outcome, id uint32, frame h2.Frame) {
	switch f := frame.(type) {
	case *h2.HeadersFrame:
		r.fields = nil
		if _, err := r.decoder.Write(f.HeaderBlockFragment()); err != nil {
			r.t.Fatal(err)
		}
		r.decoder.Close()
		if f.StreamID != id {
			return
		}
		to := o.header
		if o.status != "" && o.status != "100" {
			to = o.trailer
		}
		for _, field := range r.fields {
			to[field.Name] = field.Value
		}
		o.status, o.ended = o.header[":status"], f.StreamEnded()
	case *h2.DataFrame:
		if f.StreamID == id {
			o.body += string(f.Data())
			o.ended = f.StreamEnded()
		}
	case *h2.RSTStreamFrame:
		if o.other = f.StreamID; f.StreamID == id {
			o.wasReset, o.reset = true, f.ErrCode
		}
	case *h2.GoAwayFrame:
		o.gone, o.goAway, o.why = true, f.ErrCode, string(f.DebugData())
	case *h2.WindowUpdateFrame:
		if f.StreamID == 0 {
			o.window += f.Increment
		}
	case *h2.PingFrame:
		if f.IsAck() {
			o.pingAck++
		}
	}
}

// receive reads one answer.
func (r *raw) receive(id uint32) *outcome {
	r.t.Helper()
	return r.await(id, func(o *outcome) bool { return o.ended || o.wasReset })
}

// alive asserts that the connection still answers.
func (r *raw) alive() {
	r.t.Helper()
	r.must(r.WritePing(false, [8]byte{1}))
	if o := r.await(0, func(o *outcome) bool { return o.pingAck > 0 }); o.pingAck == 0 {
		r.t.Errorf("the connection has ended: %+v", o)
	}
}

func newEncoder(to *bytes.Buffer) *hpack.Encoder { return hpack.NewEncoder(to) }

// spoken is a connection on which the client has said everything already.
type spoken struct {
	net.Conn
	said *bytes.Reader
}

func (s *spoken) Read(p []byte) (int, error)       { return s.said.Read(p) }
func (s *spoken) Write(p []byte) (int, error)      { return len(p), nil }
func (s *spoken) Close() error                     { return nil }
func (s *spoken) SetReadDeadline(time.Time) error  { return nil }
func (s *spoken) SetWriteDeadline(time.Time) error { return nil }

// serveBytes serves what a client says and asserts that the connection ends.
func serveBytes(t *testing.T, server *Server, said []byte) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(&spoken{said: bytes.NewReader(said)}, &admission.Conn{}, nil)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the connection does not end")
	}
	if n := server.Open(); n > 0 {
		t.Error(n, "connections are open")
	}
}
