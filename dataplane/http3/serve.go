package http3

import (
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http/httpguts"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// client is one QUIC connection, shared by its requests.
type client struct {
	conn       *quic.Conn
	sniDecides bool

	once sync.Once
	tls  *exchange.PeerTLS

	work  work
	asked atomic.Int64 // when a request last began or ended, in Unix nanoseconds
}

// watch closes the connection once no whole request has come for as long as one may
// be idle, until stop is called: packets alone, and heads that do not end, keep it
// open otherwise.
func (c *client) watch(idle time.Duration) (stop func() bool) {
	c.asked.Store(time.Now().UnixNano())
	var timer *time.Timer
	armed := make(chan struct{})
	timer = time.AfterFunc(idle, func() {
		<-armed
		left := idle
		if c.work.count() == 0 {
			left = time.Until(time.Unix(0, c.asked.Load()).Add(idle))
		}
		if left > 0 {
			timer.Reset(left)
			return
		}
		_ = c.conn.CloseWithError(quic.ApplicationErrorCode(quichttp3.ErrCodeNoError), "idle")
	})
	close(armed)
	return timer.Stop
}

// serves notes a request that begins, or with -1 that ends.
func (c *client) serves(n int) {
	c.asked.Store(time.Now().UnixNano())
	c.work.add(n)
}

// met returns what is known of the connection. Its address may change while it
// lasts (RFC 9000, 9), so that each request asks.
func (c *client) met() *admission.Conn {
	c.once.Do(func() {
		state := c.conn.ConnectionState().TLS
		c.tls = &exchange.PeerTLS{Version: tls.VersionTLS13, ServerName: state.ServerName, ALPN: state.NegotiatedProtocol, State: &state}
		if len(state.VerifiedChains) > 0 {
			c.tls.Verified = state.VerifiedChains[0]
		}
	})
	return &admission.Conn{Peer: admission.PeerOf(c.conn.RemoteAddr().String()), TLS: c.tls, SNIDecides: c.sniDecides}
}

// serve is one request.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.work.add(1)
	defer s.work.add(-1)
	c := r.Context().Value(connKey{}).(*client)
	c.serves(1)
	defer c.serves(-1)
	e := s.exchanges.Get().(*exchange.Exchange)
	defer func() {
		e.End()
		e.Reset()
		s.exchanges.Put(e)
	}()
	e.Context, e.Received = r.Context(), time.Now()
	s.respond(w, e, s.answer(w, e, r))
}

// answer asks the handler, or for the refusal that the request deserves.
func (s *Server) answer(w http.ResponseWriter, e *exchange.Exchange, r *http.Request) (resp *exchange.Response) {
	on := r.Context().Value(connKey{}).(*client).met()
	settings := s.config.Settings()
	refused := s.read(w, e, r, settings)
	if refused == nil {
		refused = on.Admit(e, settings)
	} else {
		on.Meet(e)
	}
	if refused != nil {
		e.Why.Detail = refused.Detail.Error()
		return s.config.Refuse(e, refused.Reason, refused.Status)
	}
	defer func() {
		if v := recover(); v != nil {
			s.config.Log.Error("panic while handling a request", slog.String("request_id", e.ID), slog.Any("panic", v), slog.String("stack", string(debug.Stack())))
			resp = s.config.Refuse(e, admission.ReasonInternal, http.StatusInternalServerError)
		}
	}()
	return s.config.Handle(e)
}

// maxFields is how many header fields one request may have, as in HTTP/1.1.
const maxFields = 200

func malformed(detail error) *admission.Refusal {
	return &admission.Refusal{Status: http.StatusBadRequest, Reason: admission.ReasonMalformed, Detail: detail}
}

func bad(format string, args ...any) *admission.Refusal {
	return malformed(fmt.Errorf("%w: "+format, append([]any{exchange.ErrMalformed}, args...)...))
}

// read fills the exchange's request. quic-go has vetted the syntax of fields and
// the pseudo-header fields (RFC 9114, 4.3); what HTTP/1.1 would refuse beyond that
// is refused here too.
func (s *Server) read(w http.ResponseWriter, e *exchange.Exchange, r *http.Request, settings *admission.Settings) *admission.Refusal {
	req := &e.Request
	req.Method, req.Target, req.Proto = r.Method, r.RequestURI, "HTTP/3.0"
	host, port, err := exchange.ParseHost(r.Host)
	if err != nil {
		return malformed(err)
	}
	req.Host, req.Authority = host, host
	if port != "" {
		req.Authority += ":" + port
	}
	if named, twice := r.Header["Host"]; twice && (len(named) != 1 || named[0] != r.Host) {
		return bad("Host and :authority differ")
	}
	if !validMethod(r.Method) {
		return bad("invalid method")
	}
	if r.Method == http.MethodConnect || r.Method == http.MethodTrace {
		return &admission.Refusal{Status: http.StatusNotImplemented, Reason: admission.ReasonMalformed, Detail: fmt.Errorf("method %s", r.Method)}
	}
	if req.Path, req.Query, err = exchange.ParseTarget(r.Method, r.RequestURI, r.Host); err != nil {
		return malformed(err)
	}
	if req.Target != "*" && req.Target[0] != '/' {
		return bad("target that is no path")
	}
	if refused := s.fields(req, r.Header, settings); refused != nil {
		return refused
	}
	if r.ContentLength != 0 {
		b := &body{from: r.Body, control: http.NewResponseController(w), timeout: s.config.BodyTimeout, limit: settings.BodyLimit(), declared: r.ContentLength}
		if r.ContentLength < 0 && !expectsBody(r.Method) && b.empty() {
			return nil
		}
		req.Body = exchange.Body{Reader: b, Length: r.ContentLength, Trailer: func() exchange.Header { return trailerOf(r.Trailer) }}
	}
	return nil
}

// validMethod: as HTTP/1.1 has it, upper-case letters and '-'.
func validMethod(method string) bool {
	return method != "" && len(method) <= 32 && strings.Trim(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") == ""
}

// expectsBody says whether a request of the method has a body as a rule
// (RFC 9110, 9.3).
func expectsBody(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete:
		return false
	}
	return true
}

func (s *Server) fields(req *exchange.Request, from http.Header, settings *admission.Settings) *admission.Refusal {
	size, count := len(req.Target), 0
	for name, values := range from {
		for _, v := range values {
			// The overhead of RFC 9114, 4.2.2.
			size, count = size+len(name)+len(v)+32, count+1
			if strings.ContainsAny(v, "\r\n\x00") {
				return bad("control byte in the field %s", name)
			}
			req.Header.Add(strings.ToLower(name), v)
		}
	}
	if count > maxFields || size > settings.HeaderLimit() {
		return &admission.Refusal{Status: http.StatusRequestHeaderFieldsTooLarge, Reason: admission.ReasonTooLarge, Detail: fmt.Errorf("%d header fields of %d bytes", count, size)}
	}
	return nil
}

func trailerOf(from http.Header) exchange.Header {
	var h exchange.Header
	for name, values := range from {
		for _, v := range values {
			if httpguts.ValidTrailerHeader(name) && httpguts.ValidHeaderFieldName(name) && httpguts.ValidHeaderFieldValue(v) {
				h.Add(strings.ToLower(name), v)
			}
		}
	}
	return h
}

// body bounds a request's body in size and in patience.
type body struct {
	from     io.ReadCloser
	control  *http.ResponseController
	timeout  time.Duration
	limit    int64
	declared int64 // -1: unknown
	read     int64
	ahead    []byte // what empty has read
}

// empty waits for the first byte or the end of the body: a request that has ended
// with its header does not say so in the header, and an upstream would get a
// chunked body of nothing.
func (b *body) empty() bool {
	first := make([]byte, 1)
	n, err := b.Read(first)
	b.ahead = first[:n]
	return n == 0 && err == io.EOF
}

func (b *body) Read(p []byte) (int, error) {
	if len(b.ahead) > 0 {
		n := copy(p, b.ahead)
		b.ahead = b.ahead[n:]
		return n, nil
	}
	if err := b.control.SetReadDeadline(time.Now().Add(b.timeout)); err != nil {
		return 0, err
	}
	n, err := b.from.Read(p)
	b.read += int64(n)
	switch {
	case b.read > b.limit:
		return 0, fmt.Errorf("%w: body beyond its limit", exchange.ErrTooLarge)
	case b.declared >= 0 && (b.read > b.declared || err == io.EOF && b.read < b.declared):
		return 0, fmt.Errorf("%w: body of another length than declared", exchange.ErrMalformed)
	}
	return n, err
}

func (b *body) Close() error { return b.from.Close() }
