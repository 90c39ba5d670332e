package http2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// errBodyLength is what a body is refused for.
var errBodyLength = errors.New("the request's body is shorter or longer than announced")

// sendBuffers carry bodies of requests.
var sendBuffers = sync.Pool{New: func() any { return new([maxFrame]byte) }}

// clientSender sends a body that is not there yet, or that the windows do not let
// pass at once, while the answer is awaited: an upstream may answer before it has
// read all. It is guarded by ClientConn.mu.
type clientSender struct {
	rest    []byte // what is to be sent before anything is read
	streams bool   // the request's body is to be read
	begun   bool   // it has been
	over    bool   // nobody wants more of it
	running bool
}

// startLocked starts the sender of the rest of a body that is there, or of one
// that streams.
func (s *ClientStream) startLocked(rest []byte, streams bool) {
	s.sender = clientSender{rest: bytes.Clone(rest), streams: streams, running: true}
	go s.sendBody()
}

// stopLocked ends the sender, and waits for that. A read that waits for the client
// is woken; a body of which nothing was read stays as it is, for another connection.
func (s *ClientStream) stopLocked() {
	t := &s.sender
	if !t.running {
		return
	}
	t.over = true
	s.change.Broadcast()
	s.c.room.Broadcast()
	if t.begun {
		body := s.call.Request.Body.Reader
		s.c.mu.Unlock()
		_ = body.Close()
		s.c.mu.Lock()
	}
	for t.running {
		s.change.Wait()
	}
}

// send is the sender's goroutine.
func (s *ClientStream) send() {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	err := s.sendLocked()
	if err != nil {
		s.giveUpLocked(h2.ErrCodeCancel, fmt.Errorf("read request body: %w", err))
	}
	s.sender.running = false
	s.change.Broadcast()
}

// sendLocked sends the body. Its error is that of the body.
func (s *ClientStream) sendLocked() error {
	t := &s.sender
	if !t.streams {
		s.pushLocked(t.rest, true)
		return nil
	}
	body := &s.call.Request.Body
	left := body.Length
	buffer := sendBuffers.Get().(*[maxFrame]byte)
	defer sendBuffers.Put(buffer)
	for {
		if t.over || !s.live {
			return nil
		}
		t.begun = true
		s.c.mu.Unlock()
		n, err := body.Reader.Read(buffer[:])
		var trailer exchange.Header
		if err == io.EOF && body.Trailer != nil {
			// It is theirs who have locks of their own.
			trailer = body.Trailer()
		}
		s.c.mu.Lock()
		if t.over || !s.live {
			return nil
		}
		if err != nil && err != io.EOF {
			return err
		}
		ended := err == io.EOF
		if left >= 0 {
			if left -= int64(n); left < 0 || ended && left > 0 {
				return errBodyLength
			}
			// Where a trailer may follow, the end is to be read too.
			ended = ended || left == 0 && body.Trailer == nil
		}
		if trailer.Len() > 0 {
			if s.tail, err = appendRequestTrailer(s.tail, &trailer); err != nil {
				return err
			}
		}
		if s.pushLocked(buffer[:n], ended); ended {
			return nil
		}
	}
}

// pushLocked queues data as the windows and the queue let, and the end of the
// request behind the last. It returns when all is queued, or nobody wants it.
func (s *ClientStream) pushLocked(data []byte, last bool) {
	c := s.c
	ends := last && len(s.tail) == 0
	for s.live && !s.sender.over {
		if len(data) == 0 && last && ends {
			// Nothing is left that could carry the end.
			c.out = appendFrameHeader(c.out, 0, h2.FrameData, h2.FlagDataEndStream, s.id)
		} else {
			data = s.dataLocked(data, ends)
		}
		if len(data) == 0 {
			if last {
				s.endLocked()
			}
			c.kickLocked()
			return
		}
		c.kickLocked()
		if len(c.out) > outLimit {
			c.room.Wait()
		} else {
			s.change.Wait()
		}
	}
}
