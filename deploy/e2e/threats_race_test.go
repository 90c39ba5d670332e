//go:build race

package e2e_test

// manyRoutes in one apply: the race detector makes each cost ten times as much.
const manyRoutes = 1_000
