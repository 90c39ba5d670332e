// Package http1 speaks HTTP/1.1 (RFC 9110, RFC 9112) on connections that it is
// given, to clients and to upstreams, on buffers that it reuses. One parser reads
// heads and chunks in both directions; what two implementations could read in
// two ways is refused, never repaired. The package knows nothing of routes,
// policies and pools: it turns bytes into an exchange.Exchange and back.
package http1
