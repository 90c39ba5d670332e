package http1

import "portcullis.dev/portcullis/dataplane/exchange"

// frameRequest finds the length of a request's body (RFC 9112, 6.3). Where the
// RFC lets a server choose between two readings it refuses both.
func (r *requestHead) frameRequest() error {
	if err := r.frame(); err != nil {
		return err
	}
	if r.lengths > 1 {
		return malformed("several Content-Length fields")
	}
	r.length = r.contentLength
	if r.codings > 0 {
		r.length = -1
	}
	return nil
}

// frameResponse finds the length of a response's body.
func (r *responseHead) frameResponse(method string) error {
	if err := r.frame(); err != nil {
		return err
	}
	switch {
	case r.status < 200 || r.status == 204:
		// RFC 9110, 8.6, and RFC 9112, 6.1, forbid both; who sends one may send a body.
		if r.codings > 0 || r.contentLength > 0 {
			return malformed("a body with status %d", r.status)
		}
		r.length = 0
	case method == "HEAD" || r.status == 304:
		r.length = 0
	case r.codings > 0:
		r.length = -1
	case r.lengths > 0:
		r.length = r.contentLength
	default:
		r.length = untilClose
	}
	return nil
}

// frame refuses what is ambiguous in both directions.
func (h *head) frame() error {
	switch {
	case h.codings == 0:
		return nil
	case h.lengths > 0:
		return malformed("both Content-Length and Transfer-Encoding")
	case h.codings > 1 || !exchange.EqualFold(h.coding, "chunked"):
		return malformed("a transfer coding other than chunked, once")
	case h.minor == 0:
		return malformed("Transfer-Encoding in HTTP/1.0")
	}
	return nil
}

// websocket tells whether a request head asks to switch to the WebSocket
// protocol (RFC 6455, 4.1).
func (r *requestHead) websocket() bool {
	return r.method == "GET" && r.minor == 1 && r.length == 0 && r.options&optionUpgrade != 0 && exchange.EqualFold(r.upgrade, "websocket")
}

// persistent tells whether the sender of the head keeps the connection open
// (RFC 9112, 9.3).
func (h *head) persistent() bool {
	return h.options&optionClose == 0 && (h.minor == 1 || h.options&optionKeepAlive != 0)
}
