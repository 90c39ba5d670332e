package http2

import (
	"errors"
	"time"

	h2 "golang.org/x/net/http2"
)

const (
	// silence is how long an upstream may say nothing while requests wait before it
	// is asked whether it lives; pingTimeout is how long it may take to say so.
	silence     = 15 * time.Second
	pingTimeout = 15 * time.Second
	// Servers of gRPC end a connection with too_many_pings (gRFC A8): grpc-go's after
	// the third, when less than five minutes lie between them and it has sent nothing.
	fewPings     = 2
	rareSilence  = 5*time.Minute + 10*time.Second
	pingsOfReset = 1
)

var errSilent = errors.New("the upstream does not answer a PING")

// Payloads of our PINGs.
var (
	beatPing  = [8]byte{'a', 'l', 'i', 'v', 'e'}
	resetPing = [8]byte{'r', 'e', 's', 'e', 't'}
)

// vigilance finds out that a connection is dead or not needed. It is guarded by
// ClientConn.mu; times count from ClientConn.start.
type vigilance struct {
	timer *time.Timer
	since time.Duration // the connection is busy, or idle, since then
	asked time.Duration // when a PING was sent; 0: it is answered, as by anything else
	pings int           // since the last HEADERS or DATA
}

// look is called from time to time: it closes what is idle for too long, and asks
// what is silent for too long.
func (c *ClientConn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending != nil || c.broken != nil {
		return
	}
	now, b := time.Since(c.start), &c.beat
	if len(c.streams)+c.reserved == 0 {
		left := c.config.Idle - (now - b.since)
		if left <= 0 {
			c.final = true
			c.stopLocked(errIdle)
			return
		}
		b.asked = 0
		b.timer.Reset(min(left, silence))
		return
	}
	limit := silence
	if b.pings >= fewPings {
		limit = rareSilence
	}
	heard := max(b.since, time.Duration(c.heard.Load()))
	silent := now - heard
	switch {
	case b.asked > heard && now-b.asked >= pingTimeout:
		c.cutLocked(errSilent)
	case silent >= limit:
		b.asked = now
		b.pings++
		c.pingLocked(beatPing)
		b.timer.Reset(pingTimeout)
	default:
		b.timer.Reset(min(limit-silent, silence, c.config.Idle))
	}
}

func (c *ClientConn) pingLocked(data [8]byte) {
	c.out = append(appendFrameHeader(c.out, 8, h2.FramePing, 0, 0), data[:]...)
	c.kickLocked()
}

// resets counts the streams that we have reset and that the upstream may not know
// of yet: they take up places, as they do there. Otherwise clients that ask and
// leave, many together, would make of the connection that all share one that
// resets rapidly, and upstreams end those (CVE-2023-44487). It is guarded by
// ClientConn.mu.
type resets struct {
	unconfirmed int
	covered     int // by the PING that is on its way; 0: none is
}

// resetLocked queues RST_STREAM for a stream that we give up.
func (c *ClientConn) resetLocked(id uint32, code h2.ErrCode) {
	c.out = appendFrameHeader(c.out, 4, h2.FrameRSTStream, 0, id)
	c.out = append(c.out, byte(code>>24), byte(code>>16), byte(code>>8), byte(code))
	r := &c.resets
	switch {
	case r.covered > 0:
		r.unconfirmed++
	case c.beat.pings < pingsOfReset:
		r.unconfirmed++
		r.covered = r.unconfirmed
		c.beat.pings++
		c.pingLocked(resetPing)
	}
	c.kickLocked()
}

// confirmedLocked notes that the upstream knows of what was reset before the PING.
func (c *ClientConn) confirmedLocked() {
	r := &c.resets
	r.unconfirmed -= r.covered
	r.covered = 0
	if r.unconfirmed > 0 && c.beat.pings < pingsOfReset {
		r.covered = r.unconfirmed
		c.beat.pings++
		c.pingLocked(resetPing)
	} else {
		r.unconfirmed = 0
	}
	c.config.Changed()
}
