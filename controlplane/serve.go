package controlplane

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"

	"portcullis.dev/portcullis/controlplane/admin"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/identity"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// maxAdminMessage bounds an admin request: 100,000 routes fit in one.
const maxAdminMessage = 128 << 20

// committed tells others what the mirror has taken over.
func (p *Plane) committed(event store.Event, previousRevocation int64) {
	if len(event.Revocations) > 0 && p.bus != nil {
		err := p.bus.Publish(bus.Revoked, &busv1.Revoked{
			Version: event.Version.Proto(), Previous: previousRevocation, Entries: event.Revocations,
		})
		if err != nil {
			p.cfg.Log.Warn("a revocation could not be published on the bus; the stream carries it", "error", err)
		}
	}
	if slices.Contains(event.Rooms, roomReplicas) {
		p.cluster.wake()
	}
	for _, resource := range event.Upserts {
		if resource.GetIssuer() != nil || resource.GetKeySet() != nil {
			select {
			case p.issuersChanged <- struct{}{}:
			default:
			}
			return
		}
	}
}

// proved passes a proof of being current on to the nodes, on both paths.
func (p *Plane) proved(event store.Event, head stream.Head) {
	p.hub.Progress(event.Progress, event.AsOf)
	if p.bus == nil || time.Since(event.AsOf) > stream.ProofAge {
		return
	}
	// A beat that cannot be sent is noticed by who waits for it.
	_ = p.bus.Publish(bus.Beat, &busv1.Beat{Head: head.Version.Proto(), Revocations: head.Revocations, Progress: event.Progress})
}

// connectionAge is how long a connection lasts at most: less than a certificate
// does, so that nobody outstays one by staying connected.
const connectionAge = identity.DefaultLifetime / 2

// serveControl serves nodes and replicas over mutual TLS.
func (p *Plane) serveControl(ctx context.Context) error {
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(identity.ServerControl(p.live))),
		grpc.UnaryInterceptor(access.Unary()), grpc.StreamInterceptor(access.Stream()),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: 10 * time.Second, Timeout: 5 * time.Second, MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: time.Minute,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}),
	)
	controlv1.RegisterControlServiceServer(server, p.hub)
	controlv1.RegisterPeerServiceServer(server, p.hub)
	controlv1.RegisterJoinServiceServer(server, p.members)
	controlv1.RegisterRenewServiceServer(server, p.members)
	return serveGRPC(ctx, server, p.cfg.Control)
}

// serveGRPC serves until ctx ends; streams are cut, since their clients follow
// another replica.
func serveGRPC(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	if err := server.Serve(listener); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

// serveAdmin serves gRPC and REST on one listener. REST goes through the gateway
// and an in-memory connection, so that it meets the same interceptors.
func (p *Plane) serveAdmin(ctx context.Context) error {
	server := grpc.NewServer(
		grpc.UnaryInterceptor(admin.UnaryErrors), grpc.StreamInterceptor(admin.StreamErrors),
		grpc.MaxRecvMsgSize(maxAdminMessage), grpc.MaxSendMsgSize(maxAdminMessage),
	)
	adminv1.RegisterAdminServiceServer(server, p.admin)
	inside := bufconn.Listen(1 << 20)
	conn, err := grpc.NewClient("passthrough:///admin",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return inside.DialContext(ctx) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAdminMessage), grpc.MaxCallSendMsgSize(maxAdminMessage)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	rest := runtime.NewServeMux(runtime.WithErrorHandler(admin.RESTError))
	if err := adminv1.RegisterAdminServiceHandler(ctx, rest, conn); err != nil {
		return err
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			server.ServeHTTP(w, r)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxAdminMessage)
		rest.ServeHTTP(w, r)
	})
	front := &http.Server{
		Handler: handler, TLSConfig: identity.ServerAdmin(p.live), ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes: 64 << 10, IdleTimeout: 2 * time.Minute,
	}
	served := make(chan error, 2)
	go func() { served <- server.Serve(inside) }()
	go func() { served <- front.ServeTLS(p.cfg.Admin, "", "") }()
	ended := 0
	select {
	case <-ctx.Done():
		err = nil
	case err = <-served:
		ended = 1
	}
	_ = front.Close()
	server.Stop()
	for ; ended < 2; ended++ {
		<-served
	}
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}
