//go:build !race

package e2e_test

// manyRoutes in one apply.
const manyRoutes = 10_000
