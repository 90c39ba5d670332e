//go:build !race

package sim

import "time"

const (
	many  = 100
	span  = 5 * time.Second
	seeds = 8
)
