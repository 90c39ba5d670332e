package http1

import "time"

// watchEvery is how often the server looks for clients that have gone, and how
// long an exchange lasts before it is looked at.
const watchEvery = time.Second

// halfClosed is how long a client that has shut down its writing side is taken for
// one that still waits for the answer. Most that do have left: to close a socket
// looks the same until something is written to it, which a stream of rare events,
// or a poll, may not be for hours.
const halfClosed = 5 * time.Second

// look interrupts the exchanges whose client has gone: nobody reads from it while
// the upstream is at work. One look a second costs requests nothing.
func (s *Server) look() {
	now := time.Now()
	late, long := now.Add(-watchEvery).UnixNano(), now.Add(-halfClosed).UnixNano()
	for _, c := range s.list() {
		since := c.since.Load()
		if since == 0 || since > late || c.raw == nil {
			continue
		}
		if gone, shut := hungUp(c.raw); gone || shut && since <= long {
			c.interrupt(errGone)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched = len(s.conns) > 0; s.watched {
		s.watch.Reset(watchEvery)
	}
}
