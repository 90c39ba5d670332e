package http2

import (
	"context"
	"sync"
	"time"
)

// streamContext ends with its stream. It is a context of its own kind because
// most exchanges never ask for a channel: then it costs one small allocation. It
// is made anew for each exchange, since others may hold it for longer.
type streamContext struct {
	mu sync.Mutex
	// Guarded by mu.
	err   error
	done  chan struct{}
	after map[*int]func()
}

// Deadline implements context.Context: there is none.
func (*streamContext) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context: there are none.
func (*streamContext) Value(any) any { return nil }

// Err implements context.Context.
func (c *streamContext) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Done implements context.Context.
func (c *streamContext) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done = make(chan struct{})
		if c.err != nil {
			close(c.done)
		}
	}
	return c.done
}

// AfterFunc calls f on a goroutine of its own once the context has ended, unless
// stop is called before. Package context uses it in place of a goroutine that
// waits.
func (c *streamContext) AfterFunc(f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		go f()
		return func() bool { return false }
	}
	key := new(int)
	if c.after == nil {
		c.after = map[*int]func(){}
	}
	c.after[key] = f
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, waiting := c.after[key]
		delete(c.after, key)
		return waiting
	}
}

// cancel ends the context. Calls after the first do nothing.
func (c *streamContext) cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = context.Canceled
	if c.done != nil {
		close(c.done)
	}
	for _, f := range c.after {
		go f()
	}
	c.after = nil
}
