package http2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// open sends a request and takes the head of its answer.
func (c *ended) open(t testing.TB, call *http1.Call) (*exchange.Response, func(*exchange.Exchange)) {
	t.Helper()
	resp, done, err := c.Stream().Do(call)
	if err != nil {
		t.Fatal(err)
	}
	return resp, done
}

// streaming is a request whose body is what a pipe is given.
func streaming(path string) (*http1.Call, *io.PipeWriter) {
	r, w := io.Pipe()
	call := asking(wanted("POST", path))
	call.Request.Body = exchange.Body{Reader: r, Length: -1}
	return call, w
}

func TestClientHoldsAnUpstreamToItsWindow(t *testing.T) {
	heard := make(chan *outcome, 1)
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		id := r.requested()
		fineBefore(tooMuch)(r, id)
		heard <- r.await(id, func(o *outcome) bool { return o.wasReset })
		r.rest()
	}))
	resp, done := c.open(t, asking(wanted("GET", "/")))
	defer done(nil)
	if o := <-heard; o.reset != h2.ErrCodeFlowControl {
		t.Errorf("reset with %v", o.reset)
	}
	if n, err := io.Copy(io.Discard, resp.Body.Reader); n != clientStreamWindow || !errors.Is(err, http1.ErrAnswer) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// A client that does not read its answer holds up nobody else's.
func TestClientSlowReaderHoldsUpNobody(t *testing.T) {
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/large" {
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: io.NopCloser(bytes.NewReader(make([]byte, 2<<20))), Length: 2 << 20}}
		}
		return text(200, "small")
	}})
	c := connect(t, f.addr)
	var slow []*exchange.Response
	// More than the connection's window would hold, were it not given back.
	for range 2 * clientConnWindow / clientStreamWindow {
		resp, done := c.open(t, asking(wanted("GET", "/large")))
		defer done(nil)
		slow = append(slow, resp)
	}
	for _, resp := range slow {
		for resp.Body.Reader.(*ClientStream).Buffered() < clientStreamWindow {
			time.Sleep(time.Millisecond)
		}
	}
	if _, body, err := c.ask(t, asking(wanted("GET", "/small"))); body != "small" || err != nil {
		t.Fatal(body, err)
	}
	for _, resp := range slow {
		if n, err := io.Copy(io.Discard, resp.Body.Reader); n != 2<<20 || err != nil {
			t.Error(n, err)
		}
	}
}

// Bodies are as long as the upstream's windows let them, whatever it does to them.
func TestClientKeepsToTheUpstreamsWindows(t *testing.T) {
	const size = 300 << 10
	got := make(chan int, 1)
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 10})
		r.says(r.requested(), true, ":status", "204")
		id := r.requested()
		have, window, grants := 0, 10, 0
		for have < size {
			frame, err := r.ReadFrame()
			if err != nil {
				return
			}
			data, ok := frame.(*h2.DataFrame)
			if !ok {
				continue
			}
			if have += len(data.Data()); have > window {
				t.Errorf("%d bytes in a window of %d", have, window)
				return
			}
			_ = r.WriteWindowUpdate(0, uint32(len(data.Data()))+1)
			if have < window {
				continue
			}
			if grants++; grants == 1 {
				// A change of the setting counts for streams that are open: 30, of which 10 are used.
				_ = r.WriteSettings(h2.Setting{ID: h2.SettingInitialWindowSize, Val: 30})
				window = 30
				continue
			}
			_ = r.WriteWindowUpdate(id, 50<<10)
			window += 50 << 10
		}
		r.says(id, true, ":status", "204")
		got <- have
		r.rest()
	}))
	// By its answer the settings are known.
	if status, _, err := c.ask(t, asking(wanted("GET", "/"))); status != 204 || err != nil {
		t.Fatal(status, err)
	}
	call := asking(wanted("POST", "/"))
	call.Body, call.Whole = make([]byte, size), true
	if status, _, err := c.ask(t, call); status != 204 || err != nil || <-got != size {
		t.Error(status, err)
	}
}

// An upstream may answer before it has read the body, and ask for no more of it.
func TestClientTakesAnAnswerThatComesEarly(t *testing.T) {
	for name, say := range map[string]func(r *raw, id uint32){
		"and goes on":              func(r *raw, id uint32) { bodyOf("2", "ok")(r, id) },
		"and resets without error": func(r *raw, id uint32) { bodyOf("2", "ok")(r, id); _ = r.WriteRSTStream(id, h2.ErrCodeNo) },
		"and resets, with a trailer": func(r *raw, id uint32) {
			fineBefore(func(r *raw, id uint32) { _ = r.WriteData(id, false, []byte("ok")); r.says(id, true, "a", "b") })(r, id)
			_ = r.WriteRSTStream(id, h2.ErrCodeNo)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := connect(t, scriptedUpstream(t, func(r *raw) {
				r.welcome()
				say(r, r.requested())
				if next := r.requested(); next != 0 {
					r.says(next, true, ":status", "204")
				}
				r.rest()
			}))
			call, w := streaming("/")
			defer w.Close()
			if status, body, err := c.ask(t, call); status != 200 || body != "ok" || err != nil {
				t.Error(status, body, err)
			}
			if _, err := w.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the rest of the body is still read: %v", err)
			}
			if status, _, err := c.ask(t, asking(wanted("GET", "/"))); status != 204 || err != nil {
				t.Error(status, err)
			}
		})
	}
}

// Whatever ends a request early, the upstream hears CANCEL, nobody reads the body
// any more, and the connection carries others.
func TestClientCancels(t *testing.T) {
	gone := errors.New("gone")
	for name, one := range map[string]struct {
		prepare func(call *http1.Call)
		during  func(resp *exchange.Response)
		want    error
	}{
		"deadline":        {func(call *http1.Call) { call.Deadline = call.Now.Add(30 * time.Millisecond) }, nil, http1.ErrTimeout},
		"watched context": {cancelSoon(gone, true), nil, gone},
		"context":         {cancelSoon(gone, false), nil, gone},
		"interrupt":       {func(call *http1.Call) { call.Request.Path = "/head" }, func(resp *exchange.Response) { resp.Interrupt(gone) }, gone},
		"idle":            {func(call *http1.Call) { call.Request.Path, call.Idle = "/head", 30*time.Millisecond }, nil, http1.ErrTimeout},
		"close":           {func(call *http1.Call) { call.Request.Path = "/head" }, func(resp *exchange.Response) { resp.Body.Reader.Close() }, errBodyClosed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resets := make(chan h2.ErrCode, 1)
			c := connect(t, scriptedUpstream(t, func(r *raw) {
				r.welcome()
				id := r.requested()
				for _, f := range r.fields {
					if f.Name == ":path" && f.Value == "/head" {
						r.says(id, false, ":status", "200")
					}
				}
				resets <- r.await(id, func(o *outcome) bool { return o.wasReset }).reset
				if next := r.requested(); next != 0 {
					r.says(next, true, ":status", "204")
				}
				r.rest()
			}))
			call, w := streaming("/")
			one.prepare(call)
			resp, done, err := c.Stream().Do(call)
			if err == nil {
				if one.during != nil {
					one.during(resp)
				}
				_, err = io.ReadAll(resp.Body.Reader)
				done(nil)
			}
			if !errors.Is(err, one.want) {
				t.Errorf("got %v, want %v", err, one.want)
			}
			if _, err := w.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the body is still read: %v", err)
			}
			if code := <-resets; code != h2.ErrCodeCancel {
				t.Errorf("reset with %v", code)
			}
			if status, _, err := c.ask(t, asking(wanted("GET", "/"))); status != 204 || err != nil {
				t.Error(status, err)
			}
		})
	}
}

func cancelSoon(cause error, watch bool) func(*http1.Call) {
	return func(call *http1.Call) {
		ctx, cancel := context.WithCancelCause(context.Background())
		time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
		call.Context, call.Watch = ctx, watch
	}
}

// A body that fails, or is not as long as it said, fails the request, in the
// client's words.
func TestClientBodiesThatFail(t *testing.T) {
	broken := errors.New("broken")
	c := connect(t, scriptedUpstream(t, func(r *raw) { r.welcome(); r.rest() }))
	for name, body := range map[string]exchange.Body{
		"fails":     {Reader: io.NopCloser(io.MultiReader(strings.NewReader("x"), failing{broken})), Length: -1},
		"too short": {Reader: io.NopCloser(strings.NewReader("x")), Length: 2},
		"too long":  {Reader: io.NopCloser(strings.NewReader("xyz")), Length: 2},
	} {
		call := asking(wanted("POST", "/"))
		call.Request.Body = body
		want := errBodyLength
		if name == "fails" {
			want = broken
		}
		if _, _, err := c.ask(t, call); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// The trailer of a request reaches the upstream. Servers of net/http would want it
// announced before.
func TestClientSendsTheTrailer(t *testing.T) {
	c := connect(t, scriptedUpstream(t, func(r *raw) {
		r.welcome()
		for id := uint32(1); ; id += 2 {
			o := r.await(id, func(o *outcome) bool { return o.ended })
			if o.closed {
				return
			}
			r.says(id, true, ":status", "200", "saw", strings.TrimSpace(o.body+" "+o.header["x-sum"]+" "+o.header["te"]))
		}
	}))
	trailer := func() exchange.Header {
		return exchange.HeaderOf(exchange.Field{Name: "X-Sum", Value: "3"}, exchange.Field{Name: "TE", Value: "x"})
	}
	for name, body := range map[string]exchange.Body{
		"of no length":     {Reader: io.NopCloser(strings.NewReader("abc")), Length: -1, Trailer: trailer},
		"of a length":      {Reader: io.NopCloser(strings.NewReader("abc")), Length: 3, Trailer: trailer},
		"that is there":    {Length: 3, Trailer: trailer},
		"that has nothing": {Reader: io.NopCloser(strings.NewReader("")), Length: -1, Trailer: trailer},
	} {
		call := asking(wanted("POST", "/"))
		call.Request.Body = body
		want := "abc 3 trailers"
		if body.Reader == nil {
			call.Body, call.Whole = []byte("abc"), true
		}
		if name == "that has nothing" {
			want = "3 trailers"
		}
		resp, done := c.open(t, call)
		if saw := resp.Header.Get("saw"); saw != want {
			t.Errorf("a body %s: the upstream saw %q", name, saw)
		}
		done(nil)
	}
}
