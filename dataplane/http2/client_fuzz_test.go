package http2

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// speaker is an upstream that says what it says once it has been asked.
type speaker struct {
	said  *bytes.Reader
	asked chan struct{}
	wrote int
	once  sync.Once
	over  chan struct{}
	shut  sync.Once
}

// greeting is what comes before the first request.
const greeting = len(Preface) + 3*frameHeader + 3*6 + 4 - frameHeader

func (s *speaker) Read(p []byte) (int, error) {
	select {
	case <-s.asked:
	case <-s.over:
	}
	return s.said.Read(p)
}

func (s *speaker) Write(p []byte) (int, error) {
	if s.wrote += len(p); s.wrote > greeting {
		s.once.Do(func() { close(s.asked) })
	}
	return len(p), nil
}

func (s *speaker) Close() error {
	s.shut.Do(func() { close(s.over) })
	return nil
}
func (s *speaker) LocalAddr() net.Addr              { return nil }
func (s *speaker) RemoteAddr() net.Addr             { return nil }
func (s *speaker) SetDeadline(time.Time) error      { return nil }
func (s *speaker) SetWriteDeadline(time.Time) error { return nil }
func (s *speaker) SetReadDeadline(at time.Time) error {
	if !at.IsZero() && at.Before(time.Now()) {
		return s.Close()
	}
	return nil
}

// Whatever an upstream says: requests end, the connection does, and what is kept of
// an answer is within its window.
func FuzzClientReads(f *testing.F) {
	seed := func(say func(r *raw, id uint32)) {
		near, far := net.Pipe()
		var heard bytes.Buffer
		var all sync.WaitGroup
		all.Go(func() { _, _ = io.Copy(&heard, near) })
		r := rawOver(f, far)
		_ = r.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 10})
		say(r, 1)
		far.Close()
		all.Wait()
		if heard.Len() < 64<<10 {
			f.Add(heard.Bytes())
		}
	}
	for _, corpus := range []map[string]said{heads, bodiesOfAnswers, framesOfUpstreams} {
		for _, one := range corpus {
			seed(one.say)
		}
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		s := &speaker{said: bytes.NewReader(said), asked: make(chan struct{}), over: make(chan struct{})}
		over := make(chan struct{})
		c := NewClientConn(s, ClientConfig{Scheme: "http", Ended: func(*ClientConn) { close(over) }})
		var all sync.WaitGroup
		for i := range 3 {
			stream := c.Stream()
			if stream == nil {
				break
			}
			all.Go(func() { fuzzed(t, stream, i) })
		}
		all.Wait()
		c.Retire()
		select {
		case <-over:
		case <-time.After(patience):
			t.Fatal("the connection does not end")
		}
		if n := c.Busy(); n != 0 {
			t.Errorf("%d requests are left", n)
		}
	})
}

func fuzzed(t *testing.T, s *ClientStream, i int) {
	call := asking(wanted([]string{"GET", "HEAD", "POST"}[i], "/"))
	call.Idle = patience
	if i == 2 {
		call.Request.Body = exchange.Body{Reader: io.NopCloser(bytes.NewReader(make([]byte, 100))), Length: -1}
	}
	resp, done, err := s.Do(call)
	if err != nil {
		if err == http1.ErrTimeout {
			t.Error("no end in time")
		}
		return
	}
	defer done(nil)
	if resp.Status < 200 || resp.Status > 599 {
		t.Errorf("status %d", resp.Status)
	}
	if resp.Body.Reader == nil {
		return
	}
	if n := s.Buffered(); n > clientStreamWindow {
		t.Errorf("%d bytes are kept", n)
	}
	n, err := io.Copy(io.Discard, resp.Body.Reader)
	if length := resp.Body.Length; err == nil && length >= 0 && n != length && i != 1 {
		t.Errorf("%d bytes of %d", n, length)
	}
}
