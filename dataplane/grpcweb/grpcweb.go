// Package grpcweb lets browsers, which see no trailers and send over any HTTP,
// call services of gRPC: it turns a request of gRPC-Web into one of gRPC and the
// answer back (gRPC's doc PROTOCOL-WEB.md). It knows nothing of connections and
// routes: it changes headers and wraps bodies.
package grpcweb

import (
	"io"

	"portcullis.dev/portcullis/dataplane/exchange"
)

const (
	web  = "application/grpc-web"
	text = "-text"
	grpc = "application/grpc"
)

// Call is one request that is translated.
type Call struct {
	contentType string // as the client sent it
	text        bool
	body        exchange.Body
}

// Begin turns a request of gRPC-Web into one of gRPC. It reports false, and
// changes nothing, for any other.
func Begin(r *exchange.Request) (Call, bool) {
	contentType := r.Header.Get("Content-Type")
	if len(contentType) < len(web) || !exchange.EqualFold(contentType[:len(web)], web) || r.Header.Count("Content-Type") != 1 {
		return Call{}, false
	}
	rest := contentType[len(web):]
	c := Call{contentType: contentType, body: r.Body}
	if len(rest) >= len(text) && exchange.EqualFold(rest[:len(text)], text) {
		c.text, rest = true, rest[len(text):]
	}
	if rest != "" && rest[0] != '+' && rest[0] != ';' && rest[0] != ' ' {
		return Call{}, false
	}
	r.Header.Set("Content-Type", grpc+rest)
	if c.text && r.Body.Reader != nil {
		r.Body = exchange.Body{Reader: &decoder{from: r.Body.Reader}, Length: -1}
	}
	return c, true
}

// Undo gives the request back its own content type, for whoever reads it after
// the upstream has.
func (c Call) Undo(r *exchange.Request) {
	r.Header.Set("Content-Type", c.contentType)
	r.Body = c.body
}

// Answer turns an answer of gRPC into one of gRPC-Web: its trailer becomes the
// last frame of the body. What is no gRPC stays as it is, and so does a status in
// the head, where clients look too.
func (c Call) Answer(resp *exchange.Response) {
	contentType := resp.Header.Get("Content-Type")
	if len(contentType) < len(grpc) || !exchange.EqualFold(contentType[:len(grpc)], grpc) {
		return
	}
	name := web
	if c.text {
		name += text
	}
	resp.Header.Set("Content-Type", name+contentType[len(grpc):])
	if resp.Body.Reader == nil {
		return
	}
	var body io.ReadCloser = &framer{from: resp.Body}
	if c.text {
		body = &encoder{from: body}
	}
	resp.Body = exchange.Body{Reader: body, Length: -1}
}
