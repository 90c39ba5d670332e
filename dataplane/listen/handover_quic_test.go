package listen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	quicgo "github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http3"
	"portcullis.dev/portcullis/pkg/identity/certtest"
)

// generations are processes that succeed each other on the same sockets, in one
// process. The path "/long" is answered piece by piece until the test ends it.
type generations struct {
	t      *testing.T
	ca     *certtest.Authority
	pair   certtest.Pair
	pieces chan struct{}
	made   int
}

// life is one of them; its answers bear its number.
func (g *generations) life(sockets map[string]net.Listener, packets map[string]*os.File) *rig {
	g.t.Helper()
	g.made++
	name := fmt.Sprint(g.made)
	three := http3.New(http3.Config{Handle: func(e *exchange.Exchange) *exchange.Response {
		if e.Request.Path == "/long" {
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: io.NopCloser(&pieces{g.pieces, name}), Length: -1}}
		}
		return &exchange.Response{Status: 200, Body: exchange.Body{Reader: io.NopCloser(strings.NewReader(name)), Length: int64(len(name))}}
	}}, patience)
	r := startOn(g.t, Config{HTTP3: three, Packets: packets}, sockets)
	l := https(nil, "shop")
	l.Http3 = true
	r.use(g.t, gateway(l), certificate("shop", g.pair))
	return r
}

// pieces is a body of a byte for each piece that is due.
type pieces struct {
	due  <-chan struct{}
	name string
}

func (p *pieces) Read(b []byte) (int, error) {
	if _, more := <-p.due; !more {
		return 0, io.EOF
	}
	return copy(b, p.name), nil
}

// offered is what a successor gets.
func (g *generations) offered(r *rig) (map[string]net.Listener, map[string]*os.File) {
	g.t.Helper()
	packets, err := r.Packets()
	if err != nil || len(packets) == 0 {
		g.t.Fatal(packets, err)
	}
	files, err := r.Files()
	if err != nil {
		g.t.Fatal(err)
	}
	sockets := map[string]net.Listener{}
	for name, file := range files {
		if sockets[name], err = net.FileListener(file); err != nil {
			g.t.Fatal(err)
		}
		file.Close()
	}
	return sockets, packets
}

// succeed lets another take over.
func (g *generations) succeed(r *rig) *rig {
	g.t.Helper()
	next := g.life(g.offered(r))
	await(g.t, "HTTP/3", func() bool { return next.quic.altSvc("https") != "" })
	r.HandOver()
	return next
}

func await(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what, "did not come")
		}
	}
}

func (g *generations) client(at string) *http.Client {
	transport := &quichttp3.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool(g.ca), ServerName: "a.example"},
		Dial: func(ctx context.Context, _ string, c *tls.Config, q *quicgo.Config) (*quicgo.Conn, error) {
			return quicgo.DialAddrEarly(ctx, at, c, q)
		},
	}
	g.t.Cleanup(func() { transport.Close() })
	return &http.Client{Transport: transport, Timeout: 2 * patience}
}

func newGenerations(t *testing.T) (*generations, *rig) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ca := certtest.New(t, "ca")
	g := &generations{t: t, ca: ca, pair: ca.Issue(t, certtest.Spec{Hosts: []string{"a.example"}}), pieces: make(chan struct{})}
	r := g.life(map[string]net.Listener{"https": ln}, nil)
	await(t, "HTTP/3", func() bool { return r.quic.altSvc("https") != "" })
	return g, r
}

// A download that began in the first process ends there, while others take over
// one after the other; no request of clients that keep asking fails; who comes new
// is served by the newest.
func TestHandOverOfHTTP3(t *testing.T) {
	g, r := newGenerations(t)
	at := r.lns["https"].Addr().String()
	long, err := g.client(at).Get("https://a.example/long")
	if err != nil {
		t.Fatal(err)
	}
	defer long.Body.Close()
	piece := func() {
		t.Helper()
		select {
		case g.pieces <- struct{}{}:
		case <-time.After(patience):
			t.Fatal("nobody sends the download")
		}
		var b [1]byte
		if _, err := io.ReadFull(long.Body, b[:]); err != nil || b[0] != '1' {
			t.Fatalf("%q %v", b, err)
		}
	}
	var asked [4]atomic.Int64
	var failed atomic.Int64
	var asking sync.WaitGroup
	// goOn waits until every client has been answered again, so that none meets two
	// hand-overs with one request.
	goOn := func() {
		t.Helper()
		for i := range asked {
			before := asked[i].Load()
			await(t, "load", func() bool { return asked[i].Load() > before+5 })
		}
	}
	stop := make(chan struct{})
	for i := range asked {
		asking.Go(func() {
			client := g.client(at)
			for {
				select {
				case <-stop:
					return
				default:
				}
				asked[i].Add(1)
				if status, text, err := fetch(client); err != nil || status != 200 {
					failed.Add(1)
					t.Errorf("%d %q %v", status, text, err)
				}
			}
		})
	}
	all := []*rig{r}
	for range 3 {
		piece()
		goOn()
		r = g.succeed(r)
		all = append(all, r)
		await(t, "the newest", func() bool {
			_, text, err := fetch(g.client(at))
			return err == nil && text == fmt.Sprint(g.made)
		})
		piece()
	}
	// Those between have drained; the first has not.
	for i, r := range all[1:3] {
		if err := <-r.ended; err != nil {
			t.Errorf("process %d: %v", i+2, err)
		}
		r.ended <- nil
	}
	piece()
	close(g.pieces)
	if rest, err := io.ReadAll(long.Body); err != nil || len(rest) > 0 {
		t.Errorf("%q %v", rest, err)
	}
	if err := <-all[0].ended; err != nil {
		t.Error(err)
	}
	all[0].ended <- nil
	goOn()
	close(stop)
	asking.Wait()
	sum := int64(0)
	for i := range asked {
		sum += asked[i].Load()
	}
	t.Logf("%d requests over 3 hand-overs, %d failed", sum, failed.Load())
}

// fetch asks once, and again where the client library ended its own connection: on
// a GOAWAY it closes the one on which it just begins a request.
func fetch(c *http.Client) (int, string, error) {
	resp, err := c.Get("https://a.example/")
	if own := (*quichttp3.Error)(nil); errors.As(err, &own) && !own.Remote && own.ErrorCode == quichttp3.ErrCodeNoError {
		resp, err = c.Get("https://a.example/")
	}
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// A successor that comes to nothing changes nothing for HTTP/3, nor does one that
// wants none.
func TestFailedSuccessorOfHTTP3(t *testing.T) {
	g, r := newGenerations(t)
	client := g.client(r.lns["https"].Addr().String())
	ask := func() {
		t.Helper()
		if status, text, err := fetch(client); err != nil || status != 200 || text != "1" {
			t.Errorf("%d %q %v", status, text, err)
		}
	}
	ask()
	failed := g.life(g.offered(r))
	ask()
	failed.stop()
	if err := <-failed.ended; err != nil {
		t.Error(err)
	}
	failed.ended <- nil
	ask()
	sockets, packets := g.offered(r)
	unwilling := startOn(t, Config{Packets: packets}, sockets)
	unwilling.use(t, gateway(https(nil, "shop")), certificate("shop", g.pair))
	r.quic.handOver()
	unwilling.stop()
	if err := <-unwilling.ended; err != nil {
		t.Error(err)
	}
	unwilling.ended <- nil
	ask()
	sockets, _ = g.offered(r)
	if _, err := New(Config{HTTP1: front(nil), Packets: map[string]*os.File{"quic/other/socket": nil}}, sockets); err == nil {
		t.Error("what belongs to nobody is taken")
	}
	for _, ln := range sockets {
		ln.Close()
	}
}
