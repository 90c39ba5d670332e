package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// What can be wrong with the other end.
var (
	ErrNoPeer       = errors.New("no client certificate of this cluster")
	ErrWrongRole    = errors.New("certificate is for another role")
	ErrWrongCluster = errors.New("control plane is not of the cluster that the join token names")
	ErrExpired      = errors.New("certificate has expired")
)

// Peer is who is at the other end of a connection.
type Peer struct {
	Identity
	// NotAfter is when its certificate runs out.
	NotAfter time.Time
}

// PeerIdentity returns who the client of a connection is. The connection must
// come from a listener of this package: the certificate counts only as verified
// in the handshake. The error is ErrNoPeer or ErrIdentity.
func PeerIdentity(cs tls.ConnectionState) (Peer, error) {
	if !cs.HandshakeComplete || len(cs.VerifiedChains) == 0 {
		return Peer{}, ErrNoPeer
	}
	leaf := cs.VerifiedChains[0][0]
	id, err := identityOf(leaf.URIs)
	if err != nil {
		return Peer{}, err
	}
	return Peer{id, leaf.NotAfter}, nil
}

// PeerFromContext returns who calls, in a gRPC handler.
func PeerFromContext(ctx context.Context) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, ErrNoPeer
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Peer{}, ErrNoPeer
	}
	return PeerIdentity(info.State)
}

// Anonymous in an Access allows callers without a certificate, and members too.
const Anonymous Role = ""

// Access says which roles may call a gRPC method, by full name
// ("/package.Service/Method"). A method that is not in it is refused.
type Access map[string][]Role

// Check authorises the caller in ctx for a method. Its error is a gRPC status:
// Unauthenticated or PermissionDenied.
func (a Access) Check(ctx context.Context, method string) error {
	roles := a[method]
	if slices.Contains(roles, Anonymous) {
		return nil
	}
	p, err := PeerFromContext(ctx)
	if err != nil {
		return status.Error(codes.Unauthenticated, err.Error())
	}
	// A connection can be older than its certificate allows.
	if time.Now().After(p.NotAfter) {
		return status.Error(codes.Unauthenticated, ErrExpired.Error())
	}
	if !slices.Contains(roles, p.Role) {
		return status.Error(codes.PermissionDenied, fmt.Sprintf("a %s may not call %s", p.Role, method))
	}
	return nil
}

// Unary enforces the access of unary methods.
func (a Access) Unary() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := a.Check(ctx, info.FullMethod); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}
}

// Stream enforces the access of streaming methods, when they begin.
func (a Access) Stream() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		if err := a.Check(ss.Context(), info.FullMethod); err != nil {
			return err
		}
		return next(srv, ss)
	}
}
