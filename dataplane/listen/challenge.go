package listen

import (
	"io"
	"strings"

	"portcullis.dev/portcullis/dataplane/exchange"
)

// challengePath is where an ACME authority asks (RFC 8555, 8.3).
const challengePath = "/.well-known/acme-challenge/"

// Challenge answers an ACME authority: a request in clear text, GET or HEAD, for
// the exact token of an order that is under way. Nil for any other, which is what
// nearly all are. Safe for concurrent use.
func (l *Listeners) Challenge(e *exchange.Exchange) *exchange.Response {
	s := l.live.Load()
	if s == nil || len(s.challenges) == 0 || e.Request.TLS != nil {
		return nil
	}
	token, ok := strings.CutPrefix(e.Request.Path, challengePath)
	if !ok || e.Request.Method != "GET" && e.Request.Method != "HEAD" {
		return nil
	}
	answer, ok := s.challenges[token]
	if !ok {
		return nil
	}
	resp := &exchange.Response{Status: 200}
	resp.Header.Add("Content-Type", "application/octet-stream")
	resp.Header.Add("Cache-Control", "no-store")
	resp.Body.Length = int64(len(answer))
	if e.Request.Method == "GET" {
		resp.Body.Reader = io.NopCloser(strings.NewReader(answer))
	}
	return resp
}
