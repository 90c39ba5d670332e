package http3

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// body bounds a request's body in size and in patience. One goroutine reads it;
// another lifts and ends it.
type body struct {
	from     io.ReadCloser
	control  *http.ResponseController
	client   *client
	limit    int64
	declared int64 // -1: unknown
	read     int64
	ahead    []byte // what empty has read

	mu sync.Mutex
	// Guarded by mu.
	pace    admission.Pace
	lifted  bool      // it may be silent
	late    bool      // it was for too long
	ended   bool      // nobody reads it any more
	since   time.Time // Read waits since then; zero while it does not
	held    time.Duration
	expires *time.Timer
}

func newBody(r *http.Request, w http.ResponseWriter, c *client, limit int64, patience time.Duration) *body {
	b := &body{from: r.Body, control: http.NewResponseController(w), client: c, limit: limit, declared: r.ContentLength, pace: admission.Pace{Patience: patience}}
	c.unread(1)
	return b
}

// empty waits for the first byte or the end of the body: a request that has ended
// with its header does not say so in the header, and an upstream would get a
// chunked body of nothing.
func (b *body) empty() bool {
	first := make([]byte, 1)
	n, err := b.Read(first)
	b.ahead = first[:n]
	return n == 0 && err == io.EOF
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if len(b.ahead) > 0 {
		n := copy(p, b.ahead)
		b.ahead = b.ahead[n:]
		return n, nil
	}
	b.begin()
	n, err := b.from.Read(p)
	late := b.finish(n)
	b.read += int64(n)
	switch {
	case late:
		return n, fmt.Errorf("%w: the body comes too slowly", exchange.ErrMalformed)
	case b.read > b.limit:
		return 0, fmt.Errorf("%w: body beyond its limit", exchange.ErrTooLarge)
	case b.declared >= 0 && (b.read > b.declared || err == io.EOF && b.read < b.declared):
		return 0, fmt.Errorf("%w: body of another length than declared", exchange.ErrMalformed)
	}
	return n, err
}

// begin notes a wait, which expire ends.
func (b *body) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended || b.late {
		return
	}
	b.client.unread(-1)
	b.since = time.Now()
	b.held = b.client.held(b.since)
	switch {
	case b.lifted:
	case b.expires == nil:
		b.expires = time.AfterFunc(b.pace.Allows(), b.expire)
	default:
		b.expires.Reset(b.pace.Allows())
	}
}

// finish ends the wait, which brought n bytes, and tells whether it was too long.
func (b *body) finish(n int) (late bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.since.IsZero() {
		b.pace.Waited(b.waited())
		b.pace.Received(n)
		b.since = time.Time{}
		if b.expires != nil {
			b.expires.Stop()
		}
		if !b.ended {
			b.client.unread(1)
		}
	}
	return b.late
}

// waited returns how long the wait has lasted, but for what the client could not
// help.
func (b *body) waited() time.Duration {
	now := time.Now()
	return now.Sub(b.since) - (b.client.held(now) - b.held)
}

// expire ends the wait once it has been too long.
func (b *body) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.since.IsZero() || b.lifted {
		return
	}
	if left := b.pace.Allows() - b.waited(); left > 0 {
		b.expires.Reset(left)
		return
	}
	b.late = true
	_ = b.control.SetReadDeadline(past)
}

// past is a deadline that interrupts.
var past = time.Unix(1, 0)

// lift lets the body be silent from now on: its answer has begun, or it is gRPC's.
func (b *body) lift() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lifted = true
}

// end is called when the exchange has ended.
func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.expires != nil {
		b.expires.Stop()
	}
	if !b.ended && b.since.IsZero() {
		b.client.unread(-1)
	}
	b.ended = true
}

// Close implements io.Closer.
func (b *body) Close() error { return b.from.Close() }

func trailerOf(from http.Header) exchange.Header {
	var h exchange.Header
	for name, values := range from {
		for _, v := range values {
			if admission.Trailer(name) && httpguts.ValidHeaderFieldValue(v) {
				h.Add(strings.ToLower(name), v)
			}
		}
	}
	return h
}
