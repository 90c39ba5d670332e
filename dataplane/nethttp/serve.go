package nethttp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// serve is one request: the head that conn vetted, the body that net/http reads.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.open.work(1)
	defer s.open.work(-1)
	c := r.Context().Value(connKey{}).(*conn)
	h := c.pop()
	if h == nil {
		panic(http.ErrAbortHandler)
	}
	e := s.exchanges.Get().(*exchange.Exchange)
	defer func() {
		e.End()
		e.Reset()
		s.exchanges.Put(e)
	}()
	e.Context, e.Received = r.Context(), h.received
	if h.length < 0 {
		ctx, done := c.because(r.Context())
		defer done()
		e.Context = ctx
	}
	resp := s.answer(e, c, h, r)
	s.respond(w, e, c, resp)
}

// because derives a context that ends with parent and says why. net/http ends a
// request's context whenever reading from the connection fails: also when the
// body is broken, and then the client has not left but is owed a 400.
func (c *conn) because(parent context.Context) (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(parent))
	stop := context.AfterFunc(parent, func() {
		if broken := c.broken.Load(); broken != nil {
			cancel(*broken)
			return
		}
		cancel(context.Cause(parent))
	})
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// answer asks the handler, or for the refusal that the request deserves.
func (s *Server) answer(e *exchange.Exchange, c *conn, h *head, r *http.Request) (resp *exchange.Response) {
	settings := s.settings()
	refused := s.admit(e, c, h, settings)
	if e.ID == "" {
		e.ID = exchange.NewID()
	}
	if refused == nil && h.length > settings.maxBodyBytes() {
		refused = &refusal{http.StatusRequestEntityTooLarge, reasonTooLarge, fmt.Errorf("body of %d bytes", h.length)}
	}
	if refused != nil {
		e.Why.Detail = refused.detail.Error()
		// What follows on the connection may be part of what was refused.
		c.hangUp = true
		c.linger.Store(true)
		return s.config.Refuse(e, refused.reason, refused.status)
	}
	if h.length != 0 {
		e.Request.Body = exchange.Body{Reader: &body{r.Body, c, settings.maxBodyBytes()}, Length: h.length}
	}
	e.Request.Header.Set("X-Request-Id", e.ID)
	defer func() {
		if v := recover(); v != nil {
			s.config.Log.Error("panic while handling a request", slog.String("request_id", e.ID), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			resp = s.config.Refuse(e, reasonInternal, http.StatusInternalServerError)
		}
	}()
	return s.config.Handle(e)
}

// admit fills the request with what can be believed of it.
func (s *Server) admit(e *exchange.Exchange, c *conn, h *head, settings *Settings) *refusal {
	req := &e.Request
	req.Method, req.Target, req.Proto, req.Peer = h.method, h.target, h.proto, c.peer
	req.Scheme = "http"
	if req.TLS = peerTLS(c); req.TLS != nil {
		req.Scheme = "https"
	}
	if h.refused != nil {
		return h.refused
	}
	req.Path, req.Query, req.Host, req.Authority, req.Upgrade = h.path, h.query, h.host, h.authority, h.upgrade
	if h.upgrade != "" && h.early {
		return bad("data before the protocol was switched")
	}
	for _, f := range h.fields {
		req.Header.Add(f.Name, f.Value)
	}
	at, err := resolve(c.peer, &req.Header, settings.trusts)
	if err != nil {
		return bad("%w", err)
	}
	req.Peer = at.client
	if at.scheme != "" {
		req.Scheme = at.scheme
	}
	if id := req.Header.Get("X-Request-Id"); exchange.ValidID(id) && settings.trusts(c.peer) {
		e.ID = id
	}
	if err := req.Header.DropHopByHop(); err != nil {
		return bad("%w", err)
	}
	req.Header.DelFunc(func(f exchange.Field) bool { return foreign(f.Name) })
	if c.peer.IsValid() {
		req.Header.Add("X-Forwarded-For", at.chain)
	}
	req.Header.Add("X-Forwarded-Proto", req.Scheme)
	req.Header.Add("X-Forwarded-Host", req.Authority)
	return nil
}

// peerTLS returns what the handshake told, nil on a plain connection.
func peerTLS(c *conn) *exchange.PeerTLS {
	secure, ok := c.Conn.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nil
	}
	state := secure.ConnectionState()
	peer := &exchange.PeerTLS{Version: state.Version, ServerName: state.ServerName, ALPN: state.NegotiatedProtocol, State: &state}
	if len(state.VerifiedChains) > 0 {
		peer.Verified = state.VerifiedChains[0]
	}
	return peer
}

// body bounds a request's body, and says what conn, not net/http, found wrong.
type body struct {
	io.ReadCloser
	conn *conn
	left int64
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: body beyond its limit", exchange.ErrTooLarge)
	}
	if err != nil && err != io.EOF {
		if broken := b.conn.broken.Load(); broken != nil {
			err = *broken
		}
	}
	return n, err
}

// respond writes the response and ends it.
func (s *Server) respond(w http.ResponseWriter, e *exchange.Exchange, c *conn, resp *exchange.Response) {
	if resp.Body.Reader != nil {
		defer resp.Body.Reader.Close()
	}
	if resp.Status == http.StatusSwitchingProtocols && resp.Upgrade != nil {
		e.Result.Status = resp.Status
		e.Result.Err = s.upgrade(w, e, c, resp)
		return
	}
	if resp.Status < 200 || resp.Status > 599 {
		s.config.Log.Error("response with a status that is no answer", slog.String("request_id", e.ID), slog.Int("status", resp.Status))
		resp = s.config.Refuse(e, reasonInternal, http.StatusInternalServerError)
	}
	e.Result.Status = resp.Status
	s.writeHead(w.Header(), e, resp)
	if c.hangUp || s.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	w.WriteHeader(resp.Status)
	if resp.Body.Reader == nil || e.Request.Method == http.MethodHead {
		return
	}
	e.Result.Bytes, e.Result.Err = s.copyBody(w, resp)
	if e.Result.Err != nil {
		// Nothing but a broken connection tells the client that the body is short.
		panic(http.ErrAbortHandler)
	}
	if resp.Body.Trailer != nil {
		trailer := resp.Body.Trailer()
		for _, f := range trailer.Fields() {
			if !exchange.HopByHop(f.Name) {
				w.Header().Add(http.TrailerPrefix+f.Name, f.Value)
			}
		}
	}
}

// writeHead renders the end-to-end fields and the framing.
func (s *Server) writeHead(h http.Header, e *exchange.Exchange, resp *exchange.Response) {
	for _, f := range resp.Header.Fields() {
		if !exchange.HopByHop(f.Name) {
			h.Add(f.Name, f.Value)
		}
	}
	h.Set("X-Request-Id", e.ID)
	if _, ok := h["Content-Type"]; !ok {
		// Keeps net/http from guessing one.
		h["Content-Type"] = nil
	}
	switch {
	case resp.Status == http.StatusNoContent, resp.Status == http.StatusNotModified:
	case resp.Body.Length > 0 || resp.Body.Length == 0 && resp.Body.Reader == nil && e.Request.Method != http.MethodHead:
		h.Set("Content-Length", fmt.Sprint(resp.Body.Length))
	}
}

const copyBuffer = 32 << 10

// copyBody streams: what has no length is flushed as it comes, since a client
// may wait for each event.
func (s *Server) copyBody(w http.ResponseWriter, resp *exchange.Response) (int64, error) {
	flusher, _ := w.(http.Flusher)
	pooled := s.buffers.Get().(*[copyBuffer]byte)
	defer s.buffers.Put(pooled)
	buffer := pooled[:]
	sent := int64(0)
	for {
		n, err := resp.Body.Reader.Read(buffer)
		if n > 0 {
			k, werr := w.Write(buffer[:n])
			if sent += int64(k); werr != nil {
				return sent, fmt.Errorf("write to client: %w", werr)
			}
			if resp.Body.Length < 0 && flusher != nil {
				flusher.Flush()
			}
		}
		switch {
		case err == io.EOF && resp.Body.Length > sent:
			return sent, io.ErrUnexpectedEOF
		case err == io.EOF:
			return sent, nil
		case err != nil:
			return sent, err
		}
	}
}

// upgrade writes the 101 and lets the response carry the bytes from there.
func (s *Server) upgrade(w http.ResponseWriter, e *exchange.Exchange, c *conn, resp *exchange.Response) error {
	// net/http has no answer of its own to give after this.
	_, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("hijack: %w", err)
	}
	client := &spliced{conn: c}
	defer client.Close()
	if buffered.Reader.Buffered() > 0 {
		return fmt.Errorf("%w: data before the protocol was switched", exchange.ErrMalformed)
	}
	if err := c.splice(); err != nil {
		return err
	}
	h := http.Header{}
	s.writeHead(h, e, resp)
	h.Del("Content-Length")
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", e.Request.Upgrade)
	io.WriteString(buffered, "HTTP/1.1 101 Switching Protocols\r\n")
	h.Write(buffered)
	io.WriteString(buffered, "\r\n")
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("write to client: %w", err)
	}
	err = resp.Upgrade(client)
	e.Result.Bytes = client.sent
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// spliced counts what goes to the client.
type spliced struct {
	*conn
	sent int64
}

func (c *spliced) Write(p []byte) (int, error) {
	n, err := c.conn.Write(p)
	c.sent += int64(n)
	return n, err
}
