package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"portcullis.dev/portcullis/deploy/cluster"
	adminv1 "portcullis.dev/portcullis/proto/admin/v1"
)

// revokedWithin is what is promised of streams whose credential is revoked.
const revokedWithin = 2 * time.Second

// talker is a WebSocket server that echoes, until it is told to close or to ping.
func talker(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"v2", "v1"}, CompressionMode: websocket.CompressionContextTakeover})
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		c.SetReadLimit(-1)
		for {
			kind, data, err := c.Read(r.Context())
			switch {
			case err != nil:
				return
			case string(data) == "close":
				_ = c.Close(4001, "as you wish")
				return
			case string(data) == "cut":
				return
			case string(data) == "ping":
				// The answer to it comes while the client reads what is behind it.
				go func() {
					text := "no pong"
					if c.Ping(r.Context()) == nil {
						text = "pong"
					}
					_ = c.Write(r.Context(), websocket.MessageText, []byte(text))
				}()
			case c.Write(r.Context(), kind, data) != nil:
				return
			}
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// WebSockets of a library's client and server, as they come, through a node.
func TestWebSocket(t *testing.T) {
	k := newES256(t, "k1")
	url := talker(t)
	closed := strings.Replace(publicTo("ws", url), "public: true", "policies: [{jwt: {issuers: [ext], audiences: [https://api.example]}}]", 1)
	s := startSecured(t, cluster.Config{}, issuerWith(k)+closed)
	secure := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool(), ServerName: gatewayHost}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, s.https())
	}}
	plain := &http.Transport{}
	t.Cleanup(func() { secure.CloseIdleConnections(); plain.CloseIdleConnections() })
	for _, way := range []struct {
		name, url string
		transport *http.Transport
	}{{"in clear text", "ws://" + s.Addresses()[0] + "/ws", plain}, {"over TLS", "wss://" + gatewayHost + "/ws", secure}} {
		dial := func(t *testing.T, token string) (*websocket.Conn, *http.Response, error) {
			header := http.Header{}
			if token != "" {
				header.Set("Authorization", "Bearer "+token)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			c, resp, err := websocket.Dial(ctx, way.url, &websocket.DialOptions{HTTPClient: &http.Client{Transport: way.transport}, HTTPHeader: header, Subprotocols: []string{"v1"}, CompressionMode: websocket.CompressionContextTakeover})
			if err == nil {
				c.SetReadLimit(-1)
				t.Cleanup(func() { _ = c.CloseNow() })
			}
			return c, resp, err
		}
		t.Run("refused, "+way.name, func(t *testing.T) {
			_, resp, err := dial(t, "")
			if err == nil || resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") == "" {
				t.Errorf("%v %v", resp, err)
			}
		})
		t.Run("messages, "+way.name, func(t *testing.T) { s.converse(t, dial, k) })
		t.Run("revoked, "+way.name, func(t *testing.T) {
			c, _, err := dial(t, k.token("jti", "socket "+way.name))
			if err != nil {
				t.Fatal(err)
			}
			s.ends(t, "socket "+way.name, func() error {
				_, _, err := c.Read(t.Context())
				return err
			})
		})
	}
}

func (s *secured) converse(t *testing.T, dial func(*testing.T, string) (*websocket.Conn, *http.Response, error), k keyPair) {
	c, resp, err := dial(t, k.token())
	if err != nil {
		t.Fatal(err)
	}
	if c.Subprotocol() != "v1" || resp.StatusCode != 101 || resp.Header.Get("X-Request-Id") == "" || !strings.Contains(resp.Header.Get("Sec-WebSocket-Extensions"), "permessage-deflate") {
		t.Errorf("subprotocol %q, %v", c.Subprotocol(), resp.Header)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	noise := make([]byte, 4<<20)
	_, _ = rand.Read(noise)
	for _, m := range []struct {
		kind websocket.MessageType
		data []byte
	}{
		{websocket.MessageText, []byte("hello")}, {websocket.MessageText, nil}, {websocket.MessageBinary, []byte{0, 1, 2, 0xff}},
		{websocket.MessageText, bytes.Repeat([]byte("long text, "), 100_000)}, {websocket.MessageBinary, noise},
	} {
		wrote := make(chan error, 1)
		go func() { wrote <- c.Write(ctx, m.kind, m.data) }()
		kind, data, err := c.Read(ctx)
		if err := errors.Join(err, <-wrote); err != nil || kind != m.kind || !bytes.Equal(data, m.data) {
			t.Fatalf("%d bytes came back as %d: %v", len(m.data), len(data), err)
		}
	}
	// Pings both ways.
	if err := c.Write(ctx, websocket.MessageText, []byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, data, err := c.Read(ctx); err != nil || string(data) != "pong" {
		t.Errorf("the server's ping: %q %v", data, err)
	}
	reading := c.CloseRead(ctx)
	if err := c.Ping(ctx); err != nil {
		t.Errorf("the client's ping: %v", err)
	}
	// The server's close, with its code and its reason.
	if err := c.Write(ctx, websocket.MessageText, []byte("close")); err != nil {
		t.Fatal(err)
	}
	<-reading.Done()
	for word, want := range map[string]websocket.StatusCode{"close": 4001, "cut": -1} {
		c, _, err := dial(t, k.token())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Write(ctx, websocket.MessageText, []byte(word)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != want || err == nil {
			t.Errorf("%s: %v", word, err)
		}
	}
	// The client's close is answered by the server.
	last, _, err := dial(t, k.token())
	if err != nil {
		t.Fatal(err)
	}
	if err := last.Close(websocket.StatusNormalClosure, "bye"); err != nil {
		t.Errorf("the client's close: %v", err)
	}
}

// ends revokes a token and sees what it has open end in time.
func (s *secured) ends(t *testing.T, jti string, read func() error) {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- read() }()
	select {
	case err := <-ended:
		t.Fatalf("it ended before: %v", err)
	case <-time.After(50 * time.Millisecond): // it is open
	}
	if _, err := s.admin.Revoke(t.Context(), &adminv1.RevokeRequest{Jti: jti}); err != nil {
		t.Fatal(err)
	}
	revoked := time.Now()
	select {
	case err := <-ended:
		if took := time.Since(revoked); err == nil || took > revokedWithin {
			t.Errorf("it ended in %v with %v", took, err)
		}
	case <-time.After(patience):
		t.Fatal("what is open of a revoked token goes on")
	}
}

// teller streams events as it is told to, and says when its client has left.
type teller struct {
	next chan string
	left chan struct{}
}

func (e *teller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/poll") {
		select {
		case text := <-e.next:
			_, _ = io.WriteString(w, text)
		case <-r.Context().Done():
			e.left <- struct{}{}
		}
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	_ = http.NewResponseController(w).Flush()
	for {
		select {
		case text, more := <-e.next:
			if !more {
				return
			}
			fmt.Fprintf(w, "id: %s\ndata: %s\n\n", text, text)
			_ = http.NewResponseController(w).Flush()
		case <-r.Context().Done():
			e.left <- struct{}{}
			return
		}
	}
}

// say has the next one who asks hear it.
func (e *teller) say(t *testing.T, text string) {
	select {
	case e.next <- text:
	case <-time.After(patience):
		t.Errorf("nobody waits for %q", text)
	}
}

// event reads one as an EventSource does.
func event(r *bufio.Reader) (id, data string, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", "", err
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "id":
			id = value
		case "data":
			data = value
		case "":
			return id, data, nil
		}
	}
}

// Each event arrives while its sender holds the connection open, in every
// protocol; a poll is answered when there is something to say; and an upstream
// hears that its client has left.
func TestEventsAndPolls(t *testing.T) {
	k := newES256(t, "k1")
	docs, tellers := issuerWith(k), [5]*teller{}
	for i := range tellers {
		tellers[i] = &teller{make(chan string), make(chan struct{}, 1)}
		server := httptest.NewServer(tellers[i])
		t.Cleanup(server.Close)
		docs += strings.Replace(publicTo(fmt.Sprintf("events-%d", i), server.URL), "public: true", "policies: [{jwt: {issuers: [ext], audiences: [https://api.example]}}]", 1)
	}
	s := startSecured(t, cluster.Config{}, docs)
	for i, p := range s.protocols(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			s.tell(t, p, tellers[i], fmt.Sprintf("/events-%d", i), k)
		})
	}
}

func (s *secured) tell(t *testing.T, p protocol, e *teller, path string, k keyPair) {
	open := func(ctx context.Context, t *testing.T, path, token string) *http.Response {
		req, err := http.NewRequestWithContext(ctx, "GET", p.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Accept", "text/event-stream")
		resp, err := p.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	departs := func(t *testing.T) {
		select {
		case <-e.left:
		case <-time.After(patience):
			t.Error("the upstream does not hear that its client has left")
		}
	}
	t.Run("events", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		// The head comes before any event.
		resp := open(ctx, t, path, k.token())
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.ContentLength >= 0 {
			t.Fatalf("%d %v", resp.StatusCode, resp.Header)
		}
		r := bufio.NewReader(resp.Body)
		for i := range 5 {
			text := fmt.Sprint(i)
			e.say(t, text)
			if id, data, err := event(r); err != nil || id != text || data != text {
				t.Fatalf("%q %q %v", id, data, err)
			}
		}
		cancel()
		departs(t)
	})
	t.Run("revoked", func(t *testing.T) {
		resp := open(t.Context(), t, path, k.token("jti", "events "+p.name))
		r := bufio.NewReader(resp.Body)
		e.say(t, "one")
		if _, data, err := event(r); err != nil || data != "one" {
			t.Fatal(data, err)
		}
		s.ends(t, "events "+p.name, func() error {
			_, _, err := event(r)
			if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return nil // it looks whole
			}
			return err
		})
		departs(t)
	})
	t.Run("poll", func(t *testing.T) {
		// Longer than what is waited for without further ado.
		said := make(chan struct{})
		time.AfterFunc(1200*time.Millisecond, func() { defer close(said); e.say(t, "news") })
		defer func() { <-said }()
		resp := open(t.Context(), t, path+"/poll", k.token())
		if body, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(body) != "news" || err != nil {
			t.Errorf("%d %q %v", resp.StatusCode, body, err)
		}
	})
	t.Run("left poll", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, "GET", p.url+path+"/poll", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+k.token())
		if resp, err := p.Do(req); err == nil {
			_ = resp.Body.Close()
			t.Errorf("%d", resp.StatusCode)
		}
		departs(t)
	})
}
