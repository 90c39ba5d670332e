package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"

	"portcullis.dev/portcullis/controlplane/admin"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

const (
	// maxAdminMessage bounds a request: 100,000 routes fit in one.
	maxAdminMessage = 128 << 20
	// maxStrangerMessage bounds that of a caller who has shown no credential of an
	// operator: enough to be told so.
	maxStrangerMessage = 64 << 10
	// adminDrain is how long calls in flight have when the replica stops.
	adminDrain = 5 * time.Second
)

// serveAdmin serves gRPC and REST on one listener, once this replica has loaded
// the store: before that every answer would be wrong. REST goes through the
// gateway and an in-memory connection, so that it meets the same interceptors.
func (p *Plane) serveAdmin(ctx context.Context) error {
	if err := p.Await(ctx, config.Version{}); err != nil {
		return p.cfg.Admin.Close()
	}
	server := grpc.NewServer(
		grpc.UnaryInterceptor(admin.UnaryErrors), grpc.StreamInterceptor(admin.StreamErrors),
		grpc.MaxRecvMsgSize(maxAdminMessage), grpc.MaxSendMsgSize(maxAdminMessage), grpc.WaitForHandlers(true),
	)
	adminv1.RegisterAdminServiceServer(server, p.admin)
	rest, inside, closeREST, err := restGateway(ctx)
	if err != nil {
		return errors.Join(err, p.cfg.Admin.Close())
	}
	defer closeREST()
	var running sync.WaitGroup
	front := &http.Server{
		Handler: p.adminHandler(server, rest, &running), TLSConfig: identity.ServerAdmin(p.live),
		ErrorLog:          slog.NewLogLogger(p.cfg.Log.Handler(), slog.LevelDebug),
		ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10, IdleTimeout: 2 * time.Minute,
	}
	served := make(chan error, 2)
	go func() { served <- server.Serve(inside) }()
	go func() { served <- front.ServeTLS(p.cfg.Admin, "", "") }()
	ended := 0
	select {
	case <-ctx.Done():
	case err = <-served:
		ended = 1
	}
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminDrain)
	defer cancel()
	if front.Shutdown(late) != nil {
		// Whoever watches or waits is cut.
		_ = front.Close()
	}
	server.Stop()
	running.Wait()
	for ; ended < 2; ended++ {
		<-served
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// restGateway translates REST to calls on the listener that it returns. A member
// of a body that the API does not know is an error, as in YAML: a misspelt one
// must not be left out in silence.
func restGateway(ctx context.Context) (rest *runtime.ServeMux, inside *bufconn.Listener, stop func(), err error) {
	inside = bufconn.Listen(1 << 20)
	conn, err := grpc.NewClient("passthrough:///admin",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return inside.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAdminMessage), grpc.MaxCallSendMsgSize(maxAdminMessage)))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("REST gateway: %w", err)
	}
	stop = func() { _ = conn.Close() }
	rest = runtime.NewServeMux(
		runtime.WithErrorHandler(admin.RESTError),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.JSONPb{
			MarshalOptions: protojson.MarshalOptions{EmitUnpopulated: true},
		}),
		// Authorization is passed on without being named; nothing else is asked for.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
	)
	if err := adminv1.RegisterAdminServiceHandler(ctx, rest, conn); err != nil {
		stop()
		return nil, nil, nil, fmt.Errorf("REST gateway: %w", err)
	}
	return rest, inside, stop, nil
}

// adminHandler tells gRPC and REST apart, and reads little of what strangers send.
func (p *Plane) adminHandler(server *grpc.Server, rest http.Handler, running *sync.WaitGroup) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Done()
		limit := int64(maxAdminMessage)
		if !p.admin.Knows(r.Context(), r.Header.Values("Authorization")) {
			limit = maxStrangerMessage
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			server.ServeHTTP(w, r)
			return
		}
		rest.ServeHTTP(w, r)
	})
}
