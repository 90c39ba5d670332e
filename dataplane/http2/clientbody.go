package http2

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// errBodyClosed is what reading a closed body returns.
var errBodyClosed = errors.New("read of a closed body")

// clientChunks are pieces of answers on their way to clients.
var clientChunks = sync.Pool{New: func() any { return new(chunk) }}

// respondLocked makes the response of the head that has come.
func (s *ClientStream) respondLocked() {
	s.resp = exchange.Response{Status: s.status, Header: exchange.HeaderOf(s.fields...)}
	s.resp.Body.Length = s.length
	if s.alone {
		if s.call.Request.Method != "HEAD" {
			s.resp.Body.Length = 0
		}
		return
	}
	if s.empty && s.call.Request.Method != "HEAD" {
		s.resp.Body.Length = 0
	}
	s.resp.Body.Reader, s.resp.Body.Trailer, s.resp.Interrupt = s, s.trailers, s.interrupt
}

// Read implements io.Reader on the answer's body.
func (s *ClientStream) Read(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.closed:
		return 0, errBodyClosed
	case len(p) == 0:
		return 0, nil
	}
	s.waitLocked()
	n := 0
	for n < len(p) && s.first < len(s.chunks) {
		first := s.chunks[s.first]
		k := copy(p[n:], first.data[first.from:first.to])
		first.from += k
		n += k
		if first.from == first.to {
			clientChunks.Put(first)
			s.chunks[s.first] = nil
			s.first++
		}
	}
	s.creditLocked(int64(n))
	if s.first < len(s.chunks) {
		return n, nil
	}
	s.chunks, s.first = s.chunks[:0], 0
	if s.err == io.EOF || n > 0 && s.err == nil {
		return n, s.err
	}
	if n > 0 {
		return n, nil
	}
	return 0, fmt.Errorf("read upstream's answer: %w", s.err)
}

// waitLocked waits until there is something to return.
func (s *ClientStream) waitLocked() {
	if s.first < len(s.chunks) || s.err != nil {
		return
	}
	wait := glance
	if s.limit = (time.Time{}); s.call.Idle > 0 {
		s.limit = time.Now().Add(s.call.Idle)
		wait = min(wait, s.call.Idle)
	}
	s.timed = true
	s.timer.Reset(wait)
	for s.first == len(s.chunks) && s.err == nil {
		s.change.Wait()
	}
	s.timed = false
	s.timer.Stop()
}

// Buffered returns how many bytes Read returns without waiting.
func (s *ClientStream) Buffered() int {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	n := 0
	for _, one := range s.chunks[s.first:] {
		n += one.to - one.from
	}
	return n
}

// Close gives up what was not read, and ends a Read that waits.
func (s *ClientStream) Close() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.closed = true
	if !s.ended {
		s.resetLocked(h2.ErrCodeCancel)
	}
	s.dropLocked()
	if s.err == nil {
		s.err = errBodyClosed
	}
	s.change.Broadcast()
	return nil
}

// trailerFields are the fields behind the body, once it was read to its end.
func (s *ClientStream) trailerFields() exchange.Header {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if !s.ended {
		return exchange.Header{}
	}
	return exchange.HeaderOf(s.behind...)
}

// dropLocked forgets what was not read.
func (s *ClientStream) dropLocked() {
	for _, one := range s.chunks[s.first:] {
		clientChunks.Put(one)
	}
	clear(s.chunks)
	s.chunks, s.first = s.chunks[:0], 0
}

// acceptLocked takes the data of a DATA frame that is within the window, and tells
// whether it keeps spare.
func (s *ClientStream) acceptLocked(spare *chunk) (kept bool, err error) {
	n := spare.to - spare.from
	if n == 0 {
		return false, nil
	}
	if s.empty {
		return false, fmt.Errorf("%w: a body where there can be none", http1.ErrAnswer)
	}
	if s.declared >= 0 {
		if s.declared -= int64(n); s.declared < 0 {
			return false, fmt.Errorf("%w: more data than its content-length", http1.ErrAnswer)
		}
	}
	if last := len(s.chunks) - 1; last >= s.first && n <= len(s.chunks[last].data)-s.chunks[last].to {
		at := s.chunks[last]
		at.to += copy(at.data[at.to:], spare.data[spare.from:spare.to])
		return false, nil
	}
	if s.first > 0 && len(s.chunks) == cap(s.chunks) {
		left := copy(s.chunks, s.chunks[s.first:])
		clear(s.chunks[left:])
		s.chunks, s.first = s.chunks[:left], 0
	}
	s.chunks = append(s.chunks, spare)
	return true, nil
}

// completeLocked notes the end of the answer.
func (s *ClientStream) completeLocked() error {
	if s.declared > 0 && !s.empty {
		return fmt.Errorf("%w: less data than its content-length", http1.ErrAnswer)
	}
	s.ended = true
	if s.err == nil {
		s.err = io.EOF
	}
	if s.sent {
		s.c.forgetLocked(s, false)
	}
	return nil
}

// creditLocked lets the upstream send n bytes more on the stream: in few, large
// steps.
func (s *ClientStream) creditLocked(n int64) {
	if s.owed += n; s.owed < clientStreamWindow/2 || !s.live || s.ended {
		return
	}
	s.c.out = appendWindowUpdate(s.c.out, s.id, uint32(s.owed))
	s.allowed += s.owed
	s.owed = 0
	s.c.kickLocked()
}
