package limit

import (
	"math"
	"slices"
	"time"
)

// report is one Total as it arrived, validated.
type report struct {
	total   int64
	demand  float64
	missing float64
	since   time.Duration // sender's clock: when it began the count
	sent    time.Duration // sender's clock: when it sent this
}

// remote is what one peer last reported of one key.
type remote struct {
	peer  int32  // slot in the membership
	life  uint32 // of the peer, when this was reported
	epoch uint32 // of the peer's visibility, likewise
	report
	at    time.Duration // own clock: when it arrived
	admit float64       // bucket.admit at that time
}

// entry is one key at this node: its bucket, what peers reported of it, and
// what they know of ours. Guarded by its shard's lock.
type entry struct {
	key Key
	bucket
	remotes []remote // by peer

	born    time.Duration // when this count began
	used    time.Duration // last local request
	checked time.Duration // when others was last summed from remotes
	members *membership   // for which others holds

	// What peers know.
	sent       int64
	sentDemand float64
	sentAdmit  float64 // bucket.admit when sent
	sentAt     time.Duration
	told       uint32 // the audience that has heard of it

	next   int32 // in its shard's list of dirty or free entries; -1 ends it
	later  int32 // in its shard's list of urgent entries; -1 ends it
	live   bool  // holds a key
	dirty  bool  // is in the list of dirty ones
	urgent bool  // is in the list of urgent ones
	local  bool  // has a rate: some local request used it
	open   bool  // spends the full rate in a partition
}

// refresh makes others hold for members and advances the bucket to now. Every
// use of an entry starts here.
func (e *entry) refresh(m *membership, now time.Duration) {
	if len(e.remotes) > 0 && (e.members != m || now-e.checked >= announce) {
		e.recount(m, now)
	}
	e.members = m
	if e.local {
		e.advance(now, m.share(e))
	} else if now > e.at {
		e.at = now
	}
}

// recount drops what lost peers asked for and what visible ones ceased to.
func (e *entry) recount(m *membership, now time.Duration) {
	if e.local {
		e.advance(now, m.share(e)) // under the sum that held until now
	}
	e.checked = now
	e.others = 0
	kept := e.remotes[:0]
	for _, r := range e.remotes {
		p := &m.peers[r.peer]
		if p.life != r.life {
			continue // restarted or forgotten: what it spent stays debited
		}
		switch {
		case !p.visible:
			// Presumed to have spent as predicted until it was lost.
			r.demand, r.admit = 0, e.admit
		case r.demand > 0 && time.Duration(p.heard.Load())-r.at > stale:
			// It talks, but not of this key: it spent nothing.
			e.level += r.demand * (e.admit - r.admit)
			e.clamp()
			r.demand, r.admit = 0, e.admit
		}
		e.others += r.demand
		kept = append(kept, r)
	}
	e.remotes = kept
}

// hear takes one report of a peer. It may arrive late, twice or never: totals
// only grow, and the newest wins.
func (e *entry) hear(m *membership, peer int32, rep report, now time.Duration) {
	e.refresh(m, now)
	p := &m.peers[peer]
	i, found := e.place(peer)
	if !found {
		e.remotes = slices.Insert(e.remotes, i, remote{peer: peer, life: p.life, epoch: p.epoch, at: now, admit: e.admit, report: rep})
		e.others += rep.demand
		if e.local {
			e.adopt(rep, now)
		}
		return
	}
	r := &e.remotes[i]
	if rep.since < r.since || rep.since == r.since && (rep.total < r.total || rep.sent <= r.sent) {
		return
	}
	switch {
	case !e.local:
	case rep.since > r.since || p.epoch != r.epoch:
		e.adopt(rep, now)
	default:
		predicted := r.demand * (e.admit - r.admit)
		e.level -= float64(rep.total-r.total) - predicted
		e.clamp()
		e.agree(m, r, rep, now)
		if rep.total > r.total {
			e.draw()
		}
	}
	e.others = math.Max(0, e.others+rep.demand-r.demand)
	*r = remote{peer: peer, life: p.life, epoch: p.epoch, at: now, admit: e.admit, report: rep}
}

// place is where a peer's report stands among the remotes, or would.
func (e *entry) place(peer int32) (int, bool) {
	return slices.BinarySearchFunc(e.remotes, peer, func(r remote, p int32) int { return int(r.peer - p) })
}

// adopt takes a count that this bucket has not followed from its start. A young
// one is debited whole, and so is one that began while this bucket was in use
// already, a moment ago: its first reports were lost. Of an old one nobody knows
// how much is long refilled, so the sender's level is taken if it is the lower,
// less what we spent that the sender cannot know.
func (e *entry) adopt(rep report, now time.Duration) {
	age := rep.sent - rep.since
	if age <= young || age <= silence && now-e.born >= age {
		e.level -= float64(rep.total)
	} else {
		e.level = math.Min(e.level, e.burst-rep.missing-float64(e.total-e.sent))
	}
	e.clamp()
}

// agree draws the level a little toward a peer's. Estimates differ after
// clamping and lost time, and a node that stands lower than the rest would
// otherwise keep too small a share for as long as the load lasts. It never gives
// more than a hundredth of R, whatever peers believe.
func (e *entry) agree(m *membership, r *remote, rep report, now time.Duration) {
	gain := 8
	if e.exact() {
		// There, two that just spent differ by what is on its way.
		if rep.total != r.total || e.total != e.sent || now-e.sentAt < tick {
			return
		}
		gain = 2
	}
	theirs := e.burst - rep.missing - e.unsent()
	most := drift * e.rate * (now - r.at).Seconds() / float64(m.starts)
	e.level += math.Min((theirs-e.level)/float64(gain*m.starts), most)
	e.clamp()
}

// found begins local use of an entry known only by report, or of a new one: the
// level is what the reports leave of a full bucket.
func (e *entry) found(rate Rate, now time.Duration) {
	e.at = max(e.at, now)
	var old, fresh, all float64
	for i := range e.remotes {
		r := &e.remotes[i]
		r.admit = e.admit
		all += float64(r.total)
		if r.sent-r.since <= young {
			fresh += float64(r.total)
			continue
		}
		age := (now - r.at).Seconds()
		refilled := age * math.Max(0, rate.PerSecond-e.others)
		old = math.Max(old, r.missing-refilled)
	}
	e.local, e.born, e.allowance = true, now, 1
	e.burst, e.level = 0, -math.Min(all, old+fresh)
	e.setRate(rate.PerSecond, rate.Burst)
}

// unsent is how much more this node spent than its peers predict.
func (e *entry) unsent() float64 {
	return float64(e.total-e.sent) - e.sentDemand*(e.admit-e.sentAdmit)
}

// publish reports whether peers must hear of the entry in this tick.
func (e *entry) publish(m *membership, now time.Duration) bool {
	if !e.local {
		return false
	}
	changed := e.total != e.sent || math.Abs(e.demand-e.sentDemand) > 0.1*math.Max(e.demand, e.sentDemand)
	switch {
	case e.total == 0 || !changed:
		return false
	case e.others > 0 && e.level < e.burst/2 || e.level < e.burst/4:
		return true
	default:
		return now-e.sentAt >= lazy || math.Abs(e.unsent()) >= m.theta(e)
	}
}

// announces reports whether the sweep must tell peers of the entry again: every
// 250 ms while in use, ever more seldom while it only refills.
func (e *entry) announces(m *membership, now time.Duration) bool {
	if !e.local || e.total == 0 {
		return false
	}
	if e.told != m.audience {
		return true
	}
	pause := min(max(announce, (now-e.used)/4), announced)
	return now-e.sentAt >= pause && !(e.full() && now-e.used > silence && e.sent == e.total)
}

// idle reports whether the entry may be forgotten: nothing missing, nothing
// unsaid, nobody asking.
func (e *entry) idle(now time.Duration) bool {
	if !e.local {
		for i := range e.remotes {
			if now-e.remotes[i].at < reclaim {
				return false
			}
		}
		return true
	}
	return e.full() && e.total == e.sent && e.others == 0 && now-e.used >= silence
}
