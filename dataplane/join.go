package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"portcullis.dev/portcullis/pkg/identity"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

const (
	joinTimeout  = 10 * time.Second
	renewTimeout = 10 * time.Second
)

// ErrNoIdentity says that a node is not part of a cluster and has no token to
// join one.
var ErrNoIdentity = errors.New("this node has no identity yet: give it a join token (`portcullis join-token create`)")

// enter returns the node's identity: the one in dir, or a new one for the token.
func enter(ctx context.Context, cfg *Config, dir string) (*identity.Live, error) {
	state, err := identity.LoadState(dir)
	switch {
	case err == nil:
		live, err := identity.NewLive(state)
		if err != nil {
			return nil, fmt.Errorf("identity in %s: %w", dir, err)
		}
		if id := live.Identity(); id.Name != cfg.Name {
			return nil, fmt.Errorf("identity in %s is that of %s, not of %s: use another data directory", dir, id.Name, cfg.Name)
		}
		return live, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case cfg.JoinToken == "":
		return nil, ErrNoIdentity
	}
	if state, err = join(ctx, cfg); err != nil {
		return nil, err
	}
	if err := state.Save(dir); err != nil {
		return nil, err
	}
	return identity.NewLive(state)
}

// join trades the token for a certificate, at whichever control plane answers.
func join(ctx context.Context, cfg *Config) (identity.State, error) {
	token, err := identity.ParseJoinToken(cfg.JoinToken)
	if err != nil {
		return identity.State{}, err
	}
	key, csr, err := identity.NewRequest(identity.Identity{Role: identity.Dataplane, Name: cfg.Name})
	if err != nil {
		return identity.State{}, err
	}
	creds := credentials.NewTLS(identity.ClientJoin(token))
	var failures error
	for _, address := range cfg.Control {
		resp, err := joinAt(ctx, address, creds, &controlv1.JoinRequest{Token: token.Reveal(), Csr: csr})
		if err == nil {
			return identity.State{Key: key, Issued: identity.Issued{Certificates: resp.Certificates, Authorities: resp.Authorities}}, nil
		}
		failures = errors.Join(failures, fmt.Errorf("joining at %s: %w", address, err))
		// A refusal is the cluster's word; only silence is worth another address.
		if code := status.Code(err); code == codes.PermissionDenied || code == codes.InvalidArgument {
			break
		}
	}
	return identity.State{}, failures
}

func joinAt(ctx context.Context, address string, creds credentials.TransportCredentials, req *controlv1.JoinRequest) (*controlv1.JoinResponse, error) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	return controlv1.NewJoinServiceClient(conn).Join(ctx, req)
}

// dialer connects to a control plane as the node.
func dialer(live *identity.Live) func(address string) (*grpc.ClientConn, error) {
	return func(address string) (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///"+address,
			grpc.WithTransportCredentials(credentials.NewTLS(identity.ClientControl(live))),
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 5 * time.Second, Timeout: 3 * time.Second}))
	}
}

// renewer keeps the node's certificate fresh, at whichever control plane answers.
// A node that was cut off until its certificate ran out proves itself with its
// old key.
func (n *Node) renewer(dir string) *identity.Renewer {
	return &identity.Renewer{
		Live: n.live, Log: n.cfg.Log,
		Save: func(state identity.State) error { return state.Save(dir) },
		Renew: func(ctx context.Context, csr []byte) (identity.Issued, error) {
			var failures error
			for _, address := range n.cfg.Control {
				issued, err := n.renewAt(ctx, address, csr)
				if err == nil {
					return issued, nil
				}
				failures = errors.Join(failures, fmt.Errorf("renewing at %s: %w", address, err))
			}
			return identity.Issued{}, failures
		},
	}
}

func (n *Node) renewAt(ctx context.Context, address string, csr []byte) (identity.Issued, error) {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	if _, until := n.live.Validity(); time.Now().After(until) {
		proof, err := n.live.State().Rejoin(csr)
		if err != nil {
			return identity.Issued{}, err
		}
		resp, err := joinAt(ctx, address, credentials.NewTLS(identity.ClientAnonymous(n.live)), &controlv1.JoinRequest{Token: proof, Csr: csr})
		return identity.Issued{Certificates: resp.GetCertificates(), Authorities: resp.GetAuthorities()}, err
	}
	conn, err := dialer(n.live)(address)
	if err != nil {
		return identity.Issued{}, err
	}
	defer func() { _ = conn.Close() }()
	resp, err := controlv1.NewRenewServiceClient(conn).Renew(ctx, &controlv1.RenewRequest{Csr: csr})
	return identity.Issued{Certificates: resp.GetCertificates(), Authorities: resp.GetAuthorities()}, err
}
