package http1

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// A connection that is idle for long holds no buffer, and serves on when its
// client does.
func TestIdleConnectionsHoldNoBuffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewServer(Config{Handle: func(e *exchange.Exchange) *exchange.Response {
			text := e.Request.Path + " " + e.Request.Header.Get("X-A")
			return &exchange.Response{Status: 200, Body: exchange.Body{Reader: io.NopCloser(strings.NewReader(text)), Length: int64(len(text))}}
		}})
		client, server := net.Pipe()
		go s.Serve(server, &admission.Conn{}, nil)
		in := bufio.NewReader(client)
		expect := func(want string) {
			t.Helper()
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if body, err := io.ReadAll(resp.Body); err != nil || string(body) != want {
				t.Errorf("%q, %v; want %q", body, err, want)
			}
		}
		send := func(text string) {
			t.Helper()
			if _, err := io.WriteString(client, text); err != nil {
				t.Fatal(err)
			}
		}
		holds := func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			for c := range s.conns {
				return c.buf != nil
			}
			return false
		}
		long := strings.Repeat("a", 3*readBuffer)
		for range 3 {
			send("GET /one HTTP/1.1\r\nHost: h\r\nX-A: b\r\n\r\n")
			expect("/one b")
			time.Sleep(2 * dozeAfter)
			synctest.Wait()
			if holds() {
				t.Error("a buffer while nothing comes")
			}
			go io.WriteString(client, "GET /two HTTP/1.1\r\nHost: h\r\nX-A: c\r\n\r\nGET /three HTTP/1.1\r\nHost: h\r\n\r\n")
			expect("/two c")
			expect("/three ")
			time.Sleep(2 * dozeAfter)
			send("G")
			synctest.Wait()
			time.Sleep(2 * dozeAfter)
			go io.WriteString(client, "ET /four HTTP/1.1\r\nHost: h\r\nX-A: "+long+"\r\n\r\n")
			expect("/four " + long)
		}
		time.Sleep(s.config.IdleTimeout + time.Second)
		synctest.Wait()
		if s.Open() != 0 {
			t.Error("an idle connection is not closed")
		}
		client.Close()
	})
}
