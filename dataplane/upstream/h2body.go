package upstream

import (
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"
	"sync"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// errFinished is what a request's body says after its exchange.
var errFinished = errors.New("the exchange has ended")

// outgoing is a request's body on its way out. The library reads it on a
// goroutine of its own, which may go on after the request; finish waits for the
// read that is under way. A trailer stays behind: the library sends only fields
// that it was told of before the body.
type outgoing struct {
	isWhole bool
	whole   []byte
	reader  io.ReadCloser

	mu      sync.Mutex
	idle    sync.Cond // reading ended; its L is mu
	begun   bool
	reading bool
	over    bool
	err     error
}

// Read implements io.Reader.
func (b *outgoing) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.over {
		b.mu.Unlock()
		return 0, errFinished
	}
	b.begun = true
	if b.isWhole {
		defer b.mu.Unlock()
		n := copy(p, b.whole)
		if b.whole = b.whole[n:]; len(b.whole) == 0 {
			return n, io.EOF
		}
		return n, nil
	}
	b.reading = true
	b.mu.Unlock()
	n, err := b.reader.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	if b.idle.L != nil {
		b.idle.Broadcast()
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// Close implements io.Closer; the reader is its owner's to close.
func (b *outgoing) Close() error { return nil }

// read tells whether any of the body was read.
func (b *outgoing) read() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.begun
}

// failure returns why reading failed.
func (b *outgoing) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// finish ends reading. A read that waits for the client is woken.
func (b *outgoing) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	if !b.reading {
		return
	}
	b.idle.L = &b.mu
	b.mu.Unlock()
	_ = b.reader.Close()
	b.mu.Lock()
	for b.reading {
		b.idle.Wait()
	}
}

// owned copies texts of a request, all into one piece of memory. The library keeps
// them: its encoder remembers fields for as long as the connection lasts
// (RFC 7541, 2.3.2), and its goroutine may still write when the exchange, in whose
// memory they lie, has ended.
type owned struct{ memory strings.Builder }

// newOwned has room for all of the request.
func newOwned(r *exchange.Request) *owned {
	n := len(r.Method) + len(r.Path) + len(r.Query) + len(r.Authority)
	for _, f := range r.Header.Fields() {
		n += len(f.Name) + len(f.Value)
	}
	o := &owned{}
	o.memory.Grow(n)
	return o
}

func (o *owned) text(s string) string {
	start := o.memory.Len()
	o.memory.WriteString(s)
	return o.memory.String()[start:]
}

// outgoingURL goes out byte for byte as Opaque, which Path would not.
func outgoingURL(scheme, host string, r *exchange.Request, own *owned) *url.URL {
	return &url.URL{Scheme: scheme, Host: host, Opaque: own.text(r.Path), RawQuery: own.text(r.Query)}
}

// outgoingHeader renders the fields as the library wants them. gRPC's servers want
// to hear that trailers are understood.
func outgoingHeader(r *exchange.Request, own *owned) http.Header {
	fields := r.Header.Fields()
	h := make(http.Header, len(fields)+2)
	values := make([]string, len(fields))
	for i, f := range fields {
		if exchange.HopByHop(f.Name) || exchange.EqualFold(f.Name, "Host") {
			continue
		}
		name, value := textproto.CanonicalMIMEHeaderKey(own.text(f.Name)), own.text(f.Value)
		if before, ok := h[name]; ok {
			h[name] = append(before, value)
			continue
		}
		values[i] = value
		h[name] = values[i : i+1 : i+1]
	}
	if _, ok := h["User-Agent"]; !ok {
		// Keeps the library from adding its own.
		h["User-Agent"] = []string{""}
	}
	h["Te"] = []string{"trailers"}
	return h
}

// incomingHeader renders the fields of an answer.
func incomingHeader(from http.Header) exchange.Header {
	fields := make([]exchange.Field, 0, len(from))
	for name, values := range from {
		for _, v := range values {
			fields = append(fields, exchange.Field{Name: name, Value: v})
		}
	}
	return exchange.HeaderOf(fields...)
}
