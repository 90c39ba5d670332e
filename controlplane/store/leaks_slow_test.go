//go:build slow

package store_test

import "go.uber.org/goleak"

// leftByEtcd is what members leave behind that are stopped amid their peers: the
// connections between them, which are etcd's own and carry nothing of ours.
func leftByEtcd() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("github.com/soheilhy/cmux.(*MuxConn).Read"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*conn).serve"),
	}
}
