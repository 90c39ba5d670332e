package upstream

import (
	"context"
	"errors"
	"io"
	"net"
)

// upgrade returns what carries bytes both ways between the client and the
// backend, until one of them ends or ctx does. When ctx ends first, also without
// a call, the backend's connection is closed.
func upgrade(ctx context.Context, backend io.ReadWriteCloser, cancel context.CancelCauseFunc) func(io.ReadWriteCloser) error {
	unused := context.AfterFunc(ctx, func() { backend.Close() })
	return func(client io.ReadWriteCloser) error {
		defer cancel(nil)
		if !unused() {
			client.Close()
			return context.Cause(ctx)
		}
		stop := context.AfterFunc(ctx, func() {
			client.Close()
			backend.Close()
		})
		defer stop()
		up := make(chan error, 1)
		go func() { up <- carry(backend, client) }()
		down := carry(client, backend)
		first := errors.Join(down, <-up)
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return first
	}
}

// carry copies until the source ends and then closes both: a WebSocket has no
// half-closed state (RFC 6455, 7.1.1).
func carry(to, from io.ReadWriteCloser) error {
	_, err := io.Copy(to, from)
	to.Close()
	from.Close()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}
