//lint:file-ignore SA1019 the library's client is what ours is compared with

package http2

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
	"time"

	h2 "golang.org/x/net/http2"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
)

// cannedBlock is :status 200 and accept-ranges without a value, both of the static
// table: they cost the decoder no memory.
func cannedBlock() []byte { return []byte{0x80 | 8, 0x80 | 18} }

func ordinary() *exchange.Request {
	return wanted("GET", "/users/42", exchange.Field{Name: "Accept", Value: "*/*"}, exchange.Field{Name: "User-Agent", Value: "test"},
		exchange.Field{Name: "Authorization", Value: "Bearer abc"}, exchange.Field{Name: "X-Request-Id", Value: "0123456789abcdef"})
}

// unary sends one request and takes its answer, as the proxy does.
func unary(t testing.TB, c *ClientConn, call *http1.Call, buffer []byte) {
	s := c.Stream()
	if s == nil {
		t.Error("no stream")
		return
	}
	resp, done, err := s.Do(call)
	if err != nil {
		t.Error(err)
		return
	}
	if resp.Body.Reader != nil {
		for err == nil {
			_, err = resp.Body.Reader.Read(buffer)
		}
		if err != io.EOF {
			t.Error(err)
		}
		resp.Body.Reader.Close()
	}
	done(nil)
}

func TestClientAllocatesNothing(t *testing.T) {
	if raced() {
		t.Skip("THE RACE DETECTOR has pools forget what they hold: allocations are not counted")
	}
	c := connect(t, canned(t, cannedBlock(), 100))
	buffer := make([]byte, 4<<10)
	for name, call := range map[string]*http1.Call{"GET": asking(ordinary()), "POST": asking(ordinary())} {
		if name == "POST" {
			call.Request.Method, call.Body, call.Whole = "POST", []byte("hello"), true
		}
		once := func() {
			call.Now = time.Now()
			call.Deadline = call.Now.Add(patience)
			unary(t, c.ClientConn, call, buffer)
		}
		once()
		if n := testing.AllocsPerRun(500, once); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// raced tells whether the race detector is at work.
func raced() bool {
	info, _ := debug.ReadBuildInfo()
	return slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// processTime is what the process has used of the processors.
func processTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkClient compares the CPU of a request, the upstream's included, with that
// of the library's client. go test -bench Client -run '^$' prints the ratio.
func BenchmarkClient(b *testing.B) {
	address := canned(b, cannedBlock(), 100)
	for _, parallel := range []int{1, 32} {
		var own, library time.Duration
		b.Run(fmt.Sprintf("own/%d", parallel), func(b *testing.B) {
			c := connect(b, address)
			own = perRequest(b, parallel, func(buffer []byte) {
				unary(b, c.ClientConn, asking(ordinary()), buffer)
			})
		})
		b.Run(fmt.Sprintf("library/%d", parallel), func(b *testing.B) {
			nc, err := net.Dial("tcp", address)
			if err != nil {
				b.Fatal(err)
			}
			c, err := (&h2.Transport{AllowHTTP: true, DisableCompression: true}).NewClientConn(nc)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			library = perRequest(b, parallel, func(buffer []byte) { askLibrary(b, c, buffer) })
		})
		if own > 0 && library > 0 {
			fmt.Fprintf(os.Stdout, "%d at once: %v a request, the library's %v: %.2f of it\n", parallel, own, library, float64(own)/float64(library))
		}
	}
}

func perRequest(b *testing.B, parallel int, ask func(buffer []byte)) time.Duration {
	b.SetParallelism(parallel)
	b.ReportAllocs()
	b.ResetTimer()
	before := processTime()
	b.RunParallel(func(pb *testing.PB) {
		buffer := make([]byte, 4<<10)
		for pb.Next() {
			ask(buffer)
		}
	})
	used := (processTime() - before) / time.Duration(b.N)
	b.ReportMetric(float64(used.Nanoseconds()), "cpu-ns/op")
	return used
}

func askLibrary(b *testing.B, c *h2.ClientConn, buffer []byte) {
	in := ordinary()
	r := &http.Request{Method: in.Method, URL: &url.URL{Scheme: "http", Host: in.Authority, Opaque: in.Path}, Host: in.Authority, Header: http.Header{}}
	for _, f := range in.Header.Fields() {
		r.Header[http.CanonicalHeaderKey(f.Name)] = []string{f.Value}
	}
	resp, err := c.RoundTrip(r)
	if err != nil {
		b.Error(err)
		return
	}
	for err == nil {
		_, err = resp.Body.Read(buffer)
	}
	resp.Body.Close()
}
