package listen

import (
	"bytes"
	"container/list"
	"crypto/tls"
	"net"
	"sync"
	"time"

	"portcullis.dev/portcullis/dataplane/admission"
	"portcullis.dev/portcullis/dataplane/exchange"
)

// preface is what a client of HTTP/2 without TLS sends first (RFC 9113, 3.4). No
// HTTP/1.1 request begins like it.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// opened is a connection of which it is known who serves it. That is called when
// what found it out has left the stack: the connection stays on it.
type opened struct {
	by    Front // nil: the connection is closed
	conn  net.Conn
	on    *admission.Conn
	first []byte // what has been read of it
}

// open finds the front end that speaks an accepted connection's protocol.
func (l *Listeners) open(name string, raw net.Conn) *opened {
	s := l.live.Load()
	var one *spoken
	switch {
	case s != nil:
		one = s.listeners[name]
	case name == HTTP:
		one = &spoken{}
	}
	if one == nil {
		l.counters.unserved.Add(1)
		_ = raw.Close()
		return &opened{}
	}
	o := &opened{conn: raw, on: &admission.Conn{Peer: admission.PeerOf(raw.RemoteAddr().String())}}
	switch {
	case one.tls != nil:
		o.on.AltSvc = l.quic.altSvc(name)
		l.shake(one, raw, o)
	case l.config.HTTP2 == nil:
		o.by = l.config.HTTP1
	default:
		l.peek(raw, o)
	}
	return o
}

// shake makes a TLS connection of it. What a handshake costs is bounded: in time,
// and in how many there are at once.
func (l *Listeners) shake(one *spoken, raw net.Conn, o *opened) {
	place := l.shakes.take(raw)
	c, err := l.handshake(one, raw)
	l.shakes.leave(place)
	if err != nil {
		l.counters.failed.Add(1)
		l.config.Log.Debug("a TLS handshake failed", "peer", o.on.Peer, "error", err)
		_ = raw.Close()
		return
	}
	l.counters.handshakes.Add(1)
	state := c.ConnectionState()
	name, _ := serverName(state.ServerName)
	o.on.TLS = &exchange.PeerTLS{Version: state.Version, ServerName: name, ALPN: state.NegotiatedProtocol, State: &state}
	if len(state.VerifiedChains) > 0 {
		o.on.TLS.Verified = state.VerifiedChains[0]
	}
	o.on.SNIDecides = one.verifies
	o.by, o.conn = l.config.HTTP1, c
	if state.NegotiatedProtocol == "h2" && l.config.HTTP2 != nil {
		o.by = l.config.HTTP2
	}
}

func (l *Listeners) handshake(one *spoken, raw net.Conn) (*tls.Conn, error) {
	if !l.opening.add(raw, false) {
		return nil, net.ErrClosed
	}
	defer l.opening.remove(raw)
	if err := raw.SetDeadline(time.Now().Add(l.config.HandshakeTimeout)); err != nil {
		return nil, err
	}
	c := tls.Server(raw, one.tls)
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	return c, raw.SetDeadline(time.Time{})
}

// places are those of the handshakes under way. When there is none left, the oldest
// handshake makes room: were it the newest, whoever opens connections and sends
// nothing would keep everybody out for as long as handshakes may last.
type places struct {
	most int

	mu sync.Mutex
	// Guarded by mu: net.Conns, oldest first.
	taken list.List
}

func (p *places) take(c net.Conn) *list.Element {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken.Len() == p.most {
		_ = p.taken.Remove(p.taken.Front()).(net.Conn).Close()
	}
	return p.taken.PushBack(c)
}

// leave gives a place back, unless it was lost.
func (p *places) leave(place *list.Element) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken.Remove(place)
}

// peek reads until it is clear whether the client speaks HTTP/2.
func (l *Listeners) peek(raw net.Conn, o *opened) {
	first, err := l.first(raw)
	if err != nil {
		_ = raw.Close()
		return
	}
	o.by, o.first = l.config.HTTP1, first
	if string(first) == preface {
		o.by = l.config.HTTP2
	}
}

// first returns the preface, or the first bytes of something else.
func (l *Listeners) first(raw net.Conn) ([]byte, error) {
	if !l.opening.add(raw, true) {
		return nil, net.ErrClosed
	}
	defer l.opening.remove(raw)
	if err := raw.SetReadDeadline(time.Now().Add(l.config.HandshakeTimeout)); err != nil {
		return nil, err
	}
	var b [len(preface)]byte
	n := 0
	for n < len(b) {
		more, err := raw.Read(b[n:])
		n += more
		if !bytes.HasPrefix([]byte(preface), b[:n]) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return bytes.Clone(b[:n]), raw.SetReadDeadline(time.Time{})
}

// opening are the connections that no front end knows yet.
type opening struct {
	mu sync.Mutex
	// conns: true for those that wait for their first byte.
	conns            map[net.Conn]bool
	draining, killed bool
}

// add reports false for a connection that must not go on.
func (o *opening) add(c net.Conn, idle bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.killed || o.draining && idle {
		return false
	}
	o.conns[c] = idle
	return true
}

func (o *opening) remove(c net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, c)
}

// drain closes what has sent nothing yet. Handshakes end by themselves.
func (o *opening) drain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.draining = true
	for c, idle := range o.conns {
		if idle {
			_ = c.Close()
		}
	}
}

// cut closes all, now and from now on.
func (o *opening) cut() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.killed = true
	for c := range o.conns {
		_ = c.Close()
	}
}
