package exchange

import (
	"context"
	"errors"
	"fmt"
)

// What Result.Err wraps when it was not the upstream that cut an answer short, and
// the causes with which front ends interrupt what is behind one.
var (
	// ErrClientGone: the client closed the connection or reset the stream. It is
	// context.Canceled to those who ask why.
	ErrClientGone = fmt.Errorf("the client has gone: %w", context.Canceled)
	// ErrClientSlow: the client did not take the answer in time.
	ErrClientSlow = errors.New("the client does not read its answer")
	// ErrStopping: the node stops, and did not wait any longer.
	ErrStopping = errors.New("node is stopping")
	// ErrInternal: the code behind the answer failed.
	ErrInternal = errors.New("the answer's own code failed")
)
