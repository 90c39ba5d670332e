//go:build race

package gateway

// raced: sync.Pool drops some of what it is given when races are looked for, so
// that nothing can be said of allocations.
const raced = true
