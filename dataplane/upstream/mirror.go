package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"portcullis.dev/portcullis/dataplane/exchange"
	configv1 "portcullis.dev/portcullis/proto/config/v1"
)

const (
	// maxMirrored bounds the copies that are under way; what is beyond is not sent.
	maxMirrored = 128
	// maxMirrorAnswer is how much of a mirror's answer is read, in bytes.
	maxMirrorAnswer = 1 << 20
	// mirrorHeader marks a copy, so that who gets it can tell.
	mirrorHeader = "X-Portcullis-Mirror"
)

var errMirrorsClosed = errors.New("the node stops")

// Mirror gets a copy of a route's requests.
type Mirror struct {
	backend *Backend
	ratio   float64
}

// NewMirror makes one of a route's mirrors. The upstream is the caller's to
// release. What goes to it is shed first there.
func NewMirror(u *Upstream, m *configv1.Mirror) *Mirror {
	ratio := 1.0
	if m.Ratio != nil {
		ratio = m.GetRatio()
	}
	shed := &configv1.Route{Criticality: configv1.Criticality_CRITICALITY_SHEDDABLE}
	return &Mirror{NewBackend(u, shed, &configv1.Backend{Upstream: m.GetUpstream()}), ratio}
}

// mirrors are the copies under way.
type mirrors struct {
	mu sync.Mutex
	// Guarded by mu.
	closed  bool
	running int
	life    context.Context
	end     context.CancelCauseFunc
	done    sync.WaitGroup
}

// begin takes a place, and returns what the copy's life is.
func (m *mirrors) begin() (context.Context, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.running >= maxMirrored {
		return nil, false
	}
	if m.life == nil {
		m.life, m.end = context.WithCancelCause(context.Background())
	}
	m.running++
	m.done.Add(1)
	return m.life, true
}

func (m *mirrors) over() {
	m.mu.Lock()
	m.running--
	m.mu.Unlock()
	m.done.Done()
}

// close ends the copies under way and waits for them.
func (m *mirrors) close() {
	m.mu.Lock()
	m.closed = true
	if m.end != nil {
		m.end(errMirrorsClosed)
	}
	m.mu.Unlock()
	m.done.Wait()
}

// mirror has copies of the request sent: at once, or when all of a short body has
// passed. It waits for nothing.
func (b *Backend) mirror(j *journey) {
	chosen := b.mirrors[:0:0]
	for _, m := range b.mirrors {
		if m.ratio >= 1 || rand.Float64() < m.ratio {
			chosen = append(chosen, m)
		}
	}
	if len(chosen) == 0 || j.e.Request.Upgrade != "" {
		return
	}
	template := &exchange.Exchange{
		Request: cloneRequest(&j.e.Request), ID: strings.Clone(j.e.ID), Received: j.e.Received, Identity: exchange.Identity{Claims: j.e.Identity.Claims},
	}
	template.Request.Header.Set(mirrorHeader, "true")
	allowed := time.Until(j.deadline)
	send := func(body []byte) {
		for _, m := range chosen {
			m.send(template, body, allowed)
		}
	}
	if j.body == nil {
		send(j.whole)
		return
	}
	j.body.completed = send
}

// send sends one copy, and drops the answer.
func (m *Mirror) send(template *exchange.Exchange, body []byte, allowed time.Duration) {
	u := m.backend.upstream
	life, ok := u.pool.mirrors.begin()
	if !ok {
		u.unmirrored.Add(1)
		return
	}
	e := &exchange.Exchange{Request: template.Request, ID: template.ID, Identity: template.Identity, Received: time.Now()}
	e.Request.Header = exchange.HeaderOf(slices.Clone(template.Request.Header.Fields())...)
	if len(body) > 0 {
		e.Request.Body = exchange.Body{Reader: &copied{bytes.NewReader(body)}, Length: int64(len(body))}
	}
	go func() {
		defer u.pool.mirrors.over()
		defer e.End()
		defer func() {
			if cause := recover(); cause != nil {
				u.pool.log().Error("sending a copy to a mirror failed", "upstream", u.key.String(), "panic", cause)
			}
		}()
		ctx, cancel := context.WithTimeout(life, allowed)
		defer cancel()
		e.Context = ctx
		u.mirrored.Add(1)
		resp, err := m.backend.Do(e, ctx, e.Received.Add(allowed))
		if err == nil && resp.Body.Reader != nil {
			_, _ = io.CopyN(io.Discard, resp.Body.Reader, maxMirrorAnswer)
			resp.Body.Reader.Close()
		}
	}()
}

// copied is a body that is there.
type copied struct{ *bytes.Reader }

// Buffered is all that is left.
func (c *copied) Buffered() int { return c.Len() }

// Close does nothing.
func (c *copied) Close() error { return nil }

func (p *Pool) log() *slog.Logger {
	if p.config.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return p.config.Log
}
