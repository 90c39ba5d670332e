package http2

import (
	"errors"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"
	"unsafe"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// What an upstream takes at once is kept to, also when it changes its mind.
func TestClientKeepsToTheUpstreamsNumberOfStreams(t *testing.T) {
	changed := make(chan struct{}, 100)
	most := make(chan uint32)
	address := scriptedUpstream(t, func(r *raw) {
		r.welcome(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 1})
		r.says(r.requested(), true, ":status", "204")
		for n := range most {
			_ = r.WriteSettings(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: n})
		}
	})
	c := connect(t, address, ClientConfig{Scheme: "http", Changed: func() { changed <- struct{}{} }})
	defer close(most)
	if status, _, err := c.ask(t, asking(wanted("GET", "/"))); status != 204 || err != nil {
		t.Fatal(status, err)
	}
	for _, n := range []uint32{3, 0, 2} {
		for len(changed) > 0 {
			<-changed
		}
		most <- n
		<-changed
		var held []*ClientStream
		for s := c.Stream(); s != nil; s = c.Stream() {
			held = append(held, s)
		}
		if len(held) != int(n) || c.Busy() != int(n) {
			t.Errorf("%d streams of %d", len(held), n)
		}
		for _, s := range held {
			s.Release()
		}
	}
}

// A stream that was given up takes up its place until the upstream knows.
func TestClientResetsNoFasterThanTheUpstreamHears(t *testing.T) {
	answer, changed := make(chan struct{}), make(chan struct{}, 100)
	address := scriptedUpstream(t, func(r *raw) {
		r.welcome(h2.Setting{ID: h2.SettingMaxConcurrentStreams, Val: 2})
		r.says(r.requested(), true, ":status", "204")
		for {
			frame, err := r.ReadFrame()
			if err != nil {
				return
			}
			if ping, ok := frame.(*h2.PingFrame); ok {
				<-answer
				_ = r.WritePing(true, ping.Data)
			}
		}
	})
	c := connect(t, address, ClientConfig{Scheme: "http", Changed: func() { changed <- struct{}{} }})
	_, _, _ = c.ask(t, asking(wanted("GET", "/")))
	for range 2 {
		call := asking(wanted("GET", "/"))
		call.Deadline = call.Now.Add(10 * time.Millisecond)
		if _, _, err := c.ask(t, call); !errors.Is(err, http1.ErrTimeout) {
			t.Fatal(err)
		}
	}
	if c.Stream() != nil {
		t.Error("a stream is free that the upstream may be busy with")
	}
	for len(changed) > 0 {
		<-changed
	}
	close(answer)
	<-changed
	s := c.Stream()
	if s == nil {
		t.Fatal("no stream is free once the upstream knows")
	}
	s.Release()
}

// The texts of a request lie in memory that the next one is read into. No caller's
// credential goes out under another's name, however many share the connection.
func TestClientKeepsCallersApart(t *testing.T) {
	c := standard(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Saw", fmt.Sprintf("%s %s %s", r.RequestURI, r.Host, r.Header.Get("Authorization")))
	})
	var all sync.WaitGroup
	for worker := range 8 {
		all.Go(func() {
			memory := make([]byte, 64)
			text := func(from, n int) string { return unsafe.String(&memory[from], n) }
			for i := range 100 {
				user := (worker*100 + i*i) % 97
				copy(memory, fmt.Sprintf("/path-%03d host-%03d.test authorization user-%03d-secret", user, user, user))
				want := string(memory[:9]) + " " + string(memory[10:23]) + " " + string(memory[38:53])
				call := asking(&exchange.Request{Method: "GET", Path: text(0, 9), Authority: text(10, 13), Header: exchange.HeaderOf(exchange.Field{Name: text(24, 13), Value: text(38, 15)})})
				resp, done := c.open(t, call)
				if saw := resp.Header.Get("X-Saw"); saw != want {
					t.Errorf("the upstream saw %q, want %q", saw, want)
				}
				done(nil)
			}
		})
	}
	all.Wait()
}

// Credentials, and what may be some, go into nobody's table: ours has none, and
// they are marked for those behind (RFC 7541, 7.1.3).
func TestClientMarksCredentials(t *testing.T) {
	seen := make(chan map[string]bool, 1)
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		id := r.requested()
		sensitive := map[string]bool{}
		for _, f := range r.fields {
			sensitive[f.Name] = f.Sensitive
		}
		seen <- sensitive
		r.says(id, true, ":status", "204")
		r.rest()
	}))
	var fields []exchange.Field
	secret := []string{"authorization", "cookie", "x-api-key", "x-anything", "a-name-that-is-longer-than-any-in-the-table"}
	for _, name := range append([]string{"accept", "user-agent"}, secret...) {
		fields = append(fields, exchange.Field{Name: name, Value: "x"})
	}
	if _, _, err := c.ask(t, asking(wanted("GET", "/", fields...))); err != nil {
		t.Fatal(err)
	}
	got := <-seen
	for _, name := range secret {
		if marked, there := got[name]; !marked || !there {
			t.Errorf("%s is not marked: %v", name, got)
		}
	}
	if got["accept"] || got["user-agent"] {
		t.Errorf("marked without need: %v", got)
	}
}

// A buffer that is another's once Do has returned is not sent from later.
func TestClientSendsABodyOfItsOwn(t *testing.T) {
	bodies := make(chan string, 1)
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 0})
		r.says(r.requested(), true, ":status", "204")
		id := r.requested()
		r.says(id, false, ":status", "200")
		_ = r.WritePing(false, [8]byte{9})
		r.await(id, func(o *outcome) bool { return o.pingAck > 0 })
		_ = r.WriteWindowUpdate(id, 100)
		bodies <- r.await(id, func(o *outcome) bool { return o.ended }).body
		_ = r.WriteData(id, true, nil)
		r.rest()
	}))
	_, _, _ = c.ask(t, asking(wanted("GET", "/")))
	call := asking(wanted("POST", "/"))
	call.Body, call.Whole = []byte("mine"), true
	_, done := c.open(t, call)
	copy(call.Body, "hers")
	if got := <-bodies; got != "mine" {
		t.Errorf("sent %q", got)
	}
	done(nil)
}

// Retired, a connection ends with its last request; cut, its requests end with it.
func TestClientRetiresAndIsCut(t *testing.T) {
	release := make(chan struct{})
	handler := func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	c := standard(t, handler)
	s := c.Stream()
	c.Retire()
	if c.Stream() != nil {
		t.Error("it takes requests")
	}
	result := make(chan error, 1)
	go func() {
		_, done, err := s.Do(asking(wanted("GET", "/")))
		if err == nil {
			done(nil)
		}
		result <- err
	}()
	release <- struct{}{}
	if err := <-result; err != nil {
		t.Error(err)
	}
	c.dies(t)
	c = standard(t, handler)
	gone := errors.New("gone")
	s = c.Stream()
	go func() {
		_, _, err := s.Do(asking(wanted("GET", "/")))
		result <- err
	}()
	time.AfterFunc(10*time.Millisecond, func() { c.Cut(gone) })
	if err := <-result; !errors.Is(err, gone) && !errors.Is(err, http1.ErrUnsent) {
		t.Error(err)
	}
	c.dies(t)
}
