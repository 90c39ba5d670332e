package http3

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

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
	writeHead(w.Header(), e, resp)
	w.WriteHeader(resp.Status)
	control := http.NewResponseController(w)
	// A client that grants no window waits for nothing: the head waits for it too.
	if err := s.patience(control); err != nil {
		e.Result.Err = err
		return
	}
	// quic-go holds on to the fields' strings until it sends them, which lie in
	// memory that is reused when this returns.
	defer control.Flush()
	if resp.Body.Reader == nil || e.Request.Method == http.MethodHead {
		return
	}
	e.Result.Bytes, e.Result.Err = s.copyBody(w, control, resp)
	if e.Result.Err != nil {
		// Nothing but a reset stream tells the client that the body is short.
		panic(http.ErrAbortHandler)
	}
	if resp.Body.Trailer == nil {
		return
	}
	// The body may have waited long for its end.
	e.Result.Err = s.patience(control)
	trailer := resp.Body.Trailer()
	for _, f := range trailer.Fields() {
		if !exchange.HopByHop(f.Name) {
			// quic-go sends trailers when the exchange has ended, whose memory is
			// another's by then.
			w.Header().Add(http.TrailerPrefix+f.Name, strings.Clone(f.Value))
		}
	}
}

// patience bounds the wait for the client to take what is written next.
func (s *Server) patience(control *http.ResponseController) error {
	if err := control.SetWriteDeadline(time.Now().Add(s.config.WriteTimeout)); err != nil {
		return fmt.Errorf("write to client: %w", err)
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

// copyBody streams: what has no length is flushed as it comes, the head too, since
// a client may wait for each event.
func (s *Server) copyBody(w http.ResponseWriter, control *http.ResponseController, resp *exchange.Response) (int64, error) {
	if resp.Body.Length < 0 {
		if err := control.Flush(); err != nil {
			return 0, fmt.Errorf("write to client: %w", err)
		}
	}
	pooled := s.buffers.Get().(*[copyBuffer]byte)
	defer s.buffers.Put(pooled)
	sent := int64(0)
	for {
		n, err := resp.Body.Reader.Read(pooled[:])
		if n > 0 {
			if derr := s.patience(control); derr != nil {
				return sent, derr
			}
			k, werr := w.Write(pooled[:n])
			if sent += int64(k); werr != nil {
				return sent, fmt.Errorf("write to client: %w", werr)
			}
			if resp.Body.Length < 0 {
				if ferr := control.Flush(); ferr != nil {
					return sent, fmt.Errorf("write to client: %w", ferr)
				}
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
