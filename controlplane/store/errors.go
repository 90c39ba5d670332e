package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errAgain: nothing was written, and trying again from the start may succeed.
var errAgain = errors.New("store: try again")

// explain gives etcd's errors our names.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w (%w)", ErrFull, err)
	case errors.Is(err, rpctypes.ErrCompacted):
		return fmt.Errorf("%w (%w)", ErrCompacted, err)
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Errorf("%w: etcd is configured with smaller limits than its defaults (%w)", ErrTooLarge, err)
	case errors.Is(err, clientv3.ErrNoAvailableEndpoints):
		return fmt.Errorf("no etcd endpoint answers: %w", err)
	default:
		return err
	}
}

// codeOf is the gRPC code of an error from etcd, whichever way it came.
func codeOf(err error) codes.Code {
	var e rpctypes.EtcdError
	switch {
	case errors.As(err, &e):
		return e.Code()
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return status.Code(err)
}

// refused reports whether the error proves that a write did not happen and never
// will. Any other error leaves that open.
func refused(err error) bool {
	switch codeOf(err) {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.PermissionDenied,
		codes.ResourceExhausted, codes.FailedPrecondition, codes.OutOfRange,
		codes.Unimplemented, codes.Unauthenticated:
		return true
	}
	return false
}

// transient reports whether a read may succeed when it is tried again.
func transient(err error) bool {
	switch codeOf(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.Aborted:
		return true
	}
	return false
}

// backoff waits before a further attempt: up to 10 ms at first, doubling up to a
// second, with full jitter.
type backoff struct{ tries int }

func (b *backoff) wait(ctx context.Context) error {
	limit := min(10*time.Millisecond<<min(b.tries, 7), time.Second)
	b.tries++
	t := time.NewTimer(rand.N(limit) + time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// again runs f until it says something other than errAgain, or ctx ends.
func again[T any](ctx context.Context, f func() (T, error)) (T, error) {
	var b backoff
	for {
		v, err := f()
		if !errors.Is(err, errAgain) {
			return v, err
		}
		if ctxErr := b.wait(ctx); ctxErr != nil {
			var none T
			return none, fmt.Errorf("%w: %w", ctxErr, err)
		}
	}
}

func isUnknown(err error) bool { return errors.Is(err, ErrUnknown) }
