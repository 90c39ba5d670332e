package http1

import "time"

// watchEvery is how often the server looks for clients that have gone, and how
// long an exchange lasts before it is looked at.
const watchEvery = time.Second

// look interrupts the exchanges whose client has reset its connection: nobody
// reads from it while the upstream is at work. A client that has only shut down
// its writing side still waits for the answer. One look a second costs requests
// nothing.
func (s *Server) look() {
	late := time.Now().Add(-watchEvery).UnixNano()
	for _, c := range s.list() {
		if since := c.since.Load(); since != 0 && since <= late && c.raw != nil && hungUp(c.raw) {
			c.interrupt(errGone)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched = len(s.conns) > 0; s.watched {
		s.watch.Reset(watchEvery)
	}
}
