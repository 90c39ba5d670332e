package http1

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"

	"portcullis.dev/portcullis/pkg/identity/certtest"
)

// gathered sends what was written between two flushes in one piece.
type gathered struct {
	net.Conn
	held  bytes.Buffer
	holds bool
}

func (g *gathered) Write(p []byte) (int, error) {
	if g.holds {
		return g.held.Write(p)
	}
	return g.Conn.Write(p)
}

// What an upstream sends behind its answer is nobody's: in clear text, and where
// TLS has read it from the socket together with the answer.
func TestWhatComesBehindAnAnswerEndsTheConnection(t *testing.T) {
	ca := certtest.New(t, "ca")
	shown := ca.Issue(t, certtest.Spec{Hosts: []string{"up.example"}}).TLS(t)
	const okay = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	for name, secure := range map[string]bool{"clear text": false, "TLS": true} {
		for _, behind := range []string{"", okay} {
			near, far := socketPair(t)
			g := &gathered{Conn: far}
			var client, server net.Conn = near, g
			if secure {
				client = tls.Client(near, &tls.Config{RootCAs: ca.Pool(), ServerName: "up.example"})
				server = tls.Server(g, &tls.Config{Certificates: []tls.Certificate{shown}})
			}
			served := make(chan struct{})
			go func() {
				defer close(served)
				r := bufio.NewReader(server)
				for {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					g.holds = true
					_, _ = io.WriteString(server, okay)
					if behind != "" {
						_, _ = io.WriteString(server, behind)
					}
					g.holds = false
					_, _ = far.Write(g.held.Bytes())
					g.held.Reset()
				}
			}()
			c := NewClientConn(client)
			for range 2 {
				if status, body, err := answer(t, c, callFor("GET")); status != 200 || body != "ok" || err != nil {
					t.Fatalf("%s: %d %q %v", name, status, body, err)
				}
				if usable := c.Finish() && c.Alive(); usable != (behind == "") {
					t.Errorf("%s: with %q behind its answer a connection is used again: %t", name, behind, usable)
				}
				if behind != "" {
					break
				}
			}
			c.Close()
			far.Close()
			<-served
		}
	}
}

// What came unasked is found also where the deadline of a request before, which
// serves the next one, passes between the two.
func TestTheLookDependsOnNoDeadline(t *testing.T) {
	const okay = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	near, far := socketPair(t)
	defer far.Close()
	c := NewClientConn(near)
	defer c.Close()
	_, _ = io.WriteString(far, okay)
	if status, _, err := answer(t, c, callFor("GET")); status != 200 || err != nil || !c.Finish() {
		t.Fatal(status, err)
	}
	_, _ = io.WriteString(far, okay)
	for c.Alive() {
		runtime.Gosched()
	}
	call := callFor("GET")
	c.arm(past)
	c.armed = call.Now.Add(glance / 2)
	if resp, err := c.Do(call); !errors.Is(err, ErrUnsent) {
		t.Errorf("%v, %v", resp, err)
	}
}
