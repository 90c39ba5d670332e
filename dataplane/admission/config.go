package admission

import (
	"log/slog"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// Config is what every front end is given, so that a client is waited for as long
// under one protocol as under another.
type Config struct {
	// Handle answers an exchange; never nil. It is called on one goroutine per
	// exchange. The exchange and its strings hold until Done has run.
	Handle func(*exchange.Exchange) *exchange.Response
	// Refuse renders the front end's own refusals, whose reasons are those of this
	// package: ReasonInternal is a Handle that panics. The Request holds what is known
	// of it, which may be nothing but Peer. What decided stands in the exchange's Why.
	// Never nil.
	Refuse func(e *exchange.Exchange, reason string, status int) *exchange.Response
	// Settings returns the live settings. It is called for every request and so is
	// cheap; nil means the zero Settings.
	Settings func() *Settings

	// HeaderTimeout bounds the time from a head's first byte to its last, and the wait
	// for the first byte of a connection; 0 means 10s.
	HeaderTimeout time.Duration
	// BodyTimeout bounds each wait for more of a request's body, until its answer
	// begins, and all waits together: see Pace. 0 means 30s.
	BodyTimeout time.Duration
	// WriteTimeout bounds the wait for the client to take one write of at most
	// 64 KiB, give or take a half; 0 means 60s. It is the minimum rate at which an
	// answer is read, too.
	WriteTimeout time.Duration
	// IdleTimeout bounds the wait for the next request; 0 means 2m.
	IdleTimeout time.Duration
	// Log gets what cannot be said to the client; nil discards it.
	Log *slog.Logger
}

// Complete puts the defaults in place of what is zero.
func (c *Config) Complete() {
	for at, zero := range map[*time.Duration]time.Duration{
		&c.HeaderTimeout: 10 * time.Second, &c.BodyTimeout: 30 * time.Second, &c.WriteTimeout: time.Minute, &c.IdleTimeout: 2 * time.Minute,
	} {
		if *at <= 0 {
			*at = zero
		}
	}
	if c.Settings == nil {
		zero := &Settings{}
		c.Settings = func() *Settings { return zero }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}
