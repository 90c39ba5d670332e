//go:build unix && !linux

package http1

// pollShut is nothing that can be asked here: a client that has closed its socket
// is found out when something is written to it.
const pollShut = 0
