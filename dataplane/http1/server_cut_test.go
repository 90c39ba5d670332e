package http1

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

var errTorn = errors.New("torn")

// torn is a body that breaks behind some bytes.
type torn struct{ io.Reader }

func tornBehind(s string) io.ReadCloser { return torn{io.MultiReader(strings.NewReader(s), breaks{})} }

func (torn) Close() error { return nil }

type breaks struct{}

func (breaks) Read([]byte) (int, error) { return 0, errTorn }

// An answer of which nothing was sent yet gives way to one that says what went
// wrong, and the connection serves on; any other is cut.
func TestAnswersThatBreakBeforeTheyBegin(t *testing.T) {
	long := strings.Repeat("x", largeBuffer)
	bodies := map[string]exchange.Body{
		"/small":        {Reader: tornBehind(""), Length: 5},
		"/small half":   {Reader: tornBehind("ab"), Length: 5},
		"/small short":  {Reader: io.NopCloser(strings.NewReader("ab")), Length: 5},
		"/large":        {Reader: tornBehind(""), Length: 1 << 20},
		"/chunked":      {Reader: tornBehind(""), Length: -1},
		"/chunked half": {Reader: tornBehind("ab"), Length: -1},
		"/large half":   {Reader: tornBehind(long), Length: 1 << 20},
	}
	results := make(chan exchange.Result, 1)
	f := start(t, Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		e.Done = append(e.Done, func(e *exchange.Exchange) { results <- e.Result })
		e.Fail = func(_ *exchange.Exchange, err error) *exchange.Response { return plain(502, err.Error()) }
		return &exchange.Response{Status: 200, Body: bodies[strings.ReplaceAll(e.Request.Path, "%20", " ")]}
	}})
	for path := range bodies {
		c := f.dial()
		c.send(lines("GET "+strings.ReplaceAll(path, " ", "%20")+" HTTP/1.1", "Host: a"))
		resp, err := http.ReadResponse(c.r, nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		said, err := io.ReadAll(resp.Body)
		result := <-results
		if strings.HasSuffix(path, "half") && path != "/small half" {
			if resp.StatusCode != 200 || err == nil || !errors.Is(result.Err, errTorn) {
				t.Errorf("%s: %d %.20q %v, %+v; want it cut", path, resp.StatusCode, said, err, result)
			}
			continue
		}
		if resp.StatusCode != 502 || resp.Close || err != nil || result.Err != nil || result.Status != 502 {
			t.Errorf("%s: %d %q %v, %+v", path, resp.StatusCode, said, err, result)
		}
		c.send(lines("GET "+path[:3]+" HTTP/1.1", "Host: a"))
		if resp, _ := c.receive("GET"); resp.StatusCode != 200 {
			t.Errorf("%s: then %d", path, resp.StatusCode)
		}
		<-results
	}
}

// flood is a body that always has more, until it is interrupted.
type flood struct{ cause chan error }

func (b flood) Read(p []byte) (int, error) {
	select {
	case err := <-b.cause:
		return 0, err
	default:
		return len(p), nil
	}
}

func (flood) Close() error { return nil }

// Whoever asks what became of an answer is told who cut it.
func TestWhoCutAnAnswer(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		cut  func(*front, *client)
		want error
	}{
		"the client leaves":        {func(_ *front, c *client) { c.Conn.(*net.TCPConn).SetLinger(0); c.Close() }, exchange.ErrClientGone},
		"the client does not read": {func(*front, *client) {}, exchange.ErrClientSlow},
		"the node stops":           {func(f *front, _ *client) { f.server.Cut() }, exchange.ErrStopping},
	} {
		t.Run(name, func(t *testing.T) {
			config := Config{}
			if one.want == exchange.ErrClientSlow {
				config.WriteTimeout = 50 * time.Millisecond
			}
			results := make(chan error, 1)
			config.Handle = func(e *exchange.Exchange) *exchange.Response {
				e.Done = append(e.Done, func(e *exchange.Exchange) { results <- e.Result.Err })
				body := flood{make(chan error, 1)}
				return &exchange.Response{Status: 200, Body: exchange.Body{Reader: body, Length: -1}, Interrupt: func(cause error) {
					select {
					case body.cause <- cause:
					default:
					}
				}}
			}
			f := start(t, config)
			c := f.dial()
			c.send(lines("GET / HTTP/1.1", "Host: a"))
			c.expect("HTTP/1.1 200 OK\r\n")
			one.cut(f, c)
			if err := <-results; !errors.Is(err, one.want) {
				t.Errorf("%v, want %v", err, one.want)
			}
		})
	}
}
