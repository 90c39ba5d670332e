package upstream

import (
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// maxReplay is the longest request body that is kept to be sent once more, or to a
// mirror.
const maxReplay = 64 << 10

// replay keeps what passes of a request's body, while it is short, so that it can
// be sent once more. One goroutine at a time reads it.
type replay struct {
	reader io.ReadCloser
	length int64 // -1: not known
	// begun says that some of it was read; whole, that kept is all of it.
	begun, whole atomic.Bool
	// off ends the keeping: nobody will ask.
	off atomic.Bool
	// completed, when set, is called once by the reader with all of a short body.
	completed func(body []byte)

	// Owned by the reader; others may look once whole is set.
	kept []byte
	lost bool
	once sync.Once
}

// Read implements io.Reader.
func (r *replay) Read(p []byte) (int, error) {
	if r.whole.Load() {
		// A client may hold back that it ends here, and no Close would wake who waits.
		return 0, io.EOF
	}
	r.begun.Store(true)
	n, err := r.reader.Read(p)
	switch {
	case r.lost:
		return n, err
	case r.off.Load() && r.completed == nil, len(r.kept)+n > maxReplay, err != nil && !errors.Is(err, io.EOF):
		r.kept, r.lost = nil, true
		return n, err
	}
	r.kept = append(r.kept, p[:n]...)
	if errors.Is(err, io.EOF) || int64(len(r.kept)) == r.length {
		r.whole.Store(true)
		if r.completed != nil {
			r.once.Do(func() { r.completed(r.kept) })
		}
	}
	return n, err
}

// Buffered passes on what the reader tells.
func (r *replay) Buffered() int {
	if b, ok := r.reader.(interface{ Buffered() int }); ok {
		return b.Buffered()
	}
	return 0
}

// Close ends the reading of a body of which something is missing. One that was read
// whole needs no end, and may be asked for once more.
func (r *replay) Close() error {
	if r.whole.Load() {
		return nil
	}
	return r.reader.Close()
}

// again tells whether the body can be sent once more.
func (r *replay) again() bool { return !r.begun.Load() || r.whole.Load() }

// cloneRequest makes a copy that shares nothing with the front end's buffers. It
// has no body.
func cloneRequest(r *exchange.Request) exchange.Request {
	c := *r
	for _, s := range [...]*string{&c.Method, &c.Target, &c.Path, &c.Query, &c.Host, &c.Authority, &c.Scheme, &c.Proto, &c.Upgrade} {
		*s = strings.Clone(*s)
	}
	fields := make([]exchange.Field, 0, r.Header.Len()+2)
	for _, f := range r.Header.Fields() {
		fields = append(fields, exchange.Field{Name: strings.Clone(f.Name), Value: strings.Clone(f.Value)})
	}
	c.Header = exchange.HeaderOf(fields...)
	c.Body = exchange.Body{}
	return c
}
