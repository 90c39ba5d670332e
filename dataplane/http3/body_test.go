package http3

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// swallow answers with how much of a body came.
func swallow(e *exchange.Exchange) *exchange.Response {
	n, err := io.Copy(io.Discard, e.Request.Body.Reader)
	if err != nil {
		return text(400, err.Error())
	}
	return text(200, strconv.FormatInt(n, 10))
}

// Whoever says nothing is cut off, and so is who trickles a body: he keeps to
// every single time limit, and yet not to the minimum rate.
func TestSlowBodiesAreTimedOut(t *testing.T) {
	t.Parallel()
	for name, every := range map[string]time.Duration{"silent": time.Hour, "trickle": 20 * time.Millisecond} {
		r := newRig(t, Config{BodyTimeout: 200 * time.Millisecond, Handle: swallow}, false)
		in, out := io.Pipe()
		answered, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			defer out.Close()
			for tick := time.NewTicker(every); ; {
				_, _ = io.WriteString(out, "x")
				select {
				case <-answered:
					tick.Stop()
					return
				case <-tick.C:
				}
			}
		}()
		resp, body := r.do(request(t, "POST", "https://api.example/", in))
		close(answered)
		in.Close()
		<-stopped
		if resp.StatusCode != 400 || !strings.Contains(body, "slowly") {
			t.Errorf("%s: %d %q", name, resp.StatusCode, body)
		}
	}
}

// A stream of gRPC may be silent, before and behind the head of its answer; any
// other behind it.
func TestBodiesThatMayBeSilent(t *testing.T) {
	t.Parallel()
	const limit = 50 * time.Millisecond
	r := newRig(t, Config{BodyTimeout: limit, Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/echo" {
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: e.Request.Body.Reader, Length: -1}}
		}
		return swallow(e)
	}}, false)
	for path, contentType := range map[string]string{"/": "application/grpc+proto", "/echo": "text/plain"} {
		in, out := io.Pipe()
		req := request(t, "POST", "https://api.example"+path, in)
		req.Header.Set("Content-Type", contentType)
		answers := make(chan *http.Response, 1)
		go func() {
			defer close(answers)
			resp, err := r.client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			answers <- resp
		}()
		_, _ = io.WriteString(out, "one")
		time.Sleep(4 * limit) // what must not end it has no event
		_, _ = io.WriteString(out, "two")
		out.Close()
		if resp := <-answers; resp != nil {
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || string(body) != map[string]string{"/": "6", "/echo": "onetwo"}[path] {
				t.Errorf("%s: %q %v", path, body, err)
			}
		}
	}
}

// Whom the connection's window keeps from sending, since others' bodies fill it
// that nobody reads, is not slow.
func TestBodiesThatAreHeldBackAreNotTimedOut(t *testing.T) {
	t.Parallel()
	const limit = 1500 * time.Millisecond // lost packets are sent again after a good part of a second
	release, waits := make(chan struct{}), make(chan struct{}, holding)
	r := newRig(t, Config{BodyTimeout: limit, Settings: func() *admission.Settings { return &admission.Settings{MaxBodyBytes: 1 << 30} },
		Handle: func(e *exchange.Exchange) *exchange.Response {
			if e.Request.Path == "/full" {
				waits <- struct{}{}
				<-release
			}
			return swallow(e)
		}}, false)
	// More than the window has room for.
	big := strings.Repeat("x", connWindow)
	answers := make(chan string, holding+1)
	ask := func(path string, body io.Reader) {
		resp, err := r.client.Do(request(t, "POST", "https://api.example"+path, body))
		if err != nil {
			t.Error(err)
			answers <- ""
			return
		}
		defer resp.Body.Close()
		said, _ := io.ReadAll(resp.Body)
		answers <- strconv.Itoa(resp.StatusCode) + " " + string(said)
	}
	// Its head would not pass a full window.
	in, out := io.Pipe()
	go ask("/", in)
	_, _ = io.WriteString(out, "x")
	for range holding {
		go ask("/full", strings.NewReader(big))
		<-waits
	}
	time.Sleep(limit / 3) // for the window to be full
	written := make(chan struct{})
	go func() {
		defer close(written)
		_, _ = io.WriteString(out, big[1:])
		out.Close()
	}()
	time.Sleep(3 * limit / 2) // what must not end it has no event
	close(release)
	for range holding + 1 {
		if got := <-answers; got != "200 "+strconv.Itoa(len(big)) {
			t.Errorf("%.100q", got)
		}
	}
	in.Close()
	<-written
}
