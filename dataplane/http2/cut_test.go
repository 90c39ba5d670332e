package http2

import (
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
)

var errTorn = errors.New("torn")

type breaks struct{}

func (breaks) Read([]byte) (int, error) { return 0, errTorn }

// tornBehind is a body that breaks behind some bytes.
func tornBehind(s string) io.ReadCloser {
	return io.NopCloser(io.MultiReader(strings.NewReader(s), breaks{}))
}

// An answer of which nothing was sent yet gives way to one that says what went
// wrong; any other is reset.
func TestAnswersThatBreakBeforeTheyBegin(t *testing.T) {
	for name, one := range map[string]struct {
		body exchange.Body
		cut  bool
	}{
		"of known length": {body: exchange.Body{Reader: tornBehind(""), Length: 5}},
		"half":            {body: exchange.Body{Reader: tornBehind("ab"), Length: 5}},
		"short":           {body: exchange.Body{Reader: io.NopCloser(strings.NewReader("ab")), Length: 5}},
		"a stream":        {body: exchange.Body{Reader: tornBehind(""), Length: -1}, cut: true},
	} {
		t.Run(name, func(t *testing.T) {
			// The exchange ends behind the last byte of its answer, and may be recorded later.
			results := make(chan exchange.Result, 1)
			f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
				e.Done = append(e.Done, func(e *exchange.Exchange) { results <- e.Result })
				e.Fail = func(_ *exchange.Exchange, err error) *exchange.Response { return text(502, err.Error()) }
				return &exchange.Response{Status: 200, Body: one.body}
			}})
			r := f.dial()
			r.headers(1, true, get()...)
			o := r.receive(1)
			r.alive()
			end := <-results
			if one.cut {
				if o.status != "200" || !o.wasReset || !errors.Is(end.Err, errTorn) {
					t.Errorf("%+v, %+v; want it cut", o, end)
				}
			} else if o.status != "502" || o.wasReset || end.Err != nil || end.Status != 502 {
				t.Errorf("%+v, %+v", o, end)
			}
		})
	}
}

// silentUntil is a body that says nothing until it is interrupted.
type silentUntil struct{ cause chan error }

func (b silentUntil) Read([]byte) (int, error) { return 0, <-b.cause }
func (silentUntil) Close() error               { return nil }

// Whoever asks what became of an answer is told who cut it.
func TestWhoCutAnAnswer(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		cut  func(*front, *raw)
		want error
	}{
		"the client resets":        {func(_ *front, r *raw) { r.must(r.WriteRSTStream(1, h2.ErrCodeCancel)) }, exchange.ErrClientGone},
		"the client leaves":        {func(_ *front, r *raw) { r.Conn.Close() }, exchange.ErrClientGone},
		"the client breaks rules":  {func(_ *front, r *raw) { r.must(r.WriteData(0, false, nil)) }, exchange.ErrClientGone},
		"the client does not read": {func(*front, *raw) {}, exchange.ErrClientSlow},
		"the node stops":           {func(f *front, _ *raw) { f.server.Cut() }, exchange.ErrStopping},
	} {
		t.Run(name, func(t *testing.T) {
			config := Config{WriteTimeout: 50 * time.Millisecond}
			results := make(chan error, 1)
			config.Handle = func(e *exchange.Exchange) *exchange.Response {
				e.Done = append(e.Done, func(e *exchange.Exchange) { results <- e.Result.Err })
				if one.want == exchange.ErrClientSlow {
					return text(200, strings.Repeat("x", 1<<20))
				}
				body := silentUntil{make(chan error, 1)}
				return &exchange.Response{Status: 200, Body: exchange.Body{Reader: body, Length: -1}, Interrupt: func(cause error) {
					select {
					case body.cause <- cause:
					default:
					}
				}}
			}
			f := start(t, config)
			r := f.dial()
			r.headers(1, true, get()...)
			r.await(1, func(o *outcome) bool { return o.status != "" })
			one.cut(f, r)
			if err := <-results; !errors.Is(err, one.want) {
				t.Errorf("%v, want %v", err, one.want)
			}
		})
	}
}
