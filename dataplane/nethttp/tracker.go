package nethttp

import "sync"

// tracker knows the open connections and the handlers at work, upgraded ones
// included, which net/http forgets. The zero tracker is empty.
type tracker struct {
	mu      sync.Mutex
	conns   map[*conn]struct{}
	working int
	waiting chan struct{}
}

func (t *tracker) add(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conns == nil {
		t.conns = map[*conn]struct{}{}
	}
	t.conns[c] = struct{}{}
}

func (t *tracker) remove(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
	t.settle()
}

// work counts handlers: 1 as one begins, -1 as it ends.
func (t *tracker) work(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.working += n
	t.settle()
}

func (t *tracker) settle() {
	if t.waiting != nil && len(t.conns) == 0 && t.working == 0 {
		close(t.waiting)
		t.waiting = nil
	}
}

// empty returns a channel that is closed once nothing is open.
func (t *tracker) empty() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting == nil {
		t.waiting = make(chan struct{})
	}
	waiting := t.waiting
	t.settle()
	return waiting
}

// closeSilent closes the connections that have not sent a byte.
func (t *tracker) closeSilent() {
	for _, c := range t.list() {
		if !c.touched.Load() {
			c.Close()
		}
	}
}

// closeAll closes every connection and returns how many there were.
func (t *tracker) closeAll() int {
	conns := t.list()
	for _, c := range conns {
		c.Close()
	}
	return len(conns)
}

func (t *tracker) list() []*conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	conns := make([]*conn, 0, len(t.conns))
	for c := range t.conns {
		conns = append(conns, c)
	}
	return conns
}
