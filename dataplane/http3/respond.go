package http3

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/quic-go/quic-go"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

const copyBuffer = 32 << 10

// respond writes the response and ends it. HTTP/3 has no upgrade (RFC 9114, 4.5):
// Request.Upgrade was never set.
func (s *Server) respond(w http.ResponseWriter, e *exchange.Exchange, resp *exchange.Response) {
	if resp.Body.Reader != nil {
		defer resp.Body.Reader.Close()
	}
	if resp.Status < 200 || resp.Status > 599 {
		s.config.Log.Error("response with a status that is no answer", slog.String("request_id", e.ID), slog.Int("status", resp.Status))
		resp = s.config.Refuse(e, admission.ReasonInternal, http.StatusInternalServerError)
	}
	e.Result.Status = resp.Status
	if b, ok := e.Request.Body.Reader.(*body); ok {
		b.lift()
	}
	a := &answer{Server: s, w: w, control: http.NewResponseController(w), body: &resp.Body}
	if resp.Body.Reader != nil && e.Request.Method != http.MethodHead {
		a.pooled = s.buffers.Get().(*[copyBuffer]byte)
		defer s.buffers.Put(a.pooled)
	}
	if fail := e.Fail; a.begin() != nil && fail != nil && e.Context.Err() == nil {
		e.Fail = nil
		s.respond(w, e, fail(e, a.err))
		return
	}
	writeHead(w.Header(), e, resp)
	w.WriteHeader(resp.Status)
	// A client that grants no window waits for nothing: the head waits for it too.
	if e.Result.Err = s.patience(a.control); e.Result.Err != nil {
		return
	}
	// quic-go holds on to the fields' strings until it sends them, which lie in
	// memory that is reused when this returns.
	defer a.control.Flush()
	if a.pooled == nil {
		return
	}
	if e.Result.Err = a.copy(); e.Result.Err != nil {
		e.Result.Bytes = a.sent
		// Nothing but a reset stream tells the client that the body is short.
		panic(http.ErrAbortHandler)
	}
	if e.Result.Bytes = a.sent; resp.Body.Trailer != nil {
		e.Result.Err = a.trail()
	}
}

// answer is a body on its way to the client.
type answer struct {
	*Server
	w       http.ResponseWriter
	control *http.ResponseController
	body    *exchange.Body
	pooled  *[copyBuffer]byte // nil when there is nothing to send
	n       int               // bytes of pooled that are to be sent
	err     error             // what the body said with them
	sent    int64
}

// begin reads the first piece of a body of known length, or all of a small one,
// before the head is sent, and returns why there will be none.
func (a *answer) begin() error {
	if a.pooled == nil || a.body.Length < 0 {
		return nil
	}
	for a.read(); a.err == nil && a.body.Length < copyBuffer && int64(a.n) < a.body.Length; {
		a.read()
	}
	if a.err == io.EOF {
		return nil
	}
	return a.err
}

// read reads more, behind what is to be sent.
func (a *answer) read() {
	n, err := a.body.Reader.Read(a.pooled[a.n:])
	a.n, a.err = a.n+n, err
	if a.err == io.EOF && a.body.Length > a.sent+int64(a.n) {
		a.err = io.ErrUnexpectedEOF
	}
}

// copy streams: what has no length is flushed as it comes, the head too, since a
// client may wait for each event.
func (a *answer) copy() error {
	if a.body.Length < 0 {
		if err := a.control.Flush(); err != nil {
			return lost(err)
		}
		a.read()
	}
	for {
		if a.n > 0 {
			if err := a.patience(a.control); err != nil {
				return err
			}
			k, err := a.w.Write(a.pooled[:a.n])
			if a.sent += int64(k); err != nil {
				return lost(err)
			}
			if a.body.Length < 0 {
				if err := a.control.Flush(); err != nil {
					return lost(err)
				}
			}
		}
		switch {
		case a.err == io.EOF:
			return nil
		case a.err != nil:
			return a.err
		}
		a.n = 0
		a.read()
	}
}

// trail has the trailer sent at the end.
func (a *answer) trail() error {
	trailer := a.body.Trailer()
	for _, f := range trailer.Fields() {
		if !exchange.HopByHop(f.Name) {
			// quic-go sends trailers when the exchange has ended, whose memory is
			// another's by then.
			a.w.Header().Add(http.TrailerPrefix+f.Name, strings.Clone(f.Value))
		}
	}
	// The body may have waited long for its end.
	return a.patience(a.control)
}

// lost says what a failed write means. A connection with requests on it is closed
// from here only when the node stops.
func lost(err error) error {
	var closed *quic.ApplicationError
	why := exchange.ErrClientGone
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		why = exchange.ErrClientSlow
	case errors.As(err, &closed) && !closed.Remote:
		why = exchange.ErrStopping
	}
	return fmt.Errorf("%w: %w", why, err)
}

// patience bounds the wait for the client to take what is written next.
func (s *Server) patience(control *http.ResponseController) error {
	if err := control.SetWriteDeadline(time.Now().Add(s.config.WriteTimeout)); err != nil {
		return lost(err)
	}
	return nil
}

// writeHead renders the end-to-end fields.
func writeHead(h http.Header, e *exchange.Exchange, resp *exchange.Response) {
	for _, f := range resp.Header.Fields() {
		if !exchange.HopByHop(f.Name) {
			h.Add(f.Name, f.Value)
		}
	}
	h.Set("X-Request-Id", e.ID)
	if _, ok := h["Content-Type"]; !ok {
		// Keeps quic-go from guessing one.
		h["Content-Type"] = nil
	}
	switch {
	case resp.Status == http.StatusNoContent, resp.Status == http.StatusNotModified:
	case resp.Body.Length > 0 || resp.Body.Length == 0 && resp.Body.Reader == nil && e.Request.Method != http.MethodHead:
		h.Set("Content-Length", strconv.FormatInt(resp.Body.Length, 10))
	}
}
