package gateway

import (
	"errors"
	"sync"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/config"
	"portcullis.dev/portcullis/pkg/revocation"
)

// streamCheck is how often open streams are held against the revocations: the
// promise is that one of a revoked credential ends within 2 s.
const streamCheck = time.Second

// errRevoked ends a stream whose caller would not be let in any more.
var errRevoked = errors.New("the credential was revoked while the stream was open")

// streams are the answers that last: upgrades and bodies of unknown length, of
// callers who proved who they are. The list is intrusive and sharded by nothing:
// it is touched twice per stream, not per request.
type streams struct {
	mu   sync.Mutex
	open map[*stream]struct{}
}

type stream struct {
	// workspace is the route's, in which the client's name resolves.
	workspace string
	// subjects are whom each level let in: the stream needs all of them.
	subjects []revocation.Subject
	// interrupt ends the answer; it may be called until the stream is removed.
	interrupt func(cause error)
}

// watch notes an answer that may outlive a revocation.
func (s *streams) watch(e *exchange.Exchange, f *flight, resp *exchange.Response) {
	id := &e.Identity
	if id.Method == "" || resp.Interrupt == nil || resp.Upgrade == nil && resp.Body.Length >= 0 {
		return
	}
	f.stream = stream{workspace: e.Route.Workspace, subjects: append(f.stream.subjects[:0], subjectOf(id)), interrupt: resp.Interrupt}
	for i := range e.Outer {
		f.stream.subjects = append(f.stream.subjects, subjectOf(&e.Outer[i]))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[*stream]struct{}{}
	}
	s.open[&f.stream] = struct{}{}
	// Done runs last first: the stream is off the list before the upstream's
	// connection, which interrupt ends, is another's.
	e.Done = append(e.Done, f.unwatch)
}

// forget takes the exchange's stream off the list.
func (f *flight) forget(*exchange.Exchange) {
	f.g.streams.remove(&f.stream)
	clear(f.stream.subjects)
	f.stream = stream{subjects: f.stream.subjects[:0]}
}

func subjectOf(id *exchange.Identity) revocation.Subject {
	return revocation.Subject{
		JTI: id.TokenID, Session: id.Session, Subject: id.Subject, Client: id.Client, Issuer: id.Issuer,
		Credential: id.Credential, IssuedAt: issuedAt(id),
	}
}

func issuedAt(id *exchange.Identity) int64 {
	if id.IssuedAt.IsZero() {
		return 0
	}
	return id.IssuedAt.Unix()
}

func (s *streams) remove(one *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, one)
}

// sweep ends the streams whose credential is revoked, or whose application is
// disabled, by now.
func (g *Gateway) sweep() {
	s := &g.streams
	s.mu.Lock()
	defer s.mu.Unlock()
	for one := range s.open {
		for i := range one.subjects {
			subject := &one.subjects[i]
			if _, revoked := g.cfg.Policy.Revocations.Revoked(subject); revoked || g.disabled(one.workspace, subject.Client) {
				one.interrupt(errRevoked)
				delete(s.open, one)
				break
			}
		}
	}
}

// disabled resolves a client as its route's policies do; one need not be an
// application.
func (g *Gateway) disabled(workspace, client string) bool {
	app, ok := g.application(workspace, client)
	if !ok {
		app, _ = g.application(config.DefaultWorkspace, client)
	}
	return app.GetDisabled()
}
