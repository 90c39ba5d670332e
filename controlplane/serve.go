package controlplane

import (
	"context"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/durationpb"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/controlplane/stream"
	"portcullis.dev/portcullis/pkg/bus"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/identity"
	busv1 "portcullis.dev/portcullis/proto/bus/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

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
	if slices.Contains(event.Rooms, roomNodes) {
		p.members.wake()
	}
	if slices.Contains(event.Rooms, roomTickets) {
		trigger(p.tickets.changed)
	}
	p.wake(event)
}

// wake tells the keepers of keys and of certificates what may concern them.
func (p *Plane) wake(event store.Event) {
	var issuers, certificates bool
	for _, resource := range event.Upserts {
		issuers = issuers || resource.GetIssuer() != nil || resource.GetKeySet() != nil
		certificates = certificates || resource.GetCertificate() != nil || resource.GetIssuedCertificate() != nil
	}
	for _, key := range event.Deletes {
		// The Certificate may be there again already, in the next revision.
		certificates = certificates || key.Kind == config.KindIssuedCertificate
	}
	if issuers {
		trigger(p.issuersChanged)
	}
	if certificates {
		trigger(p.certificatesChanged)
	}
}

// trigger makes a channel of one ready, if it is not.
func trigger(changed chan<- struct{}) {
	select {
	case changed <- struct{}{}:
	default:
	}
}

// proved passes a proof of being current on to the nodes, on both paths.
func (p *Plane) proved(event store.Event, head stream.Head) {
	p.hub.Progress(event.Progress, event.AsOf)
	age := time.Since(event.AsOf)
	if p.bus == nil || age > stream.ProofAge {
		return
	}
	// A beat that cannot be sent is noticed by who waits for it.
	_ = p.bus.Publish(bus.Beat, &busv1.Beat{
		Head: head.Version.Proto(), Revocations: head.Revocations, Progress: event.Progress, Age: durationpb.New(age),
	})
}

// connectionAge is how long a connection lasts at most: less than a certificate
// does, so that nobody outstays one by staying connected.
const connectionAge = identity.DefaultLifetime / 2

// serveControl serves nodes and replicas over mutual TLS.
func (p *Plane) serveControl(ctx context.Context) error {
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(identity.ServerControl(p.live))), grpc.WaitForHandlers(true),
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
