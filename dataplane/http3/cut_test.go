package http3

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// An answer of which nothing was sent yet gives way to one that says what went
// wrong; any other is reset.
func TestAnswersThatBreakBeforeTheyBegin(t *testing.T) {
	t.Parallel()
	bodies := map[string]exchange.Body{
		"/known":  {Reader: io.NopCloser(failing{}), Length: 5},
		"/short":  {Reader: io.NopCloser(strings.NewReader("ab")), Length: 5},
		"/stream": {Reader: io.NopCloser(failing{}), Length: -1},
	}
	results := make(chan exchange.Result, 1)
	r := newRig(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		e.Done = append(e.Done, func(e *exchange.Exchange) { results <- e.Result })
		e.Fail = func(_ *exchange.Exchange, err error) *exchange.Response { return text(502, err.Error()) }
		resp := &exchange.Response{Status: 200, Body: bodies[e.Request.Path]}
		resp.Header.Add("X-Of", "the first")
		return resp
	}}, false)
	for path := range bodies {
		resp, err := r.client.Do(request(t, "GET", "https://api.example"+path, nil))
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		result := <-results
		if path == "/stream" {
			if err == nil || result.Status != 200 || result.Err == nil {
				t.Errorf("%s: %v, %+v; want it cut", path, err, result)
			}
		} else if err != nil || resp.StatusCode != 502 || resp.Header.Get("X-Of") != "" || result.Err != nil || result.Status != 502 {
			t.Errorf("%s: %v %v, %+v", path, resp, err, result)
		}
	}
}

// Whoever asks what became of an answer is told who cut it.
func TestWhoCutAnAnswer(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]error{
		"the client leaves": exchange.ErrClientGone, "the client does not read": exchange.ErrClientSlow, "the node stops": exchange.ErrStopping,
	} {
		t.Run(name, func(t *testing.T) {
			results := make(chan error, 1)
			config := Config{Handle: func(e *exchange.Exchange) *exchange.Response {
				e.Done = append(e.Done, func(e *exchange.Exchange) { results <- e.Result.Err })
				if want == exchange.ErrClientSlow {
					return text(200, strings.Repeat("x", 16<<20))
				}
				return &exchange.Response{Status: 200, Body: exchange.Body{Reader: until{e.Context}, Length: -1}}
			}}
			if want == exchange.ErrClientSlow {
				config.WriteTimeout = 50 * time.Millisecond
			}
			r := newRigDraining(t, config, false, 50*time.Millisecond)
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			resp, err := r.client.Do(request(t, "GET", "https://api.example/", nil).WithContext(ctx))
			if err == nil {
				defer resp.Body.Close()
			} else if want != exchange.ErrClientSlow {
				t.Fatal(err) // that one may be reset before the client looks
			}
			switch want {
			case exchange.ErrClientGone:
				leave()
			case exchange.ErrStopping:
				r.stop()
				if err := <-r.ended; !errors.Is(err, ErrCut) {
					t.Error(err)
				}
				close(r.ended)
			}
			if err := <-results; !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}

// until is a body that says nothing until its context has ended.
type until struct{ context.Context }

func (u until) Read([]byte) (int, error) {
	<-u.Done()
	return 0, context.Cause(u)
}

func (until) Close() error { return nil }
