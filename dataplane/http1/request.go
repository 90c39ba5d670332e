package http1

import (
	"errors"
	"fmt"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// take turns a whole head into the exchange's request. It fills what it can also
// when it refuses.
func (c *conn) take(raw []byte, settings *admission.Settings) *admission.Refusal {
	h, r := &c.head, &c.exchange.Request
	// The fields are parsed into the memory of the exchange's header.
	h.fields = r.Header.Fields()[:0]
	err := parseRequest(raw, h)
	r.Method, r.Target = h.method, h.target
	r.Proto = "HTTP/1.1"
	if h.minor == 0 && err == nil {
		r.Proto = "HTTP/1.0"
	}
	if err != nil {
		return refusal(err)
	}
	if refused := c.vet(r, h); refused != nil {
		return refused
	}
	c.keep = h.persistent()
	r.Header = exchange.HeaderOf(h.fields...)
	if h.length != 0 {
		r.Body = exchange.Body{Reader: c.openBody(h.length, settings.BodyLimit(), h.expects > 0 && h.minor == 1), Length: h.length}
		if h.length < 0 {
			r.Body.Trailer = c.body.trailers
		}
	}
	return c.on.Admit(&c.exchange, settings)
}

// refusal says how an unreadable head is answered.
func refusal(err error) *admission.Refusal {
	if errors.Is(err, exchange.ErrTooLarge) {
		return &admission.Refusal{Status: 431, Reason: admission.ReasonTooLarge, Detail: err}
	}
	return &admission.Refusal{Status: 400, Reason: admission.ReasonMalformed, Detail: err}
}

// vet takes together what the head says of host and target, and refuses what the
// gateway does not do.
func (c *conn) vet(r *exchange.Request, h *requestHead) *admission.Refusal {
	host, port, err := exchange.ParseHost(h.host)
	if err != nil {
		return refusal(err)
	}
	r.Host, r.Authority = host, authority(h.host, host, port)
	if r.Path, r.Query, err = exchange.ParseTarget(h.method, h.target, h.host); err != nil {
		return refusal(err)
	}
	switch {
	case h.method == "CONNECT" || h.method == "TRACE":
		// TRACE would show the client what is added toward the upstream.
		return &admission.Refusal{Status: 501, Reason: admission.ReasonMalformed, Detail: fmt.Errorf("method %s", h.method)}
	case h.expects > 1 || h.expects == 1 && !exchange.EqualFold(h.expect, "100-continue"):
		return &admission.Refusal{Status: 417, Reason: admission.ReasonMalformed, Detail: errExpectation}
	case h.websocket():
		if c.from < c.to {
			return refusal(errEarly)
		}
		r.Upgrade = "websocket"
	}
	return nil
}

var (
	errExpectation = errors.New("expectation other than 100-continue")
	errEarly       = malformed("data before the protocol was switched")
	errHeadLimit   = fmt.Errorf("%w: head beyond its limit", exchange.ErrTooLarge)
)

// authority joins host and port; as they were received where that is canonical,
// which costs no memory.
func authority(received, host, port string) string {
	switch {
	case port == "":
		return host
	case len(received) == len(host)+1+len(port) && received[:len(host)] == host && received[len(host)+1:] == port:
		return received
	}
	return host + ":" + port
}
