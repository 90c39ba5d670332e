//go:build race

package sim

import "time"

// Runs are small under the race detector: they have one goroutine, in which it
// finds nothing, and it makes them ten times as slow.
const (
	many  = 12
	span  = 3 * time.Second
	seeds = 1
)
