package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	"portcullis.dev/portcullis/pkg/revocation"
)

// streamCheck is how often open streams are held against the revocations: the
// promise is that one of a revoked credential ends within 2 s.
const streamCheck = time.Second

// errRevoked ends a stream whose credential has been revoked.
var errRevoked = errors.New("the credential was revoked while the stream was open")

// streams are the answers that last: upgrades and bodies of unknown length, of
// callers who proved who they are. The list is intrusive and sharded by nothing:
// it is touched twice per stream, not per request.
type streams struct {
	mu   sync.Mutex
	open map[*stream]struct{}
}

type stream struct {
	subject revocation.Subject
	cancel  context.CancelCauseFunc
}

// watch notes an answer that may outlive a revocation.
func (s *streams) watch(e *exchange.Exchange, f *flight, resp *exchange.Response) {
	id := &e.Identity
	if id.Method == "" || resp.Upgrade == nil && resp.Body.Length >= 0 {
		return
	}
	f.stream = &stream{
		subject: revocation.Subject{
			JTI: id.TokenID, Session: id.Session, Subject: id.Subject, Client: id.Client, Issuer: id.Issuer,
			Credential: id.Credential, IssuedAt: issuedAt(id),
		},
		cancel: f.cancel,
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[*stream]struct{}{}
	}
	s.open[f.stream] = struct{}{}
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

// sweep ends the streams whose credential is revoked by now.
func (s *streams) sweep(set *revocation.Set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for one := range s.open {
		if _, revoked := set.Revoked(&one.subject); revoked {
			one.cancel(errRevoked)
			delete(s.open, one)
		}
	}
}
