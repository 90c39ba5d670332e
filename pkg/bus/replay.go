package bus

import (
	"slices"
	"strings"
	"time"
)

const (
	// windowSize is how many sequence numbers a message may arrive late.
	windowSize = 4096
	// quiet is how long the newest start of a sender must have been silent before
	// an older one is first heard: a member whose wall clock was set back between two
	// starts is locked out no longer than this. One that was heard before goes on: it
	// may be handing over, and its window knows what it has said.
	quiet = 5 * time.Second
	// How much is remembered. What is forgotten could be repeated once.
	maxBoots   = 4
	maxSenders = 8192
)

// replays remembers what has been received on one subject. Only authenticated
// messages may reach it. It belongs to one goroutine; time is an argument.
type replays struct {
	senders map[string][]*window
}

// window is a sliding window over the sequence numbers of one start of a sender
// (as in RFC 4303, section 3.4.3).
type window struct {
	boot    uint64
	highest uint64
	seen    [windowSize / 64]uint64
	last    time.Time
}

// fresh says whether the message is new, and notes it.
func (r *replays) fresh(sender string, boot, sequence uint64, now time.Time) bool {
	windows := r.senders[sender]
	var w *window
	superseded := false
	for _, o := range windows {
		if o.boot == boot {
			w = o
		} else if o.boot > boot && now.Sub(o.last) < quiet {
			superseded = true
		}
	}
	if w == nil {
		if superseded {
			return false
		}
		if windows == nil {
			r.makeRoom()
		}
		w = &window{boot: boot}
		windows = append(windows, w)
		if len(windows) > maxBoots {
			windows = slices.DeleteFunc(windows, oldest(windows))
		}
		// The window may keep parts of the message alive: a small string only.
		r.senders[strings.Clone(sender)] = windows
	}
	if !w.add(sequence) {
		return false
	}
	w.last = now
	return true
}

// oldest picks the window that has been silent longest, never the newest one.
func oldest(windows []*window) func(*window) bool {
	drop := slices.MinFunc(windows[:len(windows)-1], func(a, b *window) int { return a.last.Compare(b.last) })
	return func(w *window) bool { return w == drop }
}

// makeRoom forgets the sender that has been silent longest when there are too
// many.
func (r *replays) makeRoom() {
	if r.senders == nil {
		r.senders = map[string][]*window{}
	}
	if len(r.senders) < maxSenders {
		return
	}
	var name string
	var at time.Time
	for n, windows := range r.senders {
		last := slices.MaxFunc(windows, func(a, b *window) int { return a.last.Compare(b.last) }).last
		if name == "" || last.Before(at) {
			name, at = n, last
		}
	}
	delete(r.senders, name)
}

// add notes a sequence number and says whether it is new.
func (w *window) add(n uint64) bool {
	switch {
	case n == 0:
		return false
	case n > w.highest:
		if n-w.highest >= windowSize {
			clear(w.seen[:])
		} else {
			for i := w.highest + 1; i < n; i++ {
				w.seen[i/64%uint64(len(w.seen))] &^= 1 << (i % 64)
			}
		}
		w.highest = n
	case w.highest-n >= windowSize:
		return false
	case w.seen[n/64%uint64(len(w.seen))]&(1<<(n%64)) != 0:
		return false
	}
	w.seen[n/64%uint64(len(w.seen))] |= 1 << (n % 64)
	return true
}
