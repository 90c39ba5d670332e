package main

import (
	"fmt"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// memoryShare is how much of a container's memory the runtime plans with; the rest
// is for what it does not count, such as the kernel's socket buffers.
const memoryShare = 0.9

// limitMemory has the runtime keep to the container's memory, unless GOMEMLIMIT
// says otherwise: from near that limit on the node refuses, instead of being
// killed. The processors of the container are the runtime's business already.
func limitMemory(log *slog.Logger) error {
	if os.Getenv("GOMEMLIMIT") == "" {
		// Not to be in a container, or to be in one without a limit, is no error.
		_, err := memlimit.SetGoMemLimitWithOpts(
			memlimit.WithRatio(memoryShare), memlimit.WithProvider(memlimit.FromCgroup), memlimit.WithLogger(slog.New(slog.DiscardHandler)))
		if err != nil {
			log.Debug("no memory limit of a container", "error", err)
		}
	}
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		log.Info("resources", "processors", runtime.GOMAXPROCS(0), "memory_limit", "none")
		return nil
	}
	if limit < 32<<20 {
		return fmt.Errorf("the memory limit is %d MiB (GOMEMLIMIT, or 90 %% of the container's): expected at least 32", limit>>20)
	}
	log.Info("resources", "processors", runtime.GOMAXPROCS(0), "memory_limit", fmt.Sprintf("%d MiB", limit>>20))
	return nil
}
