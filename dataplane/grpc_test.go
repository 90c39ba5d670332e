package dataplane

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	grpctest "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const grpcDocs = `
apiVersion: portcullis.dev/v1
kind: Gateway
metadata: {name: default}
spec: {limits: {maxBodyBytes: 100000000}}
---
apiVersion: portcullis.dev/v1
kind: Upstream
metadata: {name: services}
spec:
  protocol: http2
  endpoints: [{url: "http://%s"}]
---
apiVersion: portcullis.dev/v1
kind: Route
metadata: {name: services}
spec:
  public: true
  matches: [{path: {prefix: /grpc.testing.TestService}}]
  backends: [{upstream: services}]
`

// service is gRPC's interoperability test service, as far as it is needed.
type service struct {
	grpctest.UnimplementedTestServiceServer
	canceled chan error
}

func (s *service) UnaryCall(ctx context.Context, in *grpctest.SimpleRequest) (*grpctest.SimpleResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if want := in.GetResponseStatus(); want.GetCode() != 0 {
		return nil, status.Error(codes.Code(want.GetCode()), want.GetMessage())
	}
	if in.GetFillUsername() { // asks to wait
		<-ctx.Done()
		s.canceled <- ctx.Err()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-head", strings.Join(md.Get("x-text"), ","), "x-head-bin", strings.Join(md.Get("x-bytes-bin"), "")))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-tail", "end", "x-tail-bin", "\x00\xff\x01"))
	return &grpctest.SimpleResponse{Payload: in.GetPayload()}, nil
}

func (s *service) StreamingOutputCall(in *grpctest.StreamingOutputCallRequest, out grpctest.TestService_StreamingOutputCallServer) error {
	for _, p := range in.GetResponseParameters() {
		if err := out.Send(&grpctest.StreamingOutputCallResponse{Payload: &grpctest.Payload{Body: make([]byte, p.GetSize())}}); err != nil {
			return err
		}
	}
	return nil
}

func (s *service) StreamingInputCall(in grpctest.TestService_StreamingInputCallServer) error {
	sum := 0
	for {
		m, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return in.SendAndClose(&grpctest.StreamingInputCallResponse{AggregatedPayloadSize: int32(sum)})
		}
		if err != nil {
			return err
		}
		sum += len(m.GetPayload().GetBody())
	}
}

func (s *service) FullDuplexCall(both grpctest.TestService_FullDuplexCallServer) error {
	for {
		m, err := both.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			s.canceled <- both.Context().Err()
			return err
		}
		if err := both.Send(&grpctest.StreamingOutputCallResponse{Payload: m.GetPayload()}); err != nil {
			return err
		}
	}
}

const grpcMost = 32 << 20

// grpcNode is a node with a route to the service, and a client of it.
func grpcNode(t *testing.T) (grpctest.TestServiceClient, *service, *Node) {
	t.Helper()
	ln := socket(t)
	impl := &service{canceled: make(chan error, 4)}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(grpcMost), grpc.MaxSendMsgSize(grpcMost))
	grpctest.RegisterTestServiceServer(server, impl)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	n, _ := alone(t)
	run(t, n)
	apply(t, n, 1, fmt.Sprintf(grpcDocs, ln.Addr()))
	return grpcClient(t, n.Address()), impl, n
}

func grpcClient(t *testing.T, address string) grpctest.TestServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(grpcMost), grpc.MaxCallSendMsgSize(grpcMost)),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return grpctest.NewTestServiceClient(conn)
}

func patient(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestGRPCThroughTheNode(t *testing.T) {
	client, impl, n := grpcNode(t)
	t.Run("unary, metadata both ways", func(t *testing.T) {
		ctx := metadata.AppendToOutgoingContext(patient(t), "x-text", "a", "x-text", "b", "x-bytes-bin", "\x00\x01\xfe")
		var head, tail metadata.MD
		out, err := client.UnaryCall(ctx, &grpctest.SimpleRequest{Payload: &grpctest.Payload{Body: []byte("hello")}}, grpc.Header(&head), grpc.Trailer(&tail))
		if err != nil || string(out.GetPayload().GetBody()) != "hello" {
			t.Fatal(out, err)
		}
		if head.Get("x-head")[0] != "a,b" || head.Get("x-head-bin")[0] != "\x00\x01\xfe" || tail.Get("x-tail-bin")[0] != "\x00\xff\x01" || len(head.Get("x-request-id")) != 1 {
			t.Error(head, tail)
		}
	})
	t.Run("large messages", func(t *testing.T) {
		body := make([]byte, 9<<20)
		rand.Read(body)
		out, err := client.UnaryCall(patient(t), &grpctest.SimpleRequest{Payload: &grpctest.Payload{Body: body}})
		if err != nil || !bytes.Equal(out.GetPayload().GetBody(), body) {
			t.Fatal(len(out.GetPayload().GetBody()), err)
		}
	})
	t.Run("trailers only", func(t *testing.T) {
		_, err := client.UnaryCall(patient(t), &grpctest.SimpleRequest{ResponseStatus: &grpctest.EchoStatus{Code: int32(codes.FailedPrecondition), Message: "no: ä%"}})
		if s := status.Convert(err); s.Code() != codes.FailedPrecondition || s.Message() != "no: ä%" {
			t.Error(err)
		}
	})
	t.Run("server streaming", func(t *testing.T) {
		in := &grpctest.StreamingOutputCallRequest{}
		for range 50 {
			in.ResponseParameters = append(in.ResponseParameters, &grpctest.ResponseParameters{Size: 100_000})
		}
		stream, err := client.StreamingOutputCall(patient(t), in)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			if m, err := stream.Recv(); err != nil || len(m.GetPayload().GetBody()) != 100_000 {
				t.Fatal(i, err)
			}
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	t.Run("client streaming", func(t *testing.T) {
		stream, err := client.StreamingInputCall(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		for range 50 {
			if err := stream.Send(&grpctest.StreamingInputCallRequest{Payload: &grpctest.Payload{Body: make([]byte, 100_000)}}); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := stream.CloseAndRecv(); err != nil || out.GetAggregatedPayloadSize() != 5_000_000 {
			t.Error(out, err)
		}
	})
	t.Run("both directions at once", func(t *testing.T) {
		stream, err := client.FullDuplexCall(patient(t))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			text := fmt.Sprint("message ", i)
			if err := stream.Send(&grpctest.StreamingOutputCallRequest{Payload: &grpctest.Payload{Body: []byte(text)}}); err != nil {
				t.Fatal(err)
			}
			if m, err := stream.Recv(); err != nil || string(m.GetPayload().GetBody()) != text {
				t.Fatal(m, err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	t.Run("deadline", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if _, err := client.UnaryCall(ctx, &grpctest.SimpleRequest{FillUsername: true}); status.Code(err) != codes.DeadlineExceeded {
			t.Error(err)
		}
		<-impl.canceled
	})
	t.Run("cancellation, before and behind the head", func(t *testing.T) {
		ctx, cancel := context.WithCancel(patient(t))
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&grpctest.StreamingOutputCallRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-impl.canceled
		ctx, cancel = context.WithCancel(patient(t))
		time.AfterFunc(20*time.Millisecond, cancel)
		if _, err := client.UnaryCall(ctx, &grpctest.SimpleRequest{FillUsername: true}); status.Code(err) != codes.Canceled {
			t.Error(err)
		}
		<-impl.canceled
	})
	if err := n.Ready(); err != nil {
		t.Error(err)
	}
}

// A refusal reaches a client of gRPC as a status, with its reason.
func TestGRPCRefusals(t *testing.T) {
	client, _, n := grpcNode(t)
	apply(t, n, 2, gatewayDoc)
	var head metadata.MD
	_, err := client.UnaryCall(patient(t), &grpctest.SimpleRequest{}, grpc.Header(&head))
	if s := status.Convert(err); s.Code() != codes.Unimplemented || !strings.HasPrefix(s.Message(), "no_route: ") {
		t.Error(err)
	}
	// The upstream is not there.
	apply(t, n, 3, fmt.Sprintf(grpcDocs, nowhere(t)))
	_, err = client.UnaryCall(patient(t), &grpctest.SimpleRequest{})
	if s := status.Convert(err); s.Code() != codes.Unavailable || !strings.HasPrefix(s.Message(), "upstream_unavailable: ") {
		t.Error(err)
	}
}

// A browser's call, over HTTP/1.1 and over HTTP/2, as bytes and as text.
func TestGRPCWebThroughTheNode(t *testing.T) {
	_, _, n := grpcNode(t)
	message, err := proto.Marshal(&grpctest.SimpleRequest{Payload: &grpctest.Payload{Body: []byte("hello")}})
	if err != nil {
		t.Fatal(err)
	}
	framed := append([]byte{0, 0, 0, 0, byte(len(message))}, message...)
	failing, err := proto.Marshal(&grpctest.SimpleRequest{ResponseStatus: &grpctest.EchoStatus{Code: 5, Message: "none"}})
	if err != nil {
		t.Fatal(err)
	}
	failing = append([]byte{0, 0, 0, 0, byte(len(failing))}, failing...)
	for _, h2c := range []bool{false, true} {
		transport := &http.Transport{Protocols: new(http.Protocols)}
		transport.Protocols.SetHTTP1(!h2c)
		transport.Protocols.SetUnencryptedHTTP2(h2c)
		client := &http.Client{Transport: transport, Timeout: patience}
		for _, contentType := range []string{"application/grpc-web+proto", "application/grpc-web-text"} {
			call := func(message []byte) (*http.Response, []byte) {
				t.Helper()
				if strings.HasSuffix(contentType, "text") {
					message = []byte(base64.StdEncoding.EncodeToString(message))
				}
				resp, err := client.Post("http://"+n.Address()+"/grpc.testing.TestService/UnaryCall", contentType, bytes.NewReader(message))
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), strings.TrimSuffix(contentType, "+proto")) {
					t.Fatal(resp.Status, resp.Header, err)
				}
				if strings.HasSuffix(contentType, "text") {
					var plain []byte
					for _, piece := range strings.SplitAfter(string(body), "=") {
						raw, err := base64.StdEncoding.DecodeString(strings.Repeat(piece, 1) + strings.Repeat("=", (4-len(piece)%4)%4))
						if err != nil && piece != "=" {
							t.Fatal(err, string(body))
						}
						plain = append(plain, raw...)
					}
					body = plain
				}
				return resp, body
			}
			if _, body := call(framed); !bytes.Contains(body, []byte("hello")) || !bytes.Contains(body, []byte("grpc-status: 0\r\n")) || !bytes.Contains(body, []byte("x-tail: end\r\n")) {
				t.Errorf("%s, h2c %v: %q", contentType, h2c, body)
			}
			if resp, body := call(failing); resp.Header.Get("Grpc-Status") != "5" || len(body) > 0 {
				t.Errorf("%s, h2c %v: %v %q", contentType, h2c, resp.Header, body)
			}
		}
		client.CloseIdleConnections()
	}
}
