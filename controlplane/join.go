package controlplane

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/identity"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// rejoinGrace is how long after its certificate ran out a node that had been cut
// off may still prove itself with its old key.
const rejoinGrace = 30 * 24 * time.Hour

// access is who may call what on the control listener.
var access = identity.Access{
	controlv1.ControlService_Follow_FullMethodName:  {identity.Dataplane},
	controlv1.JoinService_Join_FullMethodName:       {identity.Anonymous},
	controlv1.RenewService_Renew_FullMethodName:     {identity.Dataplane},
	controlv1.PeerService_WatchNodes_FullMethodName: {identity.Controlplane},
	controlv1.PeerService_Why_FullMethodName:        {identity.Controlplane},
}

// members gives machines their identity. It implements controlv1.JoinServiceServer
// and controlv1.RenewServiceServer.
type members struct {
	controlv1.UnimplementedJoinServiceServer
	controlv1.UnimplementedRenewServiceServer
	store store.Store
	ca    *identity.CA
	// changed is ready when the room of nodes has changed.
	changed chan struct{}
	// names are the nodes that have joined, as last read.
	names atomic.Pointer[[]string]
}

func newMembers(st store.Store, ca *identity.CA) *members {
	return &members{store: st, ca: ca, changed: make(chan struct{}, 1)}
}

// wake tells Run that nodes may have been taken out.
func (m *members) wake() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// Run has the streams of nodes that are taken out ended, on whichever replica they
// are, until ctx ends. A store that does not answer ends none.
func (m *members) Run(ctx context.Context, drop func(keep func(name string) bool)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.changed:
		}
		if err := m.read(ctx); err != nil {
			continue
		}
		known := m.expected()
		drop(func(name string) bool { return slices.Contains(known, name) })
	}
}

// read takes over which nodes have joined.
func (m *members) read(ctx context.Context) error {
	items, err := m.store.Items(roomNodes).List(ctx)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(items))
	for _, item := range items {
		names = append(names, item.Name)
	}
	m.names.Store(&names)
	return nil
}

// expected returns the names of the nodes that have joined.
func (m *members) expected() []string {
	if names := m.names.Load(); names != nil {
		return *names
	}
	return nil
}

// token makes a one-time join token; only its hash is stored.
func (m *members) token(ctx context.Context, ttl time.Duration) (string, error) {
	token, err := identity.NewJoinToken(m.ca.Pins())
	if err != nil {
		return "", err
	}
	if _, err := m.store.Items(roomJoinTokens).Put(ctx, token.ID(), nil, store.Write{TTL: ttl}); err != nil {
		return "", err
	}
	return token.Reveal(), nil
}

var errJoinRefused = status.Error(codes.PermissionDenied,
	"the join token is unknown, used up or expired: make another with `portcullis join-token create`")

// Join implements controlv1.JoinServiceServer.
func (m *members) Join(ctx context.Context, req *controlv1.JoinRequest) (*controlv1.JoinResponse, error) {
	id, err := identity.RequestedIdentity(req.Csr)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if id.Role != identity.Dataplane {
		return nil, status.Error(codes.PermissionDenied, "only nodes join; a control plane opens the store instead")
	}
	if strings.HasPrefix(req.Token, identity.RejoinPrefix) {
		return m.rejoin(ctx, id, req)
	}
	token, err := identity.ParseJoinToken(req.Token)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	// Who has no token is not told which names are taken.
	if _, err := m.store.Items(roomJoinTokens).Get(ctx, token.ID()); errors.Is(err, store.ErrNotFound) {
		return nil, errJoinRefused
	} else if err != nil {
		return nil, status.Error(codes.Unavailable, "the store does not answer: join again with the same token")
	}
	// A name that is taken is refused before the token is used up: whoever holds a
	// token must not put itself in the place of a node that serves.
	switch err := m.known(ctx, id); {
	case err == nil:
		return nil, status.Errorf(codes.AlreadyExists, "the cluster has a node %s already: choose another name, or take it out first with `portcullis nodes remove %s`", id.Name, id.Name)
	case status.Code(err) == codes.Unavailable:
		return nil, err
	}
	// Deleting is using: of many that send one token, one gets in.
	if _, err := m.store.Items(roomJoinTokens).Delete(ctx, token.ID()); errors.Is(err, store.ErrNotFound) {
		return nil, errJoinRefused
	} else if err != nil {
		return nil, status.Error(codes.Unavailable, "the store does not answer: join again with the same token")
	}
	switch _, err := m.store.Items(roomNodes).Put(ctx, id.Name, nil, store.Write{}); {
	case errors.Is(err, store.ErrExists):
		return nil, status.Errorf(codes.AlreadyExists, "another node took the name %s at this moment: join again under another, with a new token", id.Name)
	case err != nil:
		return nil, status.Error(codes.Unavailable, "the store does not answer: join again with a new token")
	}
	return m.issue(req.Csr, id)
}

// remove takes a node out: its certificate is not renewed and its stream, if it
// follows this replica, ends when the room's change comes back.
func (m *members) remove(ctx context.Context, name string) error {
	_, err := m.store.Items(roomNodes).Delete(ctx, name)
	return err
}

func (m *members) rejoin(ctx context.Context, id identity.Identity, req *controlv1.JoinRequest) (*controlv1.JoinResponse, error) {
	proved, err := m.ca.VerifyRejoin(req.Token, req.Csr, rejoinGrace, time.Now())
	if err != nil || proved != id {
		return nil, status.Error(codes.PermissionDenied, "the node's old certificate is no proof: join with a new token")
	}
	if err := m.known(ctx, id); err != nil {
		return nil, err
	}
	return m.issue(req.Csr, id)
}

// known refuses a node that has been taken out.
func (m *members) known(ctx context.Context, id identity.Identity) error {
	_, err := m.store.Items(roomNodes).Get(ctx, id.Name)
	if errors.Is(err, store.ErrNotFound) {
		return status.Errorf(codes.PermissionDenied, "the node %s is not part of the cluster: join with a token", id.Name)
	}
	if err != nil {
		return status.Error(codes.Unavailable, "the store does not answer")
	}
	return nil
}

func (m *members) issue(csr []byte, id identity.Identity) (*controlv1.JoinResponse, error) {
	issued, err := m.ca.Issue(csr, id, 0, time.Now())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &controlv1.JoinResponse{Certificates: issued.Certificates, Authorities: issued.Authorities}, nil
}

// Renew implements controlv1.RenewServiceServer: a node gets a new certificate
// for the name that it has.
func (m *members) Renew(ctx context.Context, req *controlv1.RenewRequest) (*controlv1.RenewResponse, error) {
	peer, err := identity.PeerFromContext(ctx)
	if err != nil {
		return nil, status.Error(codes.Unauthenticated, err.Error())
	}
	if err := m.known(ctx, peer.Identity); err != nil {
		return nil, err
	}
	issued, err := m.issue(req.Csr, peer.Identity)
	if err != nil {
		return nil, err
	}
	return &controlv1.RenewResponse{Certificates: issued.Certificates, Authorities: issued.Authorities}, nil
}
