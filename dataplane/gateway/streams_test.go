package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/dataplane/http1"
	"portcullis.dev/portcullis/dataplane/listen"
	"portcullis.dev/portcullis/pkg/revocation"
	controlv1 "portcullis.dev/portcullis/proto/control/v1"
)

// patience bounds waits that end by an event; it is no promise.
const patience = 20 * time.Second

// serve puts the gateway behind a front end on a port of its own, for the test's
// time.
func (r *rig) serve() (addr string) {
	r.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.Fatal(err)
	}
	front := http1.NewServer(http1.Config{Handle: r.g.Handle, Refuse: r.g.Refuse})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- listen.Run(ctx, ln, front, listen.Config{Drain: patience}) }()
	go func() { done <- r.g.Run(ctx) }()
	r.Cleanup(func() {
		stop()
		for range 2 {
			if err := <-done; err != nil {
				r.Error(err)
			}
		}
	})
	return ln.Addr().String()
}

// streaming answers with an upgrade that echoes, or with events without end. It
// tells when the other side has gone.
func streaming(gone chan<- string) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Upgrade") != "" {
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_ = rw.Flush()
			_, _ = io.Copy(c, rw)
			gone <- "websocket"
			return
		}
		_, _ = io.WriteString(w, "data: 1\n\n")
		_ = http.NewResponseController(w).Flush()
		<-req.Context().Done()
		gone <- "events"
	}
}

// A stream ends soon after its token is revoked, on both sides; that of another
// token goes on, and so does an answer that has an end.
func TestStreamsOfARevokedTokenEnd(t *testing.T) {
	r := newRig(t)
	gone := make(chan string, 4)
	up := newOrigin(t, r, streaming(gone))
	r.apply(doc("Route", "default", "a", `{policies: [{jwt: {issuers: [local], audiences: ["https://api.example"]}}], backends: [{upstream: up}]}`) +
		issuer("default", "local", "https://local.example", secret) + upstreamAt("up", up.URL))
	addr := r.serve()
	open := func(jti, upgrade string) (net.Conn, *bufio.Reader) {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\n", mint(secret, map[string]any{"jti": jti}), upgrade)
		br := bufio.NewReader(c)
		status, err := br.ReadString('\n')
		if err != nil || !strings.Contains(status, " 101 ") && !strings.Contains(status, " 200 ") {
			t.Fatalf("%q %v", status, err)
		}
		for line := ""; line != "\r\n"; {
			if line, err = br.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		return c, br
	}
	const upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
	ping := func(c net.Conn, br *bufio.Reader) error {
		got := make([]byte, 4)
		_, err := io.WriteString(c, "ping")
		if err == nil {
			_, err = io.ReadFull(br, got)
		}
		return err
	}
	revokedSocket, revokedReader := open("out", upgrade)
	otherSocket, otherReader := open("in", upgrade)
	_, events := open("out", "")
	if line, err := events.ReadString('\n'); err != nil || line == "" {
		t.Fatal(err)
	}
	if err := errors.Join(ping(revokedSocket, revokedReader), ping(otherSocket, otherReader)); err != nil {
		t.Fatal(err)
	}
	r.deps.Revocations.Add(revocation.Entry{
		Kind: controlv1.RevocationKind_REVOCATION_KIND_JTI, Key: revocation.KeyOf(controlv1.RevocationKind_REVOCATION_KIND_JTI, "", "out"),
		Before: 1 << 62, Expires: started.Unix() + 3600,
	})
	if _, err := io.Copy(io.Discard, revokedReader); err != nil {
		t.Errorf("the socket was not closed: %v", err)
	}
	if _, err := io.Copy(io.Discard, events); err != nil {
		t.Errorf("the events were not cut: %v", err)
	}
	for range 2 {
		select {
		case <-gone:
		case <-time.After(patience):
			t.Fatal("the upstream still holds a stream")
		}
	}
	if err := ping(otherSocket, otherReader); err != nil {
		t.Errorf("the stream of another token: %v", err)
	}
	r.apply(doc("Application", "default", "web", "{disabled: true}"))
	if _, err := io.Copy(io.Discard, otherReader); err != nil {
		t.Errorf("the socket of a disabled application was not closed: %v", err)
	}
	<-gone
}

// The promise is two seconds: what is not in the answer's own time must be in the
// sweep's.
func TestStreamsAreSweptOftenEnough(t *testing.T) {
	if streamCheck > time.Second {
		t.Errorf("streams are looked at every %v; two looks must fit into 2s", streamCheck)
	}
}

// A stream needs all whom its levels let in: that of the outer one, too.
func TestStreamEndsWithAnOuterCredential(t *testing.T) {
	for value, want := range map[string]bool{"outer": true, "inner": true, "other": false} {
		r := newRig(t)
		e := request("GET", "a.test/")
		e.Identity = exchange.Identity{Method: "api_key", Subject: "inner"}
		e.Outer = []exchange.Identity{{Method: "jwt", Subject: "outer"}}
		var cause error
		r.g.streams.watch(e, &flight{g: r.g}, &exchange.Response{Body: exchange.Body{Length: -1}, Interrupt: func(err error) { cause = err }})
		kind := controlv1.RevocationKind_REVOCATION_KIND_SUBJECT
		r.deps.Revocations.Add(revocation.Entry{Kind: kind, Key: revocation.KeyOf(kind, "", value), Before: started.Unix()})
		r.g.sweep()
		if got := errors.Is(cause, errRevoked); got != want {
			t.Errorf("%s: ended %v", value, got)
		}
	}
}
