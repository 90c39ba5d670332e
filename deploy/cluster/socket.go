package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
	"time"
)

// listenFrom listens on an address, or with next on the first free port after it.
func listenFrom(ctx context.Context, address string, next bool) (net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", address, err)
	}
	if !next || number == 0 {
		return net.Listen("tcp", address)
	}
	for try := 1; ; try++ {
		listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(number+try)))
		if err == nil || try == 100 || ctx.Err() != nil {
			return listener, err
		}
	}
}

// listenAgain listens on an address that this cluster had before. The system may
// have given its port to a connection meanwhile: then it waits for its end.
func listenAgain(ctx context.Context, address string) (net.Listener, error) {
	for {
		listener, err := net.Listen("tcp", address)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return listener, err
		}
		timer := time.NewTimer(20 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		case <-timer.C:
		}
	}
}
