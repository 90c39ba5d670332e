package http1

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// relay is a front before an upstream that speaks on bare connections, which are
// used again.
type relay struct {
	*front
	results chan exchange.Result

	mu sync.Mutex
	// Guarded by mu.
	idle      []*ClientConn
	dialled   int
	interrupt func(error)
}

// relayTo puts a front before an upstream that answers each request with what
// answer writes.
func relayTo(t *testing.T, config Config, idle time.Duration, answer func(c net.Conn, r *http.Request)) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					answer(c, r)
				}
			})
		}
	})
	rl := &relay{results: make(chan exchange.Result, 1000)}
	t.Cleanup(func() {
		ln.Close()
		rl.mu.Lock()
		defer rl.mu.Unlock()
		for _, c := range rl.idle {
			c.Close()
		}
		serving.Wait()
	})
	config.Handle = func(e *exchange.Exchange) *exchange.Response { return rl.forward(ln.Addr().String(), idle, e) }
	rl.front = start(t, config)
	return rl
}

func (rl *relay) forward(addr string, idle time.Duration, e *exchange.Exchange) *exchange.Response {
	c, err := rl.take(addr)
	if err != nil {
		return plain(http.StatusBadGateway, err.Error())
	}
	resp, err := c.Do(&Call{Context: e.Context, Request: &e.Request, Now: time.Now(), Deadline: time.Now().Add(patience), Idle: idle})
	if err != nil {
		return plain(http.StatusBadGateway, err.Error())
	}
	rl.mu.Lock()
	rl.interrupt = resp.Interrupt
	rl.mu.Unlock()
	e.Done = append(e.Done, func(e *exchange.Exchange) {
		rl.mu.Lock()
		defer rl.mu.Unlock()
		if c.Finish() {
			rl.idle = append(rl.idle, c)
		}
		rl.results <- e.Result
	})
	return resp
}

func (rl *relay) take(addr string) (*ClientConn, error) {
	rl.mu.Lock()
	defer rl.mu.Unlock()
	if n := len(rl.idle); n > 0 {
		c := rl.idle[n-1]
		rl.idle = rl.idle[:n-1]
		return c, nil
	}
	rl.dialled++
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return NewClientConn(c), nil
}

// connections returns how many were made to the upstream.
func (rl *relay) connections() int {
	rl.mu.Lock()
	defer rl.mu.Unlock()
	return rl.dialled
}

// lent returns how many pipes have something in them, once as many have as wanted.
func (rl *relay) lent(want int64) {
	rl.t.Helper()
	for deadline := time.Now().Add(patience); rl.server.pipes.lent.Load() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			rl.t.Fatalf("%d pipes are lent, want %d", rl.server.pipes.lent.Load(), want)
		}
	}
}

// longest is more than what the buffers between an upstream and a client that does
// not read hold.
const longest = 8 << 20

// random repeats, but in step with no page or buffer.
var random = sync.OnceValue(func() []byte {
	b := make([]byte, 65521)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return bytes.Repeat(b, longest/len(b)+3)
})

// lazy returns a client whose system takes only little before it reads.
func (rl *relay) lazy() *client {
	rl.t.Helper()
	c := rl.dial()
	if err := c.Conn.(*net.TCPConn).SetReadBuffer(256 << 10); err != nil {
		rl.t.Fatal(err)
	}
	return c
}

// noise returns at most longest bytes, others for each seed up to 65520.
func noise(seed, size int) []byte { return random()[seed : seed+size] }

// sized answers "/LENGTH/SEED/CUT" with noise, written in two parts.
func sized(c net.Conn, r *http.Request) {
	length, seed, cut := parameters(r.URL.Path)
	out := fmt.Appendf(nil, "HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\n\r\n", length)
	if r.Method != http.MethodHead {
		out = append(out, noise(seed, length)...)
	}
	cut = min(cut, len(out))
	_, _ = c.Write(out[:cut])
	_, _ = c.Write(out[cut:])
}

func parameters(path string) (length, seed, cut int) {
	parts := strings.Split(path, "/")
	length, _ = strconv.Atoi(parts[1])
	seed, _ = strconv.Atoi(parts[2])
	cut, _ = strconv.Atoi(parts[3])
	return length, seed, cut
}

func TestLongBodiesArriveAsTheyWereSent(t *testing.T) {
	rl := relayTo(t, Config{}, time.Minute, sized)
	around := []int{0, 1, clientBuffer, smallBuffer, spliceFrom, spliceFrom + clientBuffer, spliceFrom + smallBuffer, pipeSize, 2 * pipeSize, 1_000_000}
	rapid.Check(t, func(rt *rapid.T) {
		type asked struct {
			method             string
			length, seed, part int
		}
		requests := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) asked {
			return asked{
				rapid.SampledFrom([]string{"GET", "GET", "GET", "HEAD"}).Draw(t, "method"),
				max(0, rapid.SampledFrom(around).Draw(t, "around")+rapid.IntRange(-100, 100).Draw(t, "off")),
				rapid.IntRange(0, 65520).Draw(t, "seed"), rapid.IntRange(1, pipeSize).Draw(t, "part"),
			}
		}), 1, 4).Draw(rt, "requests")
		c := rl.dial()
		defer c.Close()
		for _, r := range requests {
			c.send(fmt.Sprintf("%s /%d/%d/%d HTTP/1.1\r\nHost: a\r\n\r\n", r.method, r.length, r.seed, r.part))
		}
		for _, r := range requests {
			resp, body := c.receive(r.method)
			want := noise(r.seed, r.length)
			if r.method == "HEAD" {
				want = nil
			}
			if resp.StatusCode != 206 || resp.ContentLength != int64(r.length) || body != string(want) {
				rt.Fatalf("%+v: status %d, length %d, and %d bytes that differ", r, resp.StatusCode, resp.ContentLength, len(body))
			}
			if got := <-rl.results; got.Err != nil || got.Bytes != int64(len(want)) {
				rt.Fatalf("%+v: result %+v", r, got)
			}
		}
	})
	if n := rl.connections(); n != 1 {
		t.Errorf("%d connections to the upstream, want one that is used again", n)
	}
	rl.lent(0)
}

func TestASplicedBodyIsMovedByPipe(t *testing.T) {
	rl := relayTo(t, Config{}, time.Minute, sized)
	c := rl.lazy()
	c.send(fmt.Sprintf("GET /%d/1/1 HTTP/1.1\r\nHost: a\r\n\r\nGET /10/2/1 HTTP/1.1\r\nHost: a\r\n\r\n", longest))
	rl.lent(1)
	if _, body := c.receive("GET"); body != string(noise(1, longest)) {
		t.Errorf("%d bytes arrived that differ", len(body))
	}
	rl.lent(0)
	if _, body := c.receive("GET"); body != string(noise(2, 10)) {
		t.Errorf("the next answer is %q", body)
	}
}

func TestBodiesAreCopiedWhenThereAreNoPipes(t *testing.T) {
	rl := relayTo(t, Config{}, time.Minute, sized)
	rl.server.pipes.lent.Add(maxPipes)
	c := rl.dial()
	for range 2 {
		c.send("GET /1000000/3/1 HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, body := c.receive("GET"); body != string(noise(3, 1_000_000)) {
			t.Errorf("%d bytes arrived that differ", len(body))
		}
	}
	rl.lent(maxPipes)
}

// TestASplicedBodyThatBreaksOff: the client gets what came, and learns from the
// end of its connection that there should have been more.
func TestASplicedBodyThatBreaksOff(t *testing.T) {
	lengths := []int{spliceFrom / 2, spliceFrom, pipeSize + 1, 3 * pipeSize}
	for name, broken := range map[string]struct {
		end  func(c *net.TCPConn)
		idle time.Duration
		sent []int
		want error
	}{
		"ends":   {func(c *net.TCPConn) { c.Close() }, time.Minute, lengths, io.ErrUnexpectedEOF},
		"resets": {func(c *net.TCPConn) { c.SetLinger(0); c.Close() }, time.Minute, lengths, syscall.ECONNRESET},
		// Noticed when the glance is over.
		"stalls": {func(*net.TCPConn) {}, 100 * time.Millisecond, lengths[2:3], ErrTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			for _, sent := range broken.sent {
				arrived := make(chan struct{})
				rl := relayTo(t, Config{}, broken.idle, func(c net.Conn, r *http.Request) {
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
					_, _ = c.Write(noise(4, sent))
					// A reset takes along what has not been read.
					<-arrived
					broken.end(c.(*net.TCPConn))
				})
				c := rl.dial()
				c.send(lines("GET / HTTP/1.1", "Host: a"))
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, sent)
				if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, noise(4, sent)) {
					t.Errorf("%d bytes sent: what came differs, %v", sent, err)
				}
				close(arrived)
				if rest, err := io.ReadAll(resp.Body); err == nil || len(rest) > 0 {
					t.Errorf("%d bytes sent: %d more and %v", sent, len(rest), err)
				}
				if result := <-rl.results; !errors.Is(result.Err, broken.want) || result.Bytes != int64(sent) {
					t.Errorf("%d bytes sent: result %+v, want %v", sent, result, broken.want)
				}
				rl.lent(0)
			}
		})
	}
}

func TestASplicedBodyWhoseClientGoes(t *testing.T) {
	rl := relayTo(t, Config{}, time.Minute, sized)
	c := rl.lazy()
	c.send(fmt.Sprintf("GET /%d/7/1 HTTP/1.1\r\nHost: a\r\n\r\n", longest))
	rl.lent(1)
	c.Conn.(*net.TCPConn).SetLinger(0)
	c.Close()
	if result := <-rl.results; !errors.Is(result.Err, exchange.ErrClientGone) || result.Bytes == 0 || result.Bytes >= longest {
		t.Errorf("result %+v", result)
	}
	rl.mu.Lock()
	defer rl.mu.Unlock()
	if len(rl.idle) > 0 {
		t.Error("a connection with the rest of an answer on it is kept")
	}
	rl.lent(0)
}

func TestASplicedBodyWhoseClientStalls(t *testing.T) {
	rl := relayTo(t, Config{WriteTimeout: 100 * time.Millisecond}, time.Minute, sized)
	c := rl.lazy()
	c.send(fmt.Sprintf("GET /%d/1/1 HTTP/1.1\r\nHost: a\r\n\r\n", longest))
	if result := <-rl.results; !errors.Is(result.Err, exchange.ErrClientSlow) || result.Bytes == 0 {
		t.Errorf("result %+v", result)
	}
	rl.lent(0)
}

func TestASplicedBodyIsInterrupted(t *testing.T) {
	rl := relayTo(t, Config{}, time.Minute, func(c net.Conn, r *http.Request) {
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
		_, _ = c.Write(make([]byte, pipeSize))
	})
	c := rl.dial()
	c.send(lines("GET / HTTP/1.1", "Host: a"))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, resp.Body, pipeSize); err != nil {
		t.Fatal(err)
	}
	why := errors.New("revoked")
	rl.mu.Lock()
	rl.interrupt(why)
	rl.mu.Unlock()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the body ended as if it were whole")
	}
	if result := <-rl.results; !errors.Is(result.Err, why) {
		t.Errorf("result %+v", result)
	}
}

func TestASplicedBodyOutlastsADrain(t *testing.T) {
	rest := make(chan struct{})
	rl := relayTo(t, Config{}, time.Minute, func(c net.Conn, r *http.Request) {
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
		body := noise(5, 1_000_000)
		_, _ = c.Write(body[:spliceFrom])
		<-rest
		_, _ = c.Write(body[spliceFrom:])
	})
	c := rl.dial()
	c.send(lines("GET / HTTP/1.1", "Host: a"))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	rl.server.Drain()
	close(rest)
	if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(body, noise(5, 1_000_000)) {
		t.Errorf("%d bytes arrived, %v", len(body), err)
	}
	rl.empty()
}

// slowSocket is the raw connection of a client that takes so much each time that it
// is waited for.
type slowSocket struct {
	syscall.RawConn
	fd    int
	take  func()
	calls int
}

func (s *slowSocket) Write(f func(uintptr) bool) error {
	for s.calls++; !f(uintptr(s.fd)); {
		s.take()
	}
	return nil
}

// noDeadlines is a connection whose deadlines do not matter.
type noDeadlines struct{ net.Conn }

func (noDeadlines) SetWriteDeadline(time.Time) error { return nil }

// TestTheTimeToTakeMoreBeginsAnew: who takes what one write holds in time is not
// too slow, however much is in the pipe.
func TestTheTimeToTakeMoreBeginsAnew(t *testing.T) {
	var fds [2]int
	if err := pair(&fds); err != nil {
		t.Fatal(err)
	}
	defer closeEnds(fds)
	var s pipes
	p := s.take()
	defer s.give(p)
	sent := noise(6, 128<<10)
	if n, err := unix.Write(p.ends[1], sent); n != len(sent) || err != nil {
		t.Fatal(n, err)
	}
	p.holds = len(sent)
	var got []byte
	client := &slowSocket{fd: fds[0]}
	client.take = func() {
		var some [1000]byte
		n, err := unix.Read(fds[1], some[:])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, some[:n]...)
	}
	c := &conn{server: NewServer(Config{}), net: noDeadlines{}, raw: client}
	moving, moved := &splicing{pipe: p}, int64(0)
	if err := c.writeRaw(moving, moving.empty, &moved); err != nil || moved != int64(len(sent)) {
		t.Error(moved, err)
	}
	for len(got) < len(sent) {
		client.take()
	}
	if !bytes.Equal(got, sent) {
		t.Error("what came differs")
	}
	if want := len(sent) / largeBuffer; client.calls != want {
		t.Errorf("the time began %d times, want %d", client.calls, want)
	}
}

// pair makes two sockets of which each takes only little at once.
func pair(fds *[2]int) (err error) {
	if *fds, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	return unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1)
}

func TestAPipeThatIsNotEmptyIsClosed(t *testing.T) {
	var s pipes
	p := s.take()
	if n, err := unix.FcntlInt(uintptr(p.ends[0]), unix.F_GETPIPE_SZ, 0); n < pipeSize || err != nil {
		t.Errorf("a pipe of %d bytes, %v", n, err)
	}
	before := p.inode(t)
	p.holds = 1
	s.give(p)
	if after := p.inode(t); after == before {
		t.Error("the pipe is open")
	}
	if s.lent.Load() != 0 {
		t.Error("it is still counted")
	}
}

// inode names the pipe behind the file descriptor; "" when it is closed.
func (p *pipe) inode(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", p.ends[0]))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return name
}
