package config

import (
	"runtime"
	"sync/atomic"

	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

// outcome is what a change led to that passed.
type outcome struct {
	changed  map[Key]*entry
	checked  Checked
	affected Affected
}

// A control plane puts the same change on the same configuration twice or three
// times: when it is planned, when it is written, and when it comes back from the
// store. The newest that passed is remembered, by the digest of each document, so
// that the rules, which would say the same again, are asked once. A configuration
// that is let go of lets go of it too; and one that is kept, by a request that takes
// long, lets go of it once that has been changed in its turn: each would keep the
// next otherwise, and the first of them all.

// memory is what a configuration remembers.
type memory struct {
	last atomic.Pointer[outcome]
	// from is the memory of the configuration that this one was made from.
	from atomic.Pointer[memory]
}

// recall returns what the change that a has decided on led to before, or nil.
func (c Checked) recall(a *application) *outcome {
	if c.memory == nil || len(a.problems) > 0 {
		return nil
	}
	known := c.memory.last.Load()
	if known == nil || len(known.changed) != len(a.puts)+len(a.gone) {
		return nil
	}
	for i := range a.puts {
		if e := known.changed[a.puts[i].key]; e == nil || e.digest != a.puts[i].digest {
			return nil
		}
	}
	for _, old := range a.gone {
		if e, ok := known.changed[*old.self.Key]; !ok || e != nil {
			return nil
		}
	}
	return known
}

func (c Checked) remember(o *outcome) {
	if c.memory == nil {
		return
	}
	c.memory.last.Store(o)
	if from := c.memory.from.Swap(nil); from != nil {
		from.last.Store(nil)
	}
}

// Changes returns those of the resources that c does not hold just as they are, in
// their order.
func (c Checked) Changes(rs []*configv1.Resource) []*configv1.Resource {
	var (
		out  []*configv1.Resource
		hash hasher
		turn turn
	)
	for _, r := range rs {
		turn.next()
		if e, ok := c.docs.get(KeyOf(r)); ok {
			if digest, _ := hash.digest(r); digest == e.digest {
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// turn lets other goroutines have theirs: one that is not preempted keeps a
// processor for 10 ms, and a node that serves requests may have but one.
type turn int

func (t *turn) next() {
	if *t++; *t%16 == 0 {
		runtime.Gosched()
	}
}
