// Package limit owns the cluster-wide debt buckets: what each limit key may
// still spend, what other nodes have spent of it, and the exchange of totals
// that keeps the two together.
//
// A bucket refills at R cost units a second up to a capacity B. Local
// admissions debit it at once, what other nodes report debits it on arrival,
// and in between their spending is predicted; the level may go negative, so an
// overshoot is repaid, not repeated. Nodes publish cumulative totals, so a lost
// report heals with the next and a doubled or late one changes nothing.
//
// The declared error. Over any time t all nodes together admit at most B + R·t,
// and beyond it what they cannot know of each other yet: what each has spent and
// not told (its part of εB, or one unit), what all admit in the 2 ms between two
// publications and the time a message takes, and what is predicted wrongly between
// two reports, at most R times their distance. All of that is debt and repaid, so
// it does not add up. Agreeing on one level may add 1 % of R·t. A message lost adds
// until the next. A bucket first heard of late, and each end of a partition, may add
// B once; so may each side of a partition, and under `open` each spends R.
//
// The package must not know routes, policies, HTTP or NATS: a key is 16 bytes,
// a limit is a Rate, and the bus is two functions in Config.
package limit

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// Key names one bucket across the cluster.
type Key [16]byte

// keyStack is how many bytes of parts KeyOf hashes without allocating.
const keyStack = 512

// KeyOf hashes parts, in order and each with its length, to a Key: the first 16
// bytes of their SHA-256, since callers choose what is in them and must not be
// able to find another's bucket. It does not allocate for parts of up to about
// 500 bytes together. Safe for concurrent use.
func KeyOf(parts ...string) Key {
	var stack [keyStack]byte
	b := stack[:0]
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	sum := sha256.Sum256(b)
	return Key(sum[:16])
}

// Rate is one limit.
type Rate struct {
	PerSecond   float64 // refill R, cost units per second; not negative
	Burst       float64 // capacity B, cost units; a cost above it is never granted
	OnPartition configv1.OnPartition
	// ID tells limits apart. Keys that the table has no room for share one
	// bucket per ID.
	ID uint64
}

// Decision is the answer to one request to spend, and the data of the RateLimit
// and Retry-After headers (draft-ietf-httpapi-ratelimit-headers).
type Decision struct {
	Granted   bool
	Remaining float64 // cost units that may be spent at once, at least 0
	// RetryAfter is when the same cost might be granted, 0 when it was; Forever
	// when it never can be.
	RetryAfter time.Duration
	// Reset is when the bucket is full again if nobody spends.
	Reset time.Duration
}

// Forever is the longest wait a Decision names.
const Forever = 366 * 24 * time.Hour

// Item is one of several limits that one request spends from.
type Item struct {
	Key  Key
	Rate Rate
	Cost int64 // cost units; 0 and less is granted and changes nothing
}

// The constants of the exchange.
const (
	tick      = 20 * time.Millisecond  // T: how long an unsent total waits at most, when it matters
	minGap    = 2 * time.Millisecond   // between two publications
	announce  = 250 * time.Millisecond // live keys are told again, and so is that this node lives
	lazy      = 100 * time.Millisecond // how long a total waits that no decision depends on
	silence   = time.Second            // after which a peer counts as lost
	stale     = 600 * time.Millisecond // how long a key's demand is believed while its peer talks of other keys
	young     = 100 * time.Millisecond // a count this young is taken to have been missed in no part
	memory    = 300 * time.Millisecond // time constant of the demand estimate
	epsilon   = 0.05                   // ε: the share of a bucket that may be unsent, over all nodes
	drift     = 0.01                   // part of R that agreeing with peers may add
	debtTime  = 2 * time.Second        // debt is capped at B + debtTime·R
	announced = 10 * time.Second       // longest pause between two announcements of an idle key
	reclaim   = 30 * time.Second       // after which a key known only by report is forgotten
)
