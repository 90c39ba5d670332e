// Package valkeyhook stands in for the module of that name, which Skipper's
// sources import for a client of Valkey and which the public module proxy does not
// always have. The peer that is measured here makes no such client.
package valkeyhook

import "github.com/valkey-io/valkey-go"

// Hook is what Skipper's options may hold; it is always nil here.
type Hook any

// WithHook is reached only with a Hook.
func WithHook(client valkey.Client, _ Hook) valkey.Client { return client }
