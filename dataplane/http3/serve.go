package http3

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"

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

	mu sync.Mutex
	// Guarded by mu: bodies that nobody reads just now, since when there have been so
	// many that they may fill the connection's window, and for how long before that.
	bodies    int
	heldSince time.Time
	heldFor   time.Duration
}

// holding is how many bodies together may fill the connection's window when nobody
// reads them.
const holding = connWindow / streamWindow

// unread notes n more bodies that nobody reads.
func (c *client) unread(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.bodies
	c.bodies += n
	switch {
	case before < holding && c.bodies >= holding:
		c.heldSince = time.Now()
	case before >= holding && c.bodies < holding:
		c.heldFor += time.Since(c.heldSince)
	}
}

// held returns for how long the client may not have been allowed to send, since
// bodies that nobody read filled the connection's window. QUIC knows, but the
// library does not tell.
func (c *client) held(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bodies < holding {
		return c.heldFor
	}
	return c.heldFor + now.Sub(c.heldSince)
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
		if e.Result.Err != nil && r.Context().Err() != nil {
			// What failed failed for that.
			why := context.Cause(c.conn.Context())
			if why == nil {
				why = r.Context().Err()
			}
			e.Result.Err = lost(why)
		}
		e.End()
		e.Reset()
		s.exchanges.Put(e)
	}()
	e.Context, e.Received = r.Context(), time.Now()
	// Until it is known better.
	e.Result.Err = exchange.ErrInternal
	s.respond(w, e, s.answer(w, e, r))
}

// answer asks the handler, or for the refusal that the request deserves.
func (s *Server) answer(w http.ResponseWriter, e *exchange.Exchange, r *http.Request) (resp *exchange.Response) {
	c := r.Context().Value(connKey{}).(*client)
	on := c.met()
	settings := s.config.Settings()
	refused := s.read(w, e, r, c, settings)
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
func (s *Server) read(w http.ResponseWriter, e *exchange.Exchange, r *http.Request, c *client, settings *admission.Settings) *admission.Refusal {
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
		b := newBody(r, w, c, settings.BodyLimit(), s.config.BodyTimeout)
		e.Done = append(e.Done, func(*exchange.Exchange) { b.end() })
		if r.ContentLength < 0 && !expectsBody(r.Method) && b.empty() {
			return nil
		}
		if admission.Quiet(req) {
			b.lift()
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
