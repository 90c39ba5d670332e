// Package valkeyotel stands in for the module of that name, which Skipper's
// sources import for traces of its client of Valkey and which the public module
// proxy does not always have. The peer that is measured here makes no such client.
package valkeyotel

import (
	"errors"

	"github.com/valkey-io/valkey-go"
)

// Option is what Skipper's options may hold; there is none here.
type Option func()

// NewClient is reached only when traces of Valkey are asked for.
func NewClient(valkey.ClientOption, ...Option) (valkey.Client, error) {
	return nil, errors.New("built without traces of Valkey")
}
