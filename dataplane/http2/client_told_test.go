package http2

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2/hpack"
)

// An upstream that says no limit takes more than one that has said nothing yet: who
// waits is told.
func TestClientSaysThatAnUpstreamTakesMore(t *testing.T) {
	greeting, changed := make(chan struct{}), make(chan struct{}, 1)
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		<-greeting
		r.welcome()
		r.rest()
	}), ClientConfig{Scheme: "http", Changed: func() {
		select {
		case changed <- struct{}{}:
		default:
		}
	}})
	var held []*ClientStream
	for s := c.Stream(); s != nil; s = c.Stream() {
		held = append(held, s)
	}
	close(greeting)
	select {
	case <-changed:
	case <-time.After(patience):
		t.Fatal("nobody is told")
	}
	for s := c.Stream(); s != nil; s = c.Stream() {
		held = append(held, s)
	}
	if len(held) != mostStreams {
		t.Errorf("%d streams", len(held))
	}
	for _, s := range held {
		s.Release()
	}
}

// Whoever closes a body ends a read of it that waits.
func TestClientEndsAReadOfABodyThatIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, over := pipes(t, ClientConfig{Scheme: "http"}, func(r *raw) {
			r.welcome()
			r.says(r.requested(), false, ":status", "200")
			r.rest()
		})
		resp, done := c.open(t, asking(wanted("GET", "/")))
		read := make(chan error, 1)
		go func() {
			_, err := resp.Body.Reader.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait()
		_ = resp.Body.Reader.Close()
		if err := <-read; !errors.Is(err, errBodyClosed) {
			t.Error(err)
		}
		done(nil)
		c.Cut(errTestEnds)
		<-c.over
		over.Wait()
	})
}

// A trailer of an answer brings what trailers may bring, as with HTTP/1: what a
// client would take for a field of the head stays behind.
func TestClientKeepsToTheRuleForTrailers(t *testing.T) {
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		id := r.requested()
		r.says(id, false, ":status", "200")
		r.says(id, true, "set-cookie", "a=b", "content-type", "text/html", "grpc-status", "0", "x-any", "1")
		r.rest()
	}))
	resp, done := c.open(t, asking(wanted("GET", "/")))
	defer done(nil)
	_, _ = io.ReadAll(resp.Body.Reader)
	trailer := resp.Body.Trailer()
	if trailer.Len() != 2 || trailer.Get("grpc-status") != "0" || trailer.Get("x-any") != "1" {
		t.Errorf("%+v", trailer.Fields())
	}
}

// What an answer makes go wrong in our own code ends its connection, and nothing else.
func TestClientSurvivesAPanicOfItsReader(t *testing.T) {
	answer := make(chan struct{})
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		id := r.requested()
		<-answer
		r.says(id, true, ":status", "200")
		r.rest()
	}))
	asked := make(chan error, 1)
	go func() {
		_, _, err := c.ask(t, asking(wanted("GET", "/")))
		asked <- err
	}()
	c.decoder.SetEmitFunc(func(hpack.HeaderField) { panic("broken") })
	close(answer)
	if err := <-asked; err == nil || !strings.Contains(err.Error(), "panic while reading: broken") {
		t.Error(err)
	}
	c.dies(t)
}
