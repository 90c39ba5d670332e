package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// Some tests start this binary again, as the measurement does.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "idle" || os.Args[1] == "awake") {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := dispatch(ctx, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}
