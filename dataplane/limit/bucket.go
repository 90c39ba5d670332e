package limit

import (
	"math"
	"time"
)

// bucket is the arithmetic of one key at one node: no lock, no clock, no I/O.
// Times are durations on the node's monotonic clock and are arguments; one that
// lies before the last is taken as the last.
//
// The level is the node's estimate of the whole cluster's bucket. While other
// nodes ask for the same key, the ones below the mark `high` pace themselves:
// everybody admits the same part f of what it is asked, f = (R + (level-aim)/τ) / D
// with D the demand on all nodes. So the sum is R whatever the shares are, all
// nodes steer one level to one aim, and each can predict the others between two
// reports as demand x ∫f dt. A single node never paces: it is an exact bucket.
type bucket struct {
	rate, burst float64 // R and B; both 0 until a local request brought them
	aim, tau    float64 // where pacing steers the level, and how fast (seconds)

	at        time.Duration // when the fields below held
	level     float64
	demand    float64 // asked of this node, cost units per second
	others    float64 // asked of the other nodes, as they reported
	allowance float64 // what pacing lets this node spend
	admit     float64 // ∫f dt, seconds

	total int64 // spent by this node in this count

	dice uint64  // state of the generator of race
	race float64 // how far above its cost a request must find the level, if exact
}

// setRate brings the limit. What is missing from the bucket stays missing when a
// limit changes.
func (b *bucket) setRate(rate, burst float64) {
	missing := b.burst - b.level
	b.rate, b.burst = rate, burst
	b.tau = 0.1
	if rate*b.tau < 4 {
		b.tau = math.Min(4/math.Max(rate, 1e-9), 10)
	}
	b.aim = math.Min(burst/10, rate*b.tau/10)
	b.level = burst - missing
	b.clamp()
}

// exact reports whether the limit is so slow that each admission is told before
// the next is due. Then silence means that nobody spent: a prediction would take
// whole tokens for fractions, and keep everybody from spending them.
func (b *bucket) exact() bool { return b.rate < 150 }

// draw starts the race of the nodes for the next unit of an exact bucket. All of
// them see it come at the same time; each waits until the level has passed it by a
// random part of a unit. So one of them is first, mostly alone, whatever small
// differences their levels have, and the others hear of it before their turn.
func (b *bucket) draw() {
	if !b.exact() || b.others <= 0 {
		b.race = 0
		return
	}
	// SplitMix64.
	b.dice += 0x9e3779b97f4a7c15
	z := b.dice
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	u := (float64((z^z>>31)>>11) + 0.5) / (1 << 53)
	b.race = math.Min(1, -0.5*math.Log(u))
}

// high is the level above which nobody paces.
func (b *bucket) high() float64 { return 2 * b.aim }

// floor is the deepest debt: time heals a larger one, lest one bad report close
// a key for long.
func (b *bucket) floor() float64 { return -(b.burst + debtTime.Seconds()*b.rate) }

func (b *bucket) clamp() { b.level = math.Max(b.floor(), math.Min(b.burst, b.level)) }

// pace is the part of what is asked that keeps the level at its aim, refilled at
// r. It may exceed 1.
func (b *bucket) pace(r float64) float64 {
	d := b.demand + b.others
	switch {
	case d <= 0:
		return 1
	case b.level < math.Min(1, b.burst):
		return 0
	}
	g := r + (b.level-b.aim)/b.tau
	if over := b.level - b.high(); over > 0 {
		// Nobody paces up there. The slope stands in for "at once", which the
		// integration below could not follow.
		g += over / tick.Seconds()
	}
	return math.Max(0, g/d)
}

// advance moves the bucket to now, refilled at share x R.
func (b *bucket) advance(now time.Duration, share float64) {
	if now <= b.at {
		return
	}
	dt := (now - b.at).Seconds()
	b.at = now
	r := b.rate * share
	if b.exact() {
		b.level = math.Min(b.burst, b.level+r*dt)
		b.allowance = 1
	} else if b.others <= 0 {
		b.level = math.Min(b.burst, b.level+r*dt)
		b.admit += dt * math.Min(1, b.pace(r))
		b.allowance = 1
	} else {
		b.integrate(dt, r)
	}
	if b.demand > 0 {
		b.demand *= math.Exp(-dt / memory.Seconds())
		if b.demand < 1e-6 {
			b.demand = 0
		}
	}
}

// integrate steps the predicted level through dt. Steps are short against the
// time constants of pace; the last one takes what an absent caller left over.
func (b *bucket) integrate(dt, r float64) {
	for range 64 {
		h := b.tau / 4
		if b.level > b.high() {
			h = tick.Seconds() / 2
		}
		if low := math.Min(1, b.burst); b.level < low && r > 0 {
			h = math.Max(1e-3, (low-b.level)/r)
		}
		h = math.Min(h, dt)
		b.step(h, r)
		if dt -= h; dt <= 0 {
			return
		}
	}
	b.step(dt, r)
}

func (b *bucket) step(h, r float64) {
	g := b.pace(r)
	f := math.Min(1, g)
	b.level += (r - b.others*f) * h
	b.clamp()
	b.admit += f * h
	own := b.demand * g
	b.allowance = math.Min(b.allowance+own*h, math.Max(1, own*tick.Seconds()))
}

// grants reports whether cost may be spent now.
func (b *bucket) grants(cost float64) bool {
	if b.level < cost-1e-9 {
		return false
	}
	if b.exact() && b.others > 0 {
		return b.level >= math.Min(b.burst, cost+b.race)
	}
	return b.others <= 0 || b.level >= b.high() || b.allowance > 0
}

func (b *bucket) ask(cost float64) { b.demand += cost / memory.Seconds() }

func (b *bucket) spend(cost int64) {
	b.level -= float64(cost)
	// What is spent while nobody paces must not be paid for by pacing later.
	b.allowance = math.Max(b.allowance-float64(cost), -float64(cost))
	b.total += cost
}

func (b *bucket) refund(cost int64) {
	b.level += float64(cost)
	b.allowance += float64(cost)
	b.total -= cost
}

// decide describes the bucket after a request of cost, refilled at share x R.
func (b *bucket) decide(granted bool, cost, share float64) Decision {
	r := b.rate * share
	d := Decision{Granted: granted, Remaining: math.Max(0, b.level), Reset: wait(b.burst-b.level, r)}
	if granted {
		return d
	}
	if cost > b.burst {
		d.RetryAfter = Forever
		return d
	}
	d.RetryAfter = wait(cost-b.level, r)
	if b.level >= cost && b.allowance <= 0 {
		d.RetryAfter = wait(-b.allowance, b.demand*b.pace(r))
	}
	// Even when it is only this instant that refuses, "at once" would be a lie.
	d.RetryAfter = max(d.RetryAfter, time.Millisecond)
	return d
}

// wait is how long units take at rate per second.
func wait(units, rate float64) time.Duration {
	if units <= 0 {
		return 0
	}
	s := units / rate
	if !(s < Forever.Seconds()) {
		return Forever
	}
	return time.Duration(s * float64(time.Second))
}

// full reports whether the bucket is as one that was never used, so that
// forgetting it gives nothing away.
func (b *bucket) full() bool { return b.level >= b.burst }
