package listen_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
	"portcullis.dev/portcullis/dataplane/listen"
)

// said is a response with a text.
func said(status int, text string) *exchange.Response {
	return &exchange.Response{Status: status, Body: exchange.Body{Reader: io.NopCloser(strings.NewReader(text)), Length: int64(len(text))}}
}

// running serves a socket of its own until stop.
func running(t *testing.T, c listen.Config, ln net.Listener, handle func(*exchange.Exchange) *exchange.Response) (stop context.CancelFunc, result <-chan error) {
	t.Helper()
	front := http1.NewServer(http1.Config{Handle: handle, Refuse: func(_ *exchange.Exchange, reason string, status int) *exchange.Response {
		return said(status, reason)
	}})
	ctx, cancel := context.WithCancel(t.Context())
	out, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		out <- listen.Run(ctx, ln, front, c)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return cancel, out
}

func socket(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// ask sends a request and reads the answer.
func ask(t *testing.T, c net.Conn) *http.Response {
	t.Helper()
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp
}

func connect(t *testing.T, ln net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func fine(*exchange.Exchange) *exchange.Response { return said(200, "ok") }

func TestGraceKeepsServingAndClosesAsItAnswers(t *testing.T) {
	ln := socket(t)
	stop, result := running(t, listen.Config{Grace: time.Second}, ln, fine)
	kept := connect(t, ln)
	if resp := ask(t, kept); resp.Close {
		t.Error("closed before the drain")
	}
	stop()
	for !ask(t, kept).Close {
		// Until the listener has noticed, it answers as before.
	}
	if resp := ask(t, connect(t, ln)); !resp.Close {
		t.Error("a connection that came in the grace is kept")
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		c.Close()
		t.Error("a drained listener accepts")
	}
}

func TestDrainWaitsForWhatIsInFlight(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	ln := socket(t)
	stop, result := running(t, listen.Config{}, ln, func(*exchange.Exchange) *exchange.Response {
		close(begun)
		<-release
		return said(200, "done")
	})
	silent, slow := connect(t, ln), connect(t, ln)
	answered := make(chan *http.Response)
	go func() { answered <- ask(t, slow) }()
	<-begun
	stop()
	if b, err := io.ReadAll(silent); len(b) > 0 || err != nil {
		t.Errorf("%q %v", b, err)
	}
	select {
	case err := <-result:
		t.Fatalf("ended with a request in flight: %v", err)
	default:
	}
	close(release)
	if resp := <-answered; resp.StatusCode != 200 || !resp.Close {
		t.Errorf("%d close=%t", resp.StatusCode, resp.Close)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

func TestDrainCutsWhatDoesNotEnd(t *testing.T) {
	begun := make(chan struct{})
	ln := socket(t)
	stop, result := running(t, listen.Config{Drain: 50 * time.Millisecond}, ln, func(e *exchange.Exchange) *exchange.Response {
		close(begun)
		<-e.Context.Done()
		return said(200, "")
	})
	if _, err := io.WriteString(connect(t, ln), "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-begun
	stop()
	if err := <-result; !errors.Is(err, listen.ErrCut) {
		t.Error(err)
	}
}

// failing fails to accept, a few times or for good.
type failing struct {
	net.Listener
	err  error
	left atomic.Int64
}

func (f *failing) Accept() (net.Conn, error) {
	if f.left.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: f.err}
	}
	return f.Listener.Accept()
}

func TestAcceptingGoesOnWhenDescriptorsAreBack(t *testing.T) {
	ln := &failing{Listener: socket(t), err: syscall.EMFILE}
	ln.left.Store(3)
	running(t, listen.Config{}, ln, fine)
	if resp := ask(t, connect(t, ln)); resp.StatusCode != 200 {
		t.Error(resp.Status)
	}
}

func TestRunReportsABrokenListener(t *testing.T) {
	ln := &failing{Listener: socket(t), err: errors.New("broken")}
	ln.left.Store(1)
	_, result := running(t, listen.Config{}, ln, fine)
	if err := <-result; err == nil {
		t.Error("no error")
	}
}
