// Package admin is every way into the control plane for people and CI: it
// authorises and audits, checks, plans and applies. Every write enters here. It
// knows the store and the stream only through the interfaces they export, and
// nothing of etcd, NATS or nodes.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"portcullis.dev/portcullis/controlplane/keys"
	"portcullis.dev/portcullis/controlplane/store"
	"portcullis.dev/portcullis/pkg/config"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// Mirror is the replica's own view of the store, following its watch.
type Mirror interface {
	// Current returns the newest checked config and the version of all lanes.
	Current() (config.Checked, config.Version)
	// Await returns when the mirror has reached the version, or ctx ended.
	Await(ctx context.Context, version config.Version) error
	// Counts returns how many credentials and revocations there are.
	Counts() (credentials, revocations int)
}

// Cluster is what the stream knows of the nodes of all replicas.
type Cluster interface {
	Nodes() []*controlv1.NodeStatus
	// AwaitConvergence returns when every connected node runs at least the version
	// or has rejected it, or when ctx ends; what it returns holds either way.
	AwaitConvergence(ctx context.Context, version config.Version) *adminv1.Convergence
	// Why asks the nodes for a decision; false when none has it.
	Why(ctx context.Context, requestID string) (*controlv1.DecisionRecord, bool, error)
	Replicas(ctx context.Context) ([]string, error)
}

// Service implements adminv1.AdminServiceServer. The fields are set before it
// serves and not changed; it is safe for concurrent use.
type Service struct {
	adminv1.UnimplementedAdminServiceServer

	Store   store.Store
	Mirror  Mirror
	Cluster Cluster
	// Issuers signs for built-in issuers and makes the key sets that a change of
	// issuers needs.
	Issuers *keys.Issuers
	// JoinToken makes a one-time token for a node that expires after ttl.
	JoinToken func(ctx context.Context, ttl time.Duration) (string, error)
	// RemoveNodeByName takes a node out of the cluster; store.ErrNotFound when there is
	// none of the name.
	RemoveNodeByName func(ctx context.Context, name string) error
	// Audit receives one record for each authorisation, allowed or denied.
	Audit *slog.Logger
	Log   *slog.Logger
	// Release is the binary's version.
	Release string
}

// UnaryErrors and StreamErrors translate the service's errors at the edge. They
// are the only place that knows gRPC status codes.
// A panic fails the call and nothing else.
func UnaryErrors(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer recovered(info.FullMethod, &err)
	resp, err = next(ctx, req)
	return resp, toStatus(err)
}

// StreamErrors is UnaryErrors for streams.
func StreamErrors(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer recovered(info.FullMethod, &err)
	return toStatus(next(srv, stream))
}

// recovered turns a panic into an error that tells the caller nothing of it.
func recovered(method string, err *error) {
	if cause := recover(); cause != nil {
		slog.Error("an admin call failed in the control plane's own code", "method", method, "panic", cause, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "the control plane failed; its log says more")
	}
}

// ErrInvalid is wrapped by every refusal of a request's own content.
var ErrInvalid = errors.New("invalid request")

// maxProblems is how many problems one refusal tells: a status travels in header
// fields, which are bounded.
const maxProblems = 100

func toStatus(err error) error {
	if err == nil {
		return nil
	}
	var problems config.Problems
	if errors.As(err, &problems) {
		text := ""
		if more := len(problems) - maxProblems; more > 0 {
			problems, text = problems[:maxProblems], fmt.Sprintf("\n... and %d more problems", more)
		}
		st := status.New(codes.InvalidArgument, problems.Error()+text)
		details := &adminv1.PlanResponse{}
		for _, p := range problems {
			details.Problems = append(details.Problems, p.Proto())
		}
		if with, err := st.WithDetails(details); err == nil {
			st = with
		}
		return st.Err()
	}
	for _, m := range statuses {
		if errors.Is(err, m.sentinel) {
			return status.Error(m.code, err.Error())
		}
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Internal, err.Error())
}

// statuses gives each sentinel its code; of several in one error the first one
// here counts.
var statuses = []struct {
	sentinel error
	code     codes.Code
}{
	{ErrUnauthenticated, codes.Unauthenticated}, {ErrForbidden, codes.PermissionDenied}, {ErrUnavailable, codes.Unavailable},
	{store.ErrUnknown, codes.Unavailable}, {store.ErrClosed, codes.Unavailable}, {store.ErrFull, codes.ResourceExhausted},
	{store.ErrConflict, codes.Aborted}, {store.ErrNotFound, codes.NotFound}, {store.ErrExists, codes.AlreadyExists},
	{store.ErrTooLarge, codes.InvalidArgument}, {store.ErrInvalid, codes.InvalidArgument}, {store.ErrCompacted, codes.OutOfRange},
	{ErrInvalid, codes.InvalidArgument}, {context.Canceled, codes.Canceled}, {context.DeadlineExceeded, codes.DeadlineExceeded},
}
