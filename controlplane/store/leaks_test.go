//go:build !slow

package store_test

import "go.uber.org/goleak"

// leftByEtcd: a member without peers leaves nothing behind.
func leftByEtcd() []goleak.Option { return nil }
