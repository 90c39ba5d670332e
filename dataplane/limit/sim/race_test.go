//go:build race

package sim

// many nodes are fewer under the race detector, which makes a run of 100 take
// half a minute; the race detector finds nothing in these single-threaded runs.
const many = 20
