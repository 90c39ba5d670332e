//go:build !race

package sim

const many = 100
