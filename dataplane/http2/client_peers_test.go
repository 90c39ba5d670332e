package http2

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpctest "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// standard runs net/http's server with prior knowledge.
func standard(t testing.TB, h http.HandlerFunc) *ended {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return connect(t, s.Listener.Addr().String())
}

// planned is an answer that a server of net/http is told to give.
type planned struct {
	status          int
	fields, trailer []exchange.Field
	body            []string
	flush, length   bool
}

func plans() *rapid.Generator[planned] {
	name := rapid.SampledFrom([]string{"X-A", "X-B", "Set-Cookie", "Etag", "Content-Type"})
	value := rapid.StringMatching(`([!-~]([ -~]{0,40}[!-~])?)?`)
	field := rapid.Custom(func(t *rapid.T) exchange.Field {
		return exchange.Field{Name: name.Draw(t, "name"), Value: value.Draw(t, "value")}
	})
	return rapid.Custom(func(t *rapid.T) planned {
		p := planned{status: rapid.SampledFrom([]int{200, 201, 204, 304, 404, 503}).Draw(t, "status"), fields: rapid.SliceOfN(field, 0, 6).Draw(t, "fields")}
		if p.status != 204 && p.status != 304 {
			p.body = rapid.SliceOfN(rapid.StringN(0, 40000, 40000), 0, 4).Draw(t, "body")
			p.flush, p.length = rapid.Bool().Draw(t, "flush"), rapid.Bool().Draw(t, "length")
			p.trailer = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) exchange.Field { return exchange.Field{Name: "X-T", Value: value.Draw(t, "value")} }), 0, 2).Draw(t, "trailer")
		}
		return p
	})
}

func (p *planned) answer(w http.ResponseWriter) {
	for _, f := range p.fields {
		w.Header().Add(f.Name, f.Value)
	}
	w.Header()["Date"] = nil
	if p.length {
		w.Header().Set("Content-Length", fmt.Sprint(len(strings.Join(p.body, ""))))
	}
	w.WriteHeader(p.status)
	for _, part := range p.body {
		_, _ = io.WriteString(w, part)
		if p.flush {
			w.(http.Flusher).Flush()
		}
	}
	for _, f := range p.trailer {
		w.Header().Add(http.TrailerPrefix+f.Name, f.Value)
	}
}

// sorted renders fields whatever the order of names.
func sorted(fields []exchange.Field) string {
	var lines []string
	for _, f := range fields {
		lines = append(lines, strings.ToLower(f.Name)+": "+f.Value)
	}
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(a[:strings.Index(a, ":")], b[:strings.Index(b, ":")]) })
	return strings.Join(lines, "\n")
}

// What a server of net/http sends, we read equal.
func TestClientReadsWhatTheStandardServerSays(t *testing.T) {
	var next planned
	c := standard(t, func(w http.ResponseWriter, _ *http.Request) { next.answer(w) })
	rapid.Check(t, func(rt *rapid.T) {
		next = plans().Draw(rt, "answer")
		resp, done, err := c.Stream().Do(asking(wanted("GET", "/")))
		if err != nil {
			rt.Fatal(err)
		}
		defer done(nil)
		var body []byte
		var trailer exchange.Header
		if resp.Body.Reader != nil {
			if body, err = io.ReadAll(resp.Body.Reader); err != nil {
				rt.Fatal(err)
			}
			trailer = resp.Body.Trailer()
		}
		fields := slices.DeleteFunc(slices.Clone(resp.Header.Fields()), func(f exchange.Field) bool {
			// What the server adds by itself.
			return f.Name == "content-type" && !slices.ContainsFunc(next.fields, func(g exchange.Field) bool { return g.Name == "Content-Type" })
		})
		want := strings.Join(next.body, "")
		if resp.Status != next.status || string(body) != want || next.length && len(want) > 0 && resp.Body.Length != int64(len(want)) {
			rt.Fatalf("%d, %d bytes of %d; want %d, %d bytes", resp.Status, len(body), resp.Body.Length, next.status, len(want))
		}
		if sorted(fields) != sorted(next.fields) || sorted(trailer.Fields()) != sorted(next.trailer) {
			rt.Fatalf("fields\n%s\ntrailer\n%s\nwant\n%s\n%s", sorted(fields), sorted(trailer.Fields()), sorted(next.fields), sorted(next.trailer))
		}
	})
}

// What we send, a server of net/http reads equal.
func TestClientSaysWhatTheStandardServerReads(t *testing.T) {
	c := standard(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %q %v len=%d te=%s secret=%s body=%s", r.Method, r.RequestURI, r.Host, r.Header["X-A"], err, r.ContentLength, r.Header.Get("Te"), r.Header.Get("Authorization"), body)
	})
	r := wanted("PUT", "/a%20b/[", exchange.Field{Name: "x-a", Value: "1"}, exchange.Field{Name: "X-A", Value: ""}, exchange.Field{Name: "Connection", Value: "x"},
		exchange.Field{Name: "Host", Value: "other"}, exchange.Field{Name: "Expect", Value: "100-continue"}, exchange.Field{Name: "Authorization", Value: "s"})
	r.Query = "q=%2f&q"
	call := asking(r)
	parts, w := io.Pipe()
	r.Body = exchange.Body{Reader: parts, Length: -1}
	go func() {
		for _, part := range []string{"a", "b", "c"} {
			_, _ = io.WriteString(w, part)
		}
		w.Close()
	}()
	if _, body, err := c.ask(t, call); body != `PUT /a%20b/[?q=%2f&q a.example ["1" ""] <nil> len=-1 te=trailers secret=s body=abc` || err != nil {
		t.Error(body, err)
	}
	r.Body, r.Query = exchange.Body{}, ""
	call = asking(r)
	call.Body, call.Whole = []byte("whole"), true
	if _, body, err := c.ask(t, call); !strings.Contains(body, "len=5 te=trailers secret=s body=whole") || err != nil {
		t.Error(body, err)
	}
}

// What would break the framing, or say two things, goes nowhere.
func TestClientWritesNothingThatIsNoHTTP(t *testing.T) {
	c := standard(t, func(http.ResponseWriter, *http.Request) { t.Error("it was sent") })
	for name, r := range map[string]*exchange.Request{
		"method":           wanted("GE T", "/"),
		"path":             wanted("GET", "/a b"),
		"no path":          wanted("GET", ""),
		"field name":       wanted("GET", "/", exchange.Field{Name: "a b", Value: "c"}),
		"pseudo field":     wanted("GET", "/", exchange.Field{Name: ":path", Value: "/other"}),
		"line break":       wanted("GET", "/", exchange.Field{Name: "a", Value: "b\r\nc: d"}),
		"blank at an end":  wanted("GET", "/", exchange.Field{Name: "a", Value: "b "}),
		"no authority":     {Method: "GET", Path: "/"},
		"in the query":     {Method: "GET", Path: "/", Query: "a b", Authority: "a"},
		"in the authority": {Method: "GET", Path: "/", Authority: "a\r\n"},
	} {
		if _, _, err := c.ask(t, asking(r)); err == nil {
			t.Errorf("%s: sent", name)
		}
	}
	if n := c.Busy(); n != 0 {
		t.Errorf("%d requests are left", n)
	}
}

func TestClientOverTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(w, r.Body)
		if err != nil {
			t.Error(n, err)
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	trusted := s.Client().Transport.(*http.Transport).TLSClientConfig
	nc, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{RootCAs: trusted.RootCAs, ServerName: "example.com", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	c := greet(t, nc, ClientConfig{Scheme: "https"})
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			want := strings.Repeat(string(rune('a'+i)), 3000*i)
			call := asking(wanted("POST", "/"))
			call.Request.Body = exchange.Body{Reader: io.NopCloser(strings.NewReader(want)), Length: -1}
			if _, body, err := c.ask(t, call); body != want || err != nil {
				t.Errorf("%d of %d bytes, %v", len(body), len(want), err)
			}
		})
	}
	all.Wait()
	c.Retire()
	c.dies(t)
}

// echoes is a service of gRPC that gives back what it gets.
type echoes struct {
	grpctest.UnimplementedTestServiceServer
	canceled chan struct{}
}

func (s *echoes) UnaryCall(ctx context.Context, in *grpctest.SimpleRequest) (*grpctest.SimpleResponse, error) {
	if want := in.GetResponseStatus(); want.GetCode() != 0 {
		return nil, status.Error(codes.Code(want.GetCode()), want.GetMessage())
	}
	if in.GetFillUsername() { // asks to wait
		<-ctx.Done()
		s.canceled <- struct{}{}
		return nil, ctx.Err()
	}
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-head-bin", strings.Join(md.Get("x-bytes-bin"), "")))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-tail", strings.Join(md.Get("x-text"), ",")))
	return &grpctest.SimpleResponse{Payload: in.GetPayload()}, nil
}

func (s *echoes) StreamingOutputCall(in *grpctest.StreamingOutputCallRequest, out grpctest.TestService_StreamingOutputCallServer) error {
	for _, p := range in.GetResponseParameters() {
		if err := out.Send(&grpctest.StreamingOutputCallResponse{Payload: &grpctest.Payload{Body: make([]byte, p.GetSize())}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *echoes) StreamingInputCall(in grpctest.TestService_StreamingInputCallServer) error {
	for sum := 0; ; {
		m, err := in.Recv()
		if err == io.EOF {
			return in.SendAndClose(&grpctest.StreamingInputCallResponse{AggregatedPayloadSize: int32(sum)})
		}
		if err != nil {
			return err
		}
		sum += len(m.GetPayload().GetBody())
	}
}

func (s *echoes) FullDuplexCall(both grpctest.TestService_FullDuplexCallServer) error {
	for {
		m, err := both.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			s.canceled <- struct{}{}
			return err
		}
		if err := both.Send(&grpctest.StreamingOutputCallResponse{Payload: m.GetPayload()}); err != nil {
			return err
		}
	}
}

// through is a client of gRPC whose calls pass our server and our client.
func through(t *testing.T) (grpctest.TestServiceClient, *echoes) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	impl := &echoes{canceled: make(chan struct{}, 1)}
	server := grpc.NewServer()
	grpctest.RegisterTestServiceServer(server, impl)
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(ln) })
	t.Cleanup(func() { server.Stop(); served.Wait() })
	c := connect(t, ln.Addr().String())
	f := start(t, Config{Settings: func() *admission.Settings { return &admission.Settings{MaxBodyBytes: 100 << 20} }, Handle: func(e *exchange.Exchange) *exchange.Response {
		// The client's own deadline is to end the call: the upstream might be faster.
		e.Request.Header.Del("Grpc-Timeout")
		now := e.Received
		resp, done, err := c.Stream().Do(&http1.Call{Context: e.Context, Request: &e.Request, Now: now, Deadline: now.Add(patience), Watch: true})
		if err != nil {
			return text(502, err.Error())
		}
		e.Done = append(e.Done, done)
		return resp
	}})
	conn, err := grpc.NewClient("passthrough:///"+f.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return grpctest.NewTestServiceClient(conn), impl
}

func TestClientCarriesGRPC(t *testing.T) {
	client, impl := through(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	t.Run("unary, with metadata", func(t *testing.T) {
		var head, tail metadata.MD
		md := metadata.NewOutgoingContext(ctx, metadata.Pairs("x-text", "a", "x-text", "b", "x-bytes-bin", "\x00\xff"))
		out, err := client.UnaryCall(md, &grpctest.SimpleRequest{Payload: &grpctest.Payload{Body: []byte("hello")}}, grpc.Header(&head), grpc.Trailer(&tail))
		if err != nil || string(out.GetPayload().GetBody()) != "hello" || head.Get("x-head-bin")[0] != "\x00\xff" || tail.Get("x-tail")[0] != "a,b" {
			t.Error(out, err, head, tail)
		}
	})
	t.Run("trailers only", func(t *testing.T) {
		_, err := client.UnaryCall(ctx, &grpctest.SimpleRequest{ResponseStatus: &grpctest.EchoStatus{Code: 9, Message: "näh %"}})
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "näh %" {
			t.Error(err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		if _, err := client.UnaryCall(short, &grpctest.SimpleRequest{FillUsername: true}); status.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		<-impl.canceled
	})
	t.Run("server streams", func(t *testing.T) {
		in := &grpctest.StreamingOutputCallRequest{ResponseParameters: []*grpctest.ResponseParameters{{Size: 1}, {Size: 1 << 20}, {Size: 0}, {Size: 2 << 20}}}
		out, err := client.StreamingOutputCall(ctx, in)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range in.GetResponseParameters() {
			if m, err := out.Recv(); err != nil || len(m.GetPayload().GetBody()) != int(p.GetSize()) {
				t.Fatal(len(m.GetPayload().GetBody()), err)
			}
		}
		if _, err := out.Recv(); err != io.EOF {
			t.Error(err)
		}
	})
	t.Run("client streams", func(t *testing.T) {
		in, err := client.StreamingInputCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for range 8 {
			if err := in.Send(&grpctest.StreamingInputCallRequest{Payload: &grpctest.Payload{Body: make([]byte, 300<<10)}}); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := in.CloseAndRecv(); err != nil || out.GetAggregatedPayloadSize() != 8*300<<10 {
			t.Error(out, err)
		}
	})
	t.Run("both stream, and the client leaves", func(t *testing.T) {
		leave, cancel := context.WithCancel(ctx)
		defer cancel()
		both, err := client.FullDuplexCall(leave)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			if err := both.Send(&grpctest.StreamingOutputCallRequest{Payload: &grpctest.Payload{Body: make([]byte, i*1000)}}); err != nil {
				t.Fatal(err)
			}
			if m, err := both.Recv(); err != nil || len(m.GetPayload().GetBody()) != i*1000 {
				t.Fatal(i, err)
			}
		}
		cancel()
		<-impl.canceled
	})
}
