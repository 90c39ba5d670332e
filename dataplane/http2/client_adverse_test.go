package http2

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// slowly is a socket's end whose reader takes its time for each piece, and so never
// stands still for long.
type slowly struct{ net.Conn }

func (s slowly) Read(p []byte) (int, error) {
	time.Sleep(50 * time.Millisecond)
	return s.Conn.Read(p[:min(len(p), maxFrame)])
}

// A request that writes for all while others upload ends alone, not with what all
// share, when its time is over or its client leaves.
func TestClientEndsAloneWhileItWritesForOthers(t *testing.T) {
	for name, one := range map[string]struct {
		leave         bool
		piece, pieces int           // of the upload
		pause         time.Duration // between pieces
	}{
		"its time is over, others send much":    {piece: maxFrame, pieces: 100},
		"its client leaves, others send much":   {leave: true, piece: maxFrame, pieces: 100},
		"its time is over, others send little":  {piece: 1 << 10, pieces: 200, pause: 10 * time.Millisecond},
		"its client leaves, others send little": {leave: true, piece: 1 << 10, pieces: 200, pause: 10 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := net.Pipe()
				var served sync.WaitGroup
				served.Go(func() {
					defer far.Close()
					r := rawOver(t, slowly{far})
					r.welcome(h2.Setting{ID: h2.SettingInitialWindowSize, Val: maxWindow})
					_ = r.WriteSettingsAck()
					_ = r.WriteWindowUpdate(0, maxWindow-initialWindow)
					r.await(3, func(o *outcome) bool { return o.ended })
					r.says(3, true, ":status", "204")
					r.rest()
				})
				c := greet(t, near, ClientConfig{Scheme: "http"})
				time.Sleep(5 * time.Second)
				first := asking(wanted("GET", "/waits"))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				first.Context = ctx
				if first.Deadline = first.Now.Add(3 * time.Second); one.leave {
					first.Deadline = first.Now.Add(time.Hour)
					time.AfterFunc(3*time.Second, cancel)
				}
				begun := time.Now()
				failed := make(chan error, 1)
				go func() {
					_, _, err := c.ask(t, first)
					failed <- err
				}()
				synctest.Wait()
				if s := c.streamOf(1); s == nil || !s.writing {
					t.Fatal("the first request does not write")
				}
				second := asking(wanted("POST", "/uploads"))
				second.Deadline = second.Now.Add(time.Hour)
				second.Request.Body = exchange.Body{Reader: &paced{one.piece, one.pieces, one.pause}, Length: int64(one.pieces * one.piece)}
				status, _, err := c.ask(t, second)
				if status != 204 || err != nil {
					t.Errorf("the upload ended with it: %d, %v", status, err)
				}
				if took := time.Since(begun); took < 5*time.Second {
					t.Errorf("the upload took only %v", took)
				}
				want := error(http1.ErrTimeout)
				if one.leave {
					want = context.Canceled
				}
				if err := <-failed; !errors.Is(err, want) {
					t.Error(err)
				}
				c.Cut(errTestEnds)
				<-c.over
				served.Wait()
			})
		})
	}
}

// paced is a body of pieces with pauses between them.
type paced struct {
	piece, left int
	pause       time.Duration
}

func (p *paced) Read(into []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	p.left--
	time.Sleep(p.pause)
	return p.piece, nil
}

func (*paced) Close() error { return nil }

func (c *ClientConn) streamOf(id uint32) *ClientStream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

// noted is a body that notes what is done to it.
type noted struct {
	io.Reader
	closed bool
}

func (n *noted) Close() error {
	n.closed = true
	return nil
}

// A body of which nothing was read when its request was refused can be sent once
// more: it is not closed.
func TestClientLeavesABodyThatItHasNotRead(t *testing.T) {
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		_ = r.WriteRSTStream(r.requested(), h2.ErrCodeRefusedStream)
		r.rest()
	}))
	s := c.Stream()
	s.sendBody = func() {
		// Its goroutine is late.
		c.mu.Lock()
		for !s.sender.over {
			s.change.Wait()
		}
		c.mu.Unlock()
		s.send()
	}
	body := &noted{Reader: strings.NewReader("body")}
	call := asking(wanted("POST", "/"))
	call.Request.Body = exchange.Body{Reader: body, Length: 4}
	if _, _, err := s.Do(call); !errors.Is(err, http1.ErrUnsent) || errors.Is(err, ErrBegun) {
		t.Fatal(err)
	}
	if body.closed {
		t.Error("it is closed, and would be sent once more")
	}
}

// Streams have 31 bits. Requests that hold a place when they are used up go
// elsewhere.
func TestClientRunsOutOfStreams(t *testing.T) {
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		for id := r.requested(); id != 0; id = r.requested() {
			r.says(id, true, ":status", "204")
		}
	}))
	c.mu.Lock()
	c.next = maxWindow - 2
	c.mu.Unlock()
	var held [4]*ClientStream
	for i := range held {
		held[i] = c.Stream()
	}
	for i, s := range held {
		_, done, err := s.Do(asking(wanted("GET", "/")))
		if err == nil {
			done(nil)
		}
		if i < 2 && err != nil || i >= 2 && !errors.Is(err, http1.ErrUnsent) {
			t.Errorf("request %d: %v", i, err)
		}
	}
	c.dies(t)
}

// The trailer is asked for as the body is read: without the connection's lock, since
// whoever knows it has locks of his own.
func TestClientAsksForTheTrailerWithoutItsLock(t *testing.T) {
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		id := r.requested()
		r.await(id, func(o *outcome) bool { return o.ended })
		r.says(id, true, ":status", "204")
		r.rest()
	}))
	call := asking(wanted("POST", "/"))
	call.Request.Body = exchange.Body{Reader: io.NopCloser(strings.NewReader("x")), Length: -1, Trailer: func() exchange.Header {
		if !c.mu.TryLock() {
			t.Error("it is asked for under the lock")
		} else {
			c.mu.Unlock()
		}
		return exchange.HeaderOf(exchange.Field{Name: "a", Value: "b"})
	}}
	if status, _, err := c.ask(t, call); status != 204 || err != nil {
		t.Error(status, err)
	}
}

// One large head is not kept for good.
func TestClientKeepsNoRoomForLargeHeads(t *testing.T) {
	many := []string{":status", "200"}
	for range 5000 {
		many = append(many, "a", "")
	}
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		id := r.requested()
		r.block.Reset()
		block := r.encode(many...)
		_ = r.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true})
		_ = r.WriteHeaders(h2.HeadersFrameParam{StreamID: id, BlockFragment: r.encode(many[2:]...), EndHeaders: true, EndStream: true})
		r.rest()
	}))
	s := c.Stream()
	resp, done, err := s.Do(asking(wanted("GET", "/")))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(resp.Body.Reader)
	if trailer := resp.Body.Trailer(); resp.Header.Len() != 5000 || trailer.Len() != 5000 {
		t.Error(resp.Header.Len(), trailer.Len())
	}
	done(nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	if cap(s.fields) > 1000 || cap(s.behind) > 1000 {
		t.Errorf("room for %d and %d fields is kept", cap(s.fields), cap(s.behind))
	}
}
