package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"sync/atomic"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// maxAttempts is how many endpoints are dialled for one request.
const maxAttempts = 3

// Do sends the request to one endpoint and returns the head of its answer; the
// body streams. The path, the query and the authority go out as they stand in
// the request. deadline bounds the wait for the head, not the body; ctx bounds
// both. When an endpoint cannot be dialled, so that nothing of the request was
// sent, another is tried.
//
// The error wraps ErrUnavailable, ErrTimeout, the error of the request's body
// reader, or the cause of ctx. The caller closes the response's body, and runs
// its Upgrade or ends ctx.
func (u *Upstream) Do(ctx context.Context, r *exchange.Request, deadline time.Time) (*exchange.Response, error) {
	at := u.picker.Pick()
	if at < 0 {
		return nil, fmt.Errorf("%w: no endpoint has a weight", ErrUnavailable)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(time.Until(deadline), func() { cancel(ErrTimeout) })
	body := &outgoing{reader: r.Body.Reader}
	out := outgoingRequest(ctx, r, body)
	var resp *http.Response
	var err error
	for attempt := 1; ; attempt++ {
		out.URL.Scheme, out.URL.Host = u.endpoints[at].scheme, u.endpoints[at].host
		resp, err = u.transport.RoundTrip(out)
		if err == nil || attempt == min(maxAttempts, len(u.endpoints)) || !undialled(err) || body.begun.Load() || ctx.Err() != nil {
			break
		}
		at = u.picker.next(at)
	}
	// A timer that has fired cancels the body too: then the head came too late.
	if !timer.Stop() && err == nil {
		resp.Body.Close()
		err = ErrTimeout
	}
	if err != nil {
		err = classify(ctx, body, err)
		cancel(nil)
		return nil, err
	}
	answer, err := incoming(ctx, r, resp, cancel)
	if err != nil {
		resp.Body.Close()
		cancel(nil)
	}
	return answer, err
}

// undialled tells whether the error says that no connection was made.
func undialled(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func classify(ctx context.Context, body *outgoing, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("ask upstream: %w", cause)
	}
	if broken := body.err.Load(); broken != nil {
		return fmt.Errorf("read request body: %w", *broken)
	}
	if errors.Is(err, ErrTimeout) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// outgoingRequest renders the request for the transport. Host and scheme of the
// URL are where it goes, not what it says.
func outgoingRequest(ctx context.Context, r *exchange.Request, body *outgoing) *http.Request {
	out := &http.Request{
		Method: r.Method,
		// Opaque goes out byte for byte, which Path would not.
		URL:        &url.URL{Opaque: r.Path, RawQuery: r.Query},
		Host:       r.Authority,
		Header:     outgoingHeader(r),
		Proto:      "HTTP/1.1",
		ProtoMajor: 1,
		ProtoMinor: 1,
	}
	if r.Body.Reader != nil {
		out.Body, out.ContentLength = body, r.Body.Length
	}
	return out.WithContext(ctx)
}

func outgoingHeader(r *exchange.Request) http.Header {
	fields := r.Header.Fields()
	h := make(http.Header, len(fields)+3)
	values := make([]string, len(fields))
	for i, f := range fields {
		if exchange.HopByHop(f.Name) || exchange.EqualFold(f.Name, "Host") {
			continue
		}
		name := textproto.CanonicalMIMEHeaderKey(f.Name)
		if before, ok := h[name]; ok {
			h[name] = append(before, f.Value)
			continue
		}
		values[i] = f.Value
		h[name] = values[i : i+1 : i+1]
	}
	if _, ok := h["User-Agent"]; !ok {
		// Keeps the transport from adding its own.
		h["User-Agent"] = []string{""}
	}
	if r.Upgrade != "" {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{r.Upgrade}
	}
	return h
}

// outgoing is a request's body on its way out. The transport may read it after
// Do has returned, until the front end's reader fails.
type outgoing struct {
	reader io.Reader
	begun  atomic.Bool
	err    atomic.Pointer[error]
}

func (b *outgoing) Read(p []byte) (int, error) {
	b.begun.Store(true)
	n, err := b.reader.Read(p)
	if err != nil && err != io.EOF {
		b.err.Store(&err)
	}
	return n, err
}

// Close leaves the reader to the front end, which owns it.
func (b *outgoing) Close() error { return nil }

// incoming renders the transport's response.
func incoming(ctx context.Context, r *exchange.Request, resp *http.Response, cancel context.CancelCauseFunc) (*exchange.Response, error) {
	protocol := resp.Header.Get("Upgrade")
	header, err := incomingHeader(resp.Header)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	answer := &exchange.Response{Status: resp.StatusCode, Header: header}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		backend, ok := resp.Body.(io.ReadWriteCloser)
		if r.Upgrade == "" || !exchange.EqualFold(protocol, r.Upgrade) || !ok {
			return nil, fmt.Errorf("%w: it switched protocols unasked", ErrUnavailable)
		}
		answer.Upgrade = upgrade(ctx, backend, cancel)
		return answer, nil
	}
	answer.Body.Length = resp.ContentLength
	if resp.Body == http.NoBody {
		cancel(nil)
		return answer, nil
	}
	answer.Body.Reader = &answerBody{resp.Body, ctx, cancel}
	answer.Body.Trailer = func() exchange.Header {
		h, _ := incomingHeader(resp.Trailer)
		return h
	}
	return answer, nil
}

// incomingHeader keeps the end-to-end fields. What a Connection field names
// beside "close" passes: net/http hides such a field of a response.
func incomingHeader(from http.Header) (exchange.Header, error) {
	fields := make([]exchange.Field, 0, len(from))
	for name, values := range from {
		for _, v := range values {
			fields = append(fields, exchange.Field{Name: name, Value: v})
		}
	}
	h := exchange.HeaderOf(fields...)
	err := h.DropHopByHop()
	return h, err
}

// answerBody ends the request's context with the body.
type answerBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
		err = fmt.Errorf("read upstream's answer: %w", err)
	}
	return n, err
}

func (b *answerBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}
